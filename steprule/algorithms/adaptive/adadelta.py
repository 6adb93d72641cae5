from __future__ import annotations

from typing import Any, ClassVar

from steprule.algorithms.arguments import PENALTY, KeywordOptions, Number, Params, Range, Ranges, Slots, Unpack, usually
from steprule.algorithms.moments import mean_square_of
from steprule.algorithms.weight_decay import penalized
from steprule.optimizer import SWITCHES, Optimizer
from steprule.rule import scalar, sqrt

__all__ = ["Adadelta"]


class Adadelta(Optimizer):
    r"""Adadelta: steps as large as recent steps were, in proportion to the gradient over its recent size.

    .. math::
        v_t &= \rho v_{t-1} + (1 - \rho) g_t^2 \\
        \Delta_t &= \frac{\sqrt{u_{t-1} + \epsilon}}{\sqrt{v_t + \epsilon}} \, g_t, \qquad
        u_t = \rho u_{t-1} + (1 - \rho) \Delta_t^2 \\
        \theta_t &= \theta_{t-1} - \gamma \Delta_t

    `ADADELTA: An Adaptive Learning Rate Method <https://arxiv.org/abs/1212.5701>`_, Zeiler, 2012.

    Choose it when no rate is to be tuned at all: steps have the parameter's unit by themselves. It starts slowly.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): a factor for every step, without unit; usually 1.
        rho (float): how much of the running means is kept from step to step, without unit; usually 0.9 to 0.99.
        eps (float): added to both means, in the parameter's and in the gradient's unit squared: it sets the size of
            the first steps; usually 1e-8 to 1e-4.
        weight_decay (float): strength of the L2 penalty, in units of the loss over the parameter squared; 0, or
            1e-6 to 1e-2.
        foreach (bool, optional): accepted for torch's sake; every step is fused.
        options: ``capturable``, ``maximize``, ``differentiable`` and what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import Adadelta
        >>> weight = torch.tensor([1.0, -2.0], requires_grad=True)
        >>> optimizer = Adadelta([weight], rho=0.75, eps=1e-4)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> weight.detach()
        tensor([ 0.9800, -1.9800])
    """

    switches = SWITCHES - {"fused"}
    slots: ClassVar[Slots] = {"step": scalar()}
    ranges: ClassVar[Ranges] = usually(
        lr="1", rho=Range(least=0, most=1, usual="0.9 to 0.99"), eps="1e-8 to 1e-4", weight_decay=PENALTY
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1.0,
        rho: Number = 0.9,
        eps: Number = 1e-6,
        weight_decay: Number = 0,
        foreach: bool | None = None,
        **options: Unpack[KeywordOptions],
    ) -> None:
        super().__init__(params, dict(lr=lr, rho=rho, eps=eps, weight_decay=weight_decay), foreach=foreach, **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        g = penalized(g, p, h)
        s.square_avg = mean_square_of(s.square_avg, g, h.rho)
        delta = sqrt(s.acc_delta + h.eps) / sqrt(s.square_avg + h.eps) * g
        s.acc_delta = mean_square_of(s.acc_delta, delta, h.rho)
        return p - h.lr * delta
