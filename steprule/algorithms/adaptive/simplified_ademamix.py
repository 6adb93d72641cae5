from __future__ import annotations

from typing import Any, ClassVar

from steprule.algorithms.arguments import Number, Options, Params, Range, Ranges, Unpack, usually
from steprule.algorithms.moments import corrected_root, mean_square_of, slowing
from steprule.optimizer import Optimizer

__all__ = ["SimplifiedAdEMAMix"]


class SimplifiedAdEMAMix(Optimizer):
    r"""Adam with one long momentum, beside which the newest gradient counts by itself.

    .. math::
        m_t &= \beta_1 m_{t-1} + g_t, \qquad v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        \theta_t &= (1 - \gamma\lambda)\, \theta_{t-1} - \gamma \,
            \frac{m_t + \alpha g_t}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    The momentum is a sum, not a mean: a rate :math:`1 - \beta_1` times Adam's does as much. Over ``beta1_warmup``
    steps the half-life of :math:`\beta_1` grows from that of ``min_beta1`` in a straight line. `Connections between
    Schedule-Free Optimizers, AdEMAMix, and Accelerated SGD Variants <https://arxiv.org/abs/2502.02431>`_, Morwani
    et al., 2025.

    Choose it in place of AdEMAMix where state is dear, with small batches and a large first beta.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate: the size of a step in the parameter's own unit; usually 1e-6
            to 1e-3.
        betas (tuple of two floats): how much of the momentum and of the running mean of the gradient's square
            is kept from step to step, without unit; usually 0.99 to 0.9999 and 0.95 to 0.999.
        alpha (float): how much the newest gradient counts beside the momentum, without unit; usually 0 to 200.
        beta1_warmup (int, optional): steps over which the momentum grows longer; None means none; usually the
            length of the training.
        min_beta1 (float): the momentum that it begins with, without unit; usually 0.9.
        eps (float): added to the denominator, in the gradient's unit; usually 1e-10 to 1e-6.
        weight_decay (float): the part of the parameter lost at each step, over the rate: in units of one over
            the rate; usually 0 to 0.3.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import SimplifiedAdEMAMix
        >>> weight = torch.tensor([1.0, -200.0], requires_grad=True)
        >>> optimizer = SimplifiedAdEMAMix([weight], lr=0.125, alpha=1)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> weight.detach()
        tensor([   0.7500, -199.7500])
    """

    ranges: ClassVar[Ranges] = usually(
        lr="1e-6 to 1e-3",
        betas=("0.99 to 0.9999", "0.95 to 0.999"),
        alpha="0 to 200",
        beta1_warmup=Range(least=1, optional=True, usual="the length of the training"),
        min_beta1=Range(above=0, below=1, usual="0.9"),
        eps="1e-10 to 1e-6",
        weight_decay="0 to 0.3",
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.99, 0.95),
        alpha: Number = 0.0,
        beta1_warmup: Number | None = None,
        min_beta1: Number = 0.9,
        eps: Number = 1e-8,
        weight_decay: Number = 0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            dict(
                lr=lr,
                betas=betas,
                alpha=alpha,
                beta1_warmup=beta1_warmup,
                min_beta1=min_beta1,
                eps=eps,
                weight_decay=weight_decay,
            ),
            **options,
        )

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        beta1, beta2 = h.betas
        if h.beta1_warmup:
            beta1 = slowing(h.min_beta1, beta1, s.step / h.beta1_warmup)
        s.exp_avg = beta1 * s.exp_avg + g
        s.exp_avg_sq = mean_square_of(s.exp_avg_sq, g, beta2)
        u = (s.exp_avg + h.alpha * g) / corrected_root(s.exp_avg_sq, beta2, s, h)
        return p * (1 - h.lr * h.weight_decay) - h.lr * u
