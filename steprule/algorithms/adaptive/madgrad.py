from __future__ import annotations

from typing import Any, ClassVar

from steprule.algorithms.arguments import PENALTY, Number, Options, Params, Range, Ranges, Slots, Unpack, usually
from steprule.algorithms.weight_decay import penalized
from steprule.optimizer import Optimizer
from steprule.rule import array, power, sqrt, stored, where

__all__ = ["MADGRAD"]


class MADGRAD(Optimizer):
    r"""Dual averaging by the cube root of the sum of squares: every gradient since the start counts.

    .. math::
        \lambda_t &= (\gamma + \epsilon) \sqrt{t}, \qquad
        s_t = s_{t-1} + \lambda_t g_t, \qquad
        v_t = v_{t-1} + \lambda_t g_t^2 \\
        \theta_t &= \mu \theta_{t-1} + (1 - \mu) \left(\theta_0 - s_t / (\sqrt[3]{v_t} + \epsilon)\right)

    `Adaptivity without Compromise: A Momentumized, Adaptive, Dual Averaged Gradient Method for Stochastic
    Optimization <https://arxiv.org/abs/2101.11075>`_, Defazio and Jelassi, 2021.

    Choose it for sparse problems, and for reconstruction and translation, where it generalizes like the better of
    SGD and Adam; take little weight decay or none.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate of the dual averaging, in units that no other algorithm shares:
            tune it anew; usually 1e-4 to 0.1.
        momentum (float): how much the former place counts in the new one, without unit; 0, or 0.8 to 0.99.
        weight_decay (float): strength of the L2 penalty, in units of the loss over the parameter squared; 0, or
            1e-6 to 1e-2.
        eps (float): added to the denominator and to the rate, in their units; usually 0 to 1e-6.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import MADGRAD
        >>> weight = torch.tensor([1.0, -2.0], requires_grad=True)
        >>> optimizer = MADGRAD([weight], lr=0.1)
        >>> for _ in range(300):
        ...     optimizer.zero_grad()
        ...     weight.square().sum().backward()
        ...     optimizer.step()
        >>> bool(weight.abs().max() < 0.01)
        True
    """

    slots: ClassVar[Slots] = {"x0": array("parameter")}
    ranges: ClassVar[Ranges] = usually(
        lr="1e-4 to 0.1",
        momentum=Range(least=0, below=1, usual="0, or 0.8 to 0.99"),
        weight_decay=PENALTY,
        eps="0 to 1e-6",
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-2,
        momentum: Number = 0.9,
        weight_decay: Number = 0,
        eps: Number = 1e-6,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, eps=eps), **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        g = penalized(g, p, h)
        rate = where(h.lr > 0, h.lr + h.eps, 0.0) * sqrt(s.step)
        s.grad_sum_sq = s.grad_sum_sq + rate * (g * g)
        s.s = s.s + rate * g
        root = power(s.grad_sum_sq, 1 / 3) + h.eps
        z = s.x0 - where(root > 0, s.s / root, 0.0)
        # p as it is held: a multiple of p itself would count as decay to modifiers
        return p - (1 - h.momentum) * (stored(p) - z) if h.momentum else z
