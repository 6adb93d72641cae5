from __future__ import annotations

from typing import Any, ClassVar

from steprule.algorithms.arguments import Number, Options, Params, Range, Ranges, Slots, Unpack, usually
from steprule.algorithms.moments import adam_step
from steprule.optimizer import Optimizer
from steprule.rule import maximum, minimum, norm, scalar, where

__all__ = ["AdaGC"]


class AdaGC(Optimizer):
    r"""AdamW whose gradients are clipped, tensor by tensor, against the running mean of their norms.

    .. math::
        \hat g_t &= g_t \min\left(1,\ \lambda_{\text{rel}}\, n_{t-1} / \lVert g_t \rVert\right), \qquad
        n_t = \beta n_{t-1} + (1 - \beta) \lVert \hat g_t \rVert \\
        \theta_t &= (1 - \gamma\lambda)\, \theta_{t-1} - \gamma \,
            \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    with the moments :math:`m` and :math:`v` of :class:`Adam`, of :math:`\hat g`. In the first ``warmup_steps`` the
    norm of all gradients together is clipped to :math:`\lambda_{\text{abs}}`, and :math:`n` is the least norm so
    far. `AdaGC: Improving Training Stability for Large Language Model Pretraining
    <https://arxiv.org/abs/2502.11034>`_, Wang et al., 2025.

    Choose it in place of AdamW with ``clip_norm`` where the loss of a language model has spikes that come from few
    layers.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate: the size of a step in the parameter's own unit; usually 1e-5
            to 1e-2.
        betas (tuple of two floats): how much of the running means of the gradient and of its square is kept
            from step to step, without unit; usually 0.9 and 0.95 to 0.999.
        beta (float): how much of the running mean of norms is kept from step to step, without unit; usually
            0.98.
        lambda_abs (float): the norm of all gradients that is allowed at first, in their unit; usually 1.
        lambda_rel (float): how much larger than the mean a norm may be, without unit; usually 1.01 to 1.1.
        warmup_steps (int): how many steps are the first; usually 100.
        weight_decay (float): the part of the parameter lost at each step, over the rate: in units of one over
            the rate; usually 0 to 0.3.
        eps (float): added to the denominator, in the gradient's unit; usually 1e-10 to 1e-6.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import AdaGC
        >>> weight = torch.tensor([1.0, -200.0], requires_grad=True)
        >>> optimizer = AdaGC([weight], lr=0.25, weight_decay=0)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> weight.detach()
        tensor([   0.7500, -199.7500])
    """

    slots: ClassVar[Slots] = {"gamma": scalar()}
    ranges: ClassVar[Ranges] = usually(
        lr="1e-5 to 1e-2",
        betas=("0.9", "0.95 to 0.999"),
        beta=Range(least=0, below=1, usual="0.98"),
        lambda_abs=Range(above=0, usual="1"),
        lambda_rel=Range(above=0, usual="1.01 to 1.1"),
        warmup_steps="100",
        weight_decay="0 to 0.3",
        eps="1e-10 to 1e-6",
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        beta: Number = 0.98,
        lambda_abs: Number = 1.0,
        lambda_rel: Number = 1.05,
        warmup_steps: Number = 100,
        weight_decay: Number = 0.1,
        eps: Number = 1e-8,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            dict(
                lr=lr,
                betas=betas,
                beta=beta,
                lambda_abs=lambda_abs,
                lambda_rel=lambda_rel,
                warmup_steps=warmup_steps,
                weight_decay=weight_decay,
                eps=eps,
            ),
            **options,
        )

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        size, total = norm(g), norm(g, scope="all")
        at_first = minimum(1.0, h.lambda_abs / (total + h.eps))
        later = minimum(1.0, h.lambda_rel * maximum(s.gamma, h.eps) / maximum(size, h.eps))
        early = s.step < h.warmup_steps
        scale = where(s.is_new | early, at_first, later)
        least = where(s.is_new, scale * size, minimum(s.gamma, scale * size))
        s.gamma = where(s.is_new | early, least, h.beta * s.gamma + (1 - h.beta) * scale * size)
        return p * (1 - h.lr * h.weight_decay) - adam_step(scale * g, s, h, h.lr)
