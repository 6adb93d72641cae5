from __future__ import annotations

import math
from typing import Any, ClassVar

from steprule.algorithms.arguments import PENALTY, Number, Options, Params, Range, Ranges, Slots, Unpack, usually
from steprule.algorithms.moments import mean_square_of
from steprule.algorithms.weight_decay import penalized
from steprule.optimizer import Optimizer
from steprule.rule import sqrt

from .estimate import ESTIMATE, estimated
from .prodigy import bias_correction

__all__ = ["DAdaptAdam"]


class DAdaptAdam(Optimizer):
    r"""Adam that finds its rate, by a lower bound of how far the solution is.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) \gamma d_t g_t, \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        r_t &= \sqrt{\beta_2}\, r_{t-1} + (1 - \sqrt{\beta_2}) \gamma d_t
            \langle g_t, s_{t-1} / (\sqrt{v_{t-1}} + \epsilon) \rangle \\
        s_t &= \sqrt{\beta_2}\, s_{t-1} + (1 - \sqrt{\beta_2}) \gamma d_t g_t, \qquad
        d_{t+1} = \max\left(d_t, \frac{r_t}{(1 - \sqrt{\beta_2}) \lVert s_t \rVert_1}\right) \\
        \theta_t &= \theta_{t-1} - m_t / (\sqrt{v_t} + \epsilon)

    The estimate :math:`d` is one number of the whole optimizer, and groups differ in their rates as factors of it.
    `Learning-Rate-Free Learning by D-Adaptation <https://arxiv.org/abs/2301.07733>`_, Defazio and Mishchenko, 2023.

    Choose it where there is no time to tune the rate; Prodigy finds it faster.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): a factor of the rate that is found: 1, or a schedule up to 1; usually 1.
        betas (tuple of two floats): how much of the running means of the gradient and of its square is kept
            from step to step, without unit; usually 0.9 and 0.99 to 0.999.
        eps (float): added to the denominator, in the gradient's unit; usually 1e-10 to 1e-6.
        weight_decay (float): strength of the L2 penalty, in units of the loss over the parameter squared
            (decoupled: the part lost at each step, over the rate that is found); 0, or 1e-6 to 1e-2.
        decoupled_weight_decay (bool): shrink the parameter itself.
        use_bias_correction (bool): correct the means as Adam does.
        d0 (float): the first estimate of the distance, in the parameter's own unit: small; usually 1e-6 to
            1e-4.
        growth_rate (float): by which factor the estimate may grow in a step; usually inf, or 1.02.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import DAdaptAdam
        >>> weight = torch.tensor([1.0, -200.0], requires_grad=True)
        >>> optimizer = DAdaptAdam([weight])
        >>> for _ in range(300):
        ...     optimizer.zero_grad()
        ...     weight.square().sum().backward()
        ...     optimizer.step()
        >>> bool(optimizer.state[weight]["d"] > 1)  # the distance is 200
        True
    """

    slots: ClassVar[Slots] = ESTIMATE
    ranges: ClassVar[Ranges] = usually(
        lr="1",
        betas=("0.9", "0.99 to 0.999"),
        eps="1e-10 to 1e-6",
        weight_decay=PENALTY,
        d0=Range(above=0, usual="1e-6 to 1e-4"),
        growth_rate=Range(least=1, usual="inf, or 1.02"),
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1.0,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 0,
        decoupled_weight_decay: bool = False,
        use_bias_correction: bool = False,
        d0: Number = 1e-6,
        growth_rate: Number = math.inf,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            dict(
                lr=lr,
                betas=betas,
                eps=eps,
                weight_decay=weight_decay,
                decoupled_weight_decay=decoupled_weight_decay,
                use_bias_correction=use_bias_correction,
                d0=d0,
                growth_rate=growth_rate,
            ),
            **options,
        )

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        (beta1, beta2), kept = h.betas, sqrt(h.betas[1])
        if not h.decoupled_weight_decay:
            g = penalized(g, p, h)
        rate = s.d * h.lr * (bias_correction(s, h) if h.use_bias_correction else 1.0)
        gained = rate * g * s.s / (sqrt(s.exp_avg_sq) + h.eps)
        s.exp_avg = beta1 * s.exp_avg + (1 - beta1) * rate * g
        s.exp_avg_sq = mean_square_of(s.exp_avg_sq, g, beta2)
        s.s = kept * s.s + (1 - kept) * rate * g
        estimated(s, kept, gained, s.s, h.growth_rate)
        shrunk = p * (1 - rate * h.weight_decay) if h.decoupled_weight_decay else p
        return shrunk - s.exp_avg / (sqrt(s.exp_avg_sq) + h.eps)
