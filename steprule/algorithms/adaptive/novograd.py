from __future__ import annotations

from typing import Any, ClassVar

from steprule.algorithms.arguments import Number, Options, Params, Ranges, Slots, Unpack, usually
from steprule.optimizer import Optimizer
from steprule.rule import scalar, sqrt, sum, where

__all__ = ["NovoGrad"]


class NovoGrad(Optimizer):
    r"""Momentum of gradients that are each divided by the running norm of their layer.

    .. math::
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) \lVert g_t \rVert^2, \qquad v_1 = \lVert g_1 \rVert^2 \\
        m_t &= \beta_1 m_{t-1} + \left(\frac{g_t}{\sqrt{v_t} + \epsilon} + \lambda \theta_{t-1}\right) \\
        \theta_t &= \theta_{t-1} - \gamma m_t

    A layer is a parameter tensor, and :math:`v` one number for it. `Stochastic Gradient Methods with Layer-wise
    Adaptive Moments for Training of Deep Networks <https://arxiv.org/abs/1905.11286>`_, Ginsburg et al., 2019.

    Choose it for speech and images with large batches: one slot, and steps that do not depend on the scale of a
    layer's gradients.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate: the size of a step in the parameter's own unit; usually 1e-3
            to 0.1.
        betas (tuple of two floats): how much of the momentum and of the running norm is kept from step to step,
            without unit; usually 0.95 and 0.25 to 0.98.
        eps (float): added to the denominator, in the gradient's unit; usually 1e-10 to 1e-6.
        weight_decay (float): how much of the parameter counts in the momentum, in units of one over the
            parameter; usually 0 to 1e-2.
        grad_averaging (bool): make the momentum a mean: each gradient counts for one less the first beta.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import NovoGrad
        >>> weight = torch.tensor([3.0, 4.0], requires_grad=True)
        >>> optimizer = NovoGrad([weight], lr=0.5)
        >>> weight.square().sum().backward()
        >>> optimizer.step()  # half of a step of norm 1
        >>> weight.detach()
        tensor([2.7000, 3.6000])
    """

    slots: ClassVar[Slots] = {"exp_avg_sq": scalar()}
    ranges: ClassVar[Ranges] = usually(
        lr="1e-3 to 0.1", betas=("0.95", "0.25 to 0.98"), eps="1e-10 to 1e-6", weight_decay="0 to 1e-2"
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.95, 0.98),
        eps: Number = 1e-8,
        weight_decay: Number = 0,
        grad_averaging: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, grad_averaging=grad_averaging),
            **options,
        )

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        beta1, beta2 = h.betas
        square = sum(g * g)
        s.exp_avg_sq = where(s.is_new, square, beta2 * s.exp_avg_sq + (1 - beta2) * square)
        u = g / (sqrt(s.exp_avg_sq) + h.eps) + h.weight_decay * p
        part = where(s.is_new, 1.0, 1 - beta1) if h.grad_averaging else 1.0
        s.exp_avg = beta1 * s.exp_avg + part * u
        return p - h.lr * s.exp_avg
