from __future__ import annotations

import math
from typing import Any, ClassVar

from steprule.algorithms.arguments import PENALTY, Number, Options, Params, Range, Ranges, Slots, Unpack, usually
from steprule.algorithms.weight_decay import penalized
from steprule.optimizer import Optimizer
from steprule.rule import array, maximum, minimum, norm, scalar, stored, sum, where

__all__ = ["DAdaptSGD"]


class DAdaptSGD(Optimizer):
    r"""SGD that finds its rate, by a lower bound of how far the solution is.

    .. math::
        \lambda_t &= \gamma d_t / \lVert g_1 \rVert, \qquad
        r_t = r_{t-1} + \lambda_t \langle g_t, s_{t-1} \rangle, \qquad
        s_t = s_{t-1} + \lambda_t g_t \\
        d_{t+1} &= \max\left(d_t, 2 r_t / \lVert s_t \rVert\right) \\
        \theta_t &= \mu \theta_{t-1} + (1 - \mu) (\theta_0 - s_t)

    The estimate :math:`d` is one number of the whole optimizer, and groups differ in their rates as factors of it.
    `Learning-Rate-Free Learning by D-Adaptation <https://arxiv.org/abs/2301.07733>`_, Defazio and Mishchenko, 2023.

    Choose it for convex problems and for images, where SGD is wanted and there is no time to tune the rate.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): a factor of the rate that is found: 1, or a schedule up to 1; usually 1.
        momentum (float): how much the former place counts in the new one, without unit; 0, or 0.9.
        weight_decay (float): strength of the L2 penalty, in units of the loss over the parameter squared; 0, or
            1e-6 to 1e-2.
        d0 (float): the first estimate of the distance, in the parameter's own unit: small; usually 1e-6 to
            1e-4.
        growth_rate (float): by which factor the estimate may grow in a step; usually inf, or 1.02.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import DAdaptSGD
        >>> weight = torch.tensor([1.0, -2.0], requires_grad=True)
        >>> optimizer = DAdaptSGD([weight])
        >>> for _ in range(300):
        ...     optimizer.zero_grad()
        ...     weight.square().sum().backward()
        ...     optimizer.step()
        >>> bool(optimizer.state[weight]["d"] > 0.1)  # from a millionth
        True
    """

    slots: ClassVar[Slots] = {
        "d": scalar("d0", scope="all"),
        "numerator_weighted": scalar(scope="all"),
        "g0_norm": scalar(scope="all"),
        "x0": array("parameter"),
    }
    ranges: ClassVar[Ranges] = usually(
        lr="1",
        momentum=Range(least=0, below=1, usual="0, or 0.9"),
        weight_decay=PENALTY,
        d0=Range(above=0, usual="1e-6 to 1e-4"),
        growth_rate=Range(least=1, usual="inf, or 1.02"),
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1.0,
        momentum: Number = 0,
        weight_decay: Number = 0,
        d0: Number = 1e-6,
        growth_rate: Number = math.inf,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, d0=d0, growth_rate=growth_rate), **options
        )

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        s.g0_norm = where(s.g0_norm > 0, s.g0_norm, norm(g, scope="all"))
        rate = where(s.g0_norm > 0, s.d * h.lr / s.g0_norm, 0.0)
        g = penalized(g, p, h)
        s.numerator_weighted = s.numerator_weighted + sum(rate * g * s.s, scope="all")
        s.s = s.s + rate * g
        size = norm(s.s, scope="all")
        found = where(size > 0, 2 * s.numerator_weighted / size, s.d)
        s.d = maximum(s.d, minimum(found, s.d * h.growth_rate))
        z = s.x0 - s.s
        # p as it is held: a multiple of p itself would count as decay to modifiers
        return p - (1 - h.momentum) * (stored(p) - z)
