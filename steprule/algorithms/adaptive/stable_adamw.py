from __future__ import annotations

from typing import Any, ClassVar

from steprule.algorithms.arguments import Number, Options, Params, Range, Ranges, Unpack, usually
from steprule.algorithms.moments import mean_of, mean_square_of
from steprule.optimizer import Optimizer
from steprule.rule import maximum, mean, sqrt, where

__all__ = ["StableAdamW"]


class StableAdamW(Optimizer):
    r"""AdamW that takes smaller steps in a layer whose gradients are larger than their running mean foretold.

    .. math::
        \hat\beta &= \beta \frac{1 - \beta^{t-1}}{1 - \beta^t}, \qquad
        m_t = \hat\beta_1 m_{t-1} + (1 - \hat\beta_1) g_t, \qquad
        v_t = \hat\beta_2 v_{t-1} + (1 - \hat\beta_2) g_t^2 \\
        \gamma_t &= \gamma / \max\left(1, \operatorname{rms}(g_t / \max(\sqrt{v_t}, \epsilon)) / d\right) \\
        \theta_t &= (1 - \gamma_t\lambda)\, \theta_{t-1} - \gamma_t \, m_t / (\sqrt{v_t} + \epsilon)

    `Stable and low-precision training for large-scale vision-language models <https://arxiv.org/abs/2304.13013>`_,
    Wortsman et al., 2023, algorithm 2.

    Choose it in place of AdamW with a clipped gradient, where the loss of a large transformer has spikes.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate: the size of a step in the parameter's own unit; usually 1e-5
            to 1e-2.
        betas (tuple of two floats): how much of the running means of the gradient and of its square is kept
            from step to step, without unit; usually 0.9 and 0.95 to 0.999.
        eps (float): added to the denominator, in the gradient's unit; usually 1e-10 to 1e-6.
        weight_decay (float): the part of the parameter lost at each step, over the rate: in units of one over
            the rate; usually 0 to 0.3.
        clip_thresh (float): :math:`d`, the root mean square from which on steps become smaller, without unit;
            usually 1.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import StableAdamW
        >>> weight = torch.tensor([1.0, -200.0], requires_grad=True)
        >>> optimizer = StableAdamW([weight], lr=0.25, weight_decay=0)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> weight.detach()
        tensor([   0.7500, -199.7500])
    """

    ranges: ClassVar[Ranges] = usually(
        lr="1e-5 to 1e-2",
        betas=("0.9", "0.95 to 0.999"),
        eps="1e-10 to 1e-6",
        weight_decay="0 to 0.3",
        clip_thresh=Range(above=0, usual="1"),
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 2e-3,
        betas: tuple[Number, Number] = (0.9, 0.99),
        eps: Number = 1e-8,
        weight_decay: Number = 0.2,
        clip_thresh: Number = 1.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, clip_thresh=clip_thresh), **options
        )

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        beta1, beta2 = (beta * (1 - beta ** (s.step - 1)) / (1 - beta**s.step) for beta in h.betas)
        s.exp_avg = mean_of(s.exp_avg, g, beta1)
        s.exp_avg_sq = mean_square_of(s.exp_avg_sq, g, beta2)
        size = sqrt(mean(g * g / maximum(s.exp_avg_sq, h.eps * h.eps))) / h.clip_thresh
        rate = h.lr / where(size > 1, size, 1.0)
        return p * (1 - rate * h.weight_decay) - rate * s.exp_avg / (sqrt(s.exp_avg_sq) + h.eps)
