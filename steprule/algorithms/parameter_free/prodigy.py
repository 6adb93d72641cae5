from __future__ import annotations

import math
from typing import Any, ClassVar

from steprule.algorithms.arguments import Number, Options, Params, Range, Ranges, Slots, Unpack, usually
from steprule.algorithms.weight_decay import penalized
from steprule.optimizer import Optimizer
from steprule.rule import abs, array, maximum, minimum, scalar, sqrt, sum, where

__all__ = ["Prodigy"]


def bias_correction(s: Any, h: Any) -> Any:
    """Adam's correction of both means, as a factor of the rate."""
    beta1, beta2 = h.betas
    return sqrt(1 - beta2**s.step) / (1 - beta1**s.step)


class Prodigy(Optimizer):
    r"""Adam that finds its rate: it estimates how far the solution is, and grows the estimate as gradients show it.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) d_t g_t, \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) d_t^2 g_t^2 \\
        r_t &= \beta_3 r_{t-1} + \gamma \tfrac{d_t^2}{d_0} \langle g_t, \theta_0 - \theta_{t-1} \rangle, \qquad
        s_t = \beta_3 s_{t-1} + \gamma \tfrac{d_t^2}{d_0} g_t \\
        d_{t+1} &= \max\left(d_t, c \, r_t / \lVert s_t \rVert_1\right) \\
        \theta_t &= (1 - \gamma d_t \lambda)\, \theta_{t-1} - \gamma d_t m_t / (\sqrt{v_t} + d_{t+1} \epsilon)

    with :math:`\beta_3 = \sqrt{\beta_2}` unless it is given, and :math:`c` the argument ``d_coef``. The estimate
    :math:`d` is one number of the whole optimizer, and groups differ in their rates as factors of it. `Prodigy: An
    Expeditiously Adaptive Parameter-Free Learner <https://arxiv.org/abs/2306.06101>`_, Mishchenko and Defazio,
    2024.

    Choose it where there is no time to tune the rate, above all to fine-tune diffusion and language models: leave
    ``lr`` at 1, with a cosine schedule; ``d_coef`` of 0.5 or 2 is the knob.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): a factor of the rate that is found: 1, or a schedule up to 1; usually 1.
        betas (tuple of two floats): how much of the running means of the gradient and of its square is kept
            from step to step, without unit; usually 0.9 and 0.99 to 0.999.
        beta3 (float, optional): how much of the sums of the estimate is kept from step to step; None means the
            root of the second beta; usually None.
        eps (float): added to the denominator, in the gradient's unit; usually 1e-10 to 1e-6.
        weight_decay (float): the part of the parameter lost at each step, over the rate: in units of one over
            the rate times the estimate (or that of an L2 penalty); usually 0 to 0.1.
        decoupled_weight_decay (bool): shrink the parameter itself; False adds a penalty.
        use_bias_correction (bool): correct the means as Adam does.
        safeguard_warmup (bool): leave the factor ``lr`` out of the estimate, which helps with a long warm-up.
        d0 (float): the first estimate of the distance, in the parameter's own unit: small; usually 1e-6 to
            1e-4.
        d_coef (float): a factor of the estimate; usually 0.5 to 2.
        growth_rate (float): by which factor the estimate may grow in a step; usually inf, or 1.02.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import Prodigy
        >>> weight = torch.tensor([1.0, -200.0], requires_grad=True)
        >>> optimizer = Prodigy([weight])
        >>> for _ in range(300):
        ...     optimizer.zero_grad()
        ...     weight.square().sum().backward()
        ...     optimizer.step()
        >>> bool(optimizer.state[weight]["d"] > 10)  # the distance is 200
        True
    """

    slots: ClassVar[Slots] = {
        "d": scalar("d0", scope="all"),
        "d_max": scalar("d0", scope="all"),
        "d_numerator": scalar(scope="all"),
        "p0": array("parameter"),
    }
    ranges: ClassVar[Ranges] = usually(
        lr="1",
        betas=("0.9", "0.99 to 0.999"),
        beta3=Range(least=0, below=1, optional=True, usual="None"),
        eps="1e-10 to 1e-6",
        weight_decay="0 to 0.1",
        d0=Range(above=0, usual="1e-6 to 1e-4"),
        d_coef=Range(above=0, usual="0.5 to 2"),
        growth_rate=Range(least=1, usual="inf, or 1.02"),
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1.0,
        betas: tuple[Number, Number] = (0.9, 0.999),
        beta3: Number | None = None,
        eps: Number = 1e-8,
        weight_decay: Number = 0,
        decoupled_weight_decay: bool = True,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: Number = 1e-6,
        d_coef: Number = 1.0,
        growth_rate: Number = math.inf,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            dict(
                lr=lr,
                betas=betas,
                beta3=beta3,
                eps=eps,
                weight_decay=weight_decay,
                decoupled_weight_decay=decoupled_weight_decay,
                use_bias_correction=use_bias_correction,
                safeguard_warmup=safeguard_warmup,
                d0=d0,
                d_coef=d_coef,
                growth_rate=growth_rate,
            ),
            **options,
        )

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        beta1, beta2 = h.betas
        beta3 = sqrt(beta2) if h.beta3 is None else h.beta3
        if not h.decoupled_weight_decay:
            g = penalized(g, p, h)
        d, rate = s.d, s.d * h.lr * (bias_correction(s, h) if h.use_bias_correction else 1.0)
        relative = d / h.d0
        s.exp_avg = beta1 * s.exp_avg + d * (1 - beta1) * g
        s.exp_avg_sq = beta2 * s.exp_avg_sq + d * d * (1 - beta2) * g * g
        s.s = beta3 * s.s + relative * (d if h.safeguard_warmup else rate) * g
        total = sum(abs(s.s), scope="all")
        gained = beta3 * s.d_numerator + sum(relative * rate * g * (s.p0 - p), scope="all")
        s.d_numerator = where(total > 0, gained, s.d_numerator)
        found = where(total > 0, h.d_coef * gained / total, d)
        s.d_max = maximum(s.d_max, found)
        s.d = minimum(s.d_max, where(d == h.d0, maximum(d, found), d) * h.growth_rate)
        kept = 1 - rate * h.weight_decay if h.decoupled_weight_decay else 1.0
        return kept * p - rate * s.exp_avg / (sqrt(s.exp_avg_sq) + s.d * h.eps)
