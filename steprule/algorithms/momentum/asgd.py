from __future__ import annotations

from typing import Any, ClassVar

from steprule.algorithms.arguments import PENALTY, Number, Params, PlacedOptions, Range, Ranges, Slots, Unpack, usually
from steprule.algorithms.weight_decay import penalized
from steprule.optimizer import SWITCHES, Optimizer
from steprule.rule import array, isnan, maximum, power, scalar, where

__all__ = ["ASGD"]


class ASGD(Optimizer):
    r"""Stochastic gradient descent that also averages the parameter over the steps.

    .. math::
        \theta_t &= (1 - \lambda \eta_t)\, \theta_{t-1} - \eta_t g_t \\
        a_t &= a_{t-1} + \mu_t (\theta_t - a_{t-1}) \\
        \eta_{t+1} &= \gamma \, (1 + \lambda \gamma t)^{-\alpha}, \qquad
        \mu_{t+1} = 1 / \max(1,\ t - t_0)

    `Acceleration of Stochastic Approximation by Averaging <https://doi.org/10.1137/0330046>`_, Polyak and Juditsky,
    1992. The average :math:`a` is ``optimizer.state[p]["ax"]``; the parameter itself is not averaged.

    Choose it for convex problems under noise, where the average converges though the parameter keeps jittering.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate, in units of the parameter squared over the loss; usually 1e-3 to
            0.1.
        lambd (float): the parameter's decay, in units of the loss over the parameter squared; usually 1e-4.
        alpha (float): the power with which the rate falls, without unit; 0.5 to 1.
        t0 (float): the step after which averaging starts; the default of a million means in effect: not yet.
        weight_decay (float): strength of the L2 penalty, in units of the loss over the parameter squared; 0, or
            1e-6 to 1e-2.
        foreach, maximize, differentiable, capturable: see :class:`steprule.Optimizer`.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import ASGD
        >>> weight = torch.tensor([1.0, -2.0], requires_grad=True)
        >>> optimizer = ASGD([weight], lr=0.25, lambd=0, t0=0)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     weight.square().sum().backward()
        ...     optimizer.step()
        >>> weight.detach(), optimizer.state[weight]["ax"]
        (tensor([ 0.1250, -0.2500]), tensor([ 0.1875, -0.3750]))
    """

    switches = SWITCHES - {"fused"}
    slots: ClassVar[Slots] = {
        "eta": scalar("lr"),
        "mu": scalar(1.0),
        "ax": array(exact="it is an average of the weights, which moves less and less"),
    }
    ranges: ClassVar[Ranges] = usually(
        lr="1e-3 to 0.1", weight_decay=PENALTY, lambd=Range(usual="1e-4"), alpha=Range(usual="0.5 to 1"), t0=Range()
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-2,
        lambd: Number = 1e-4,
        alpha: Number = 0.75,
        t0: Number = 1e6,
        weight_decay: Number = 0,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        **options: Unpack[PlacedOptions],
    ) -> None:
        defaults = dict(lr=lr, lambd=lambd, alpha=alpha, t0=t0, weight_decay=weight_decay)
        named: dict[str, Any] = dict(
            foreach=foreach, maximize=maximize, differentiable=differentiable, capturable=capturable
        )
        super().__init__(params, defaults, **options, **named)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        g = penalized(g, p, h)
        p = p * (1 - h.lambd * s.eta) - s.eta * g
        average = p - (1 - s.mu) * (p - s.ax)  # p to the bit while mu is 1, but where ax is not finite
        s.ax = where((s.mu == 1) & isnan(average), p, average)
        s.eta = h.lr / power(1 + h.lambd * h.lr * s.step, h.alpha)
        s.mu = 1 / maximum(1, s.step - h.t0)
        return p
