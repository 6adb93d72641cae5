from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from steprule.algorithms.arguments import Number, Options, Params, Range, Ranges, Unpack, usually
from steprule.algorithms.weight_decay import penalized
from steprule.optimizer import SWITCHES, Optimizer
from steprule.rule import where

__all__ = ["SGD"]


class SGD(Optimizer):
    r"""Stochastic gradient descent, with or without momentum.

    .. math::
        g_t &= \nabla f(\theta_{t-1}) + \lambda \theta_{t-1} \\
        b_t &= \mu b_{t-1} + (1 - \tau) g_t, \qquad b_1 = g_1 \\
        \theta_t &= \theta_{t-1} - \gamma b_t
            \qquad\text{(nesterov: } \theta_{t-1} - \gamma (g_t + \mu b_t) \text{)}

    `A Stochastic Approximation Method <https://doi.org/10.1214/aoms/1177729586>`_, Robbins and Monro, 1951; with
    momentum `On the importance of initialization and momentum in deep learning
    <https://proceedings.mlr.press/v28/sutskever13.html>`_, Sutskever et al., 2013. As in torch, the rate multiplies
    the whole momentum, so that a new rate takes effect at once.

    Choose it for convolutional networks with normalisation, where momentum 0.9 and a decaying rate reach the best
    accuracy with 4 bytes of state a parameter; for convex problems; and as the baseline of everything else.

    With a sparse gradient only the rows that it holds move, and only their momentum decays.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate, in units of the parameter squared over the loss; usually 0.001 to 1.
        momentum (float): the part of the velocity kept from step to step, without unit; 0, or 0.8 to 0.99.
        dampening (float): the part of each new gradient kept out of the velocity, without unit; usually 0.
        weight_decay (float): strength of the L2 penalty, in units of the loss over the parameter squared; 0, or
            1e-5 to 1e-3.
        nesterov (bool): look ahead along the velocity; needs a momentum and no dampening.
        options: ``maximize``, ``foreach``, ``differentiable``, ``fused`` and what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import SGD
        >>> weight = torch.tensor([1.0, -2.0], requires_grad=True)
        >>> optimizer = SGD([weight], lr=0.125, momentum=0.5)
        >>> for _ in range(2):
        ...     optimizer.zero_grad()
        ...     weight.square().sum().backward()
        ...     optimizer.step()
        >>> weight.detach()
        tensor([ 0.4375, -0.8750])
    """

    switches = SWITCHES - {"capturable"}
    ranges: ClassVar[Ranges] = usually(
        lr="0.001 to 1", momentum="0, or 0.8 to 0.99", weight_decay="0, or 1e-5 to 1e-3", dampening=Range(usual="0")
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-3,
        momentum: Number = 0,
        dampening: Number = 0,
        weight_decay: Number = 0,
        nesterov: bool = False,
        **options: Unpack[Options],
    ) -> None:
        defaults = dict(lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay, nesterov=nesterov)
        super().__init__(params, defaults, **options)

    def validate(self, h: Mapping[str, Any]) -> None:
        super().validate(h)
        if h["nesterov"] and (h["momentum"] <= 0 or h["dampening"] != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        g = penalized(g, p, h)
        if h.momentum:
            s.momentum_buffer = where(s.is_new, g, h.momentum * s.momentum_buffer + (1 - h.dampening) * g)
            g = g + h.momentum * s.momentum_buffer if h.nesterov else s.momentum_buffer
        return p - h.lr * g
