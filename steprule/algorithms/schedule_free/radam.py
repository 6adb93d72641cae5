from __future__ import annotations

from typing import Any, ClassVar

from steprule.algorithms.arguments import Number, Options, Params, Parts, Range, Ranges, Unpack, usually
from steprule.algorithms.moments import corrected_root, mean_square_of, observed, rectification
from steprule.modifiers.schedule_free import ScheduleFree
from steprule.optimizer import Optimizer
from steprule.rule import where

__all__ = ["ScheduleFreeRAdam"]


def enough_seen(s: Any, h: Any) -> Any:
    """Whether enough gradients were seen to divide by their size."""
    return observed(s, h.betas[1]) > 4


def rectified(s: Any, h: Any) -> Any:
    """The rate of a step."""
    return h.lr * where(enough_seen(s, h), rectification(s, h.betas[1]), 0.0 if h.silent_sgd_phase else 1.0)


class ScheduleFreeRAdam(Optimizer):
    r"""RAdam that averages in place of momentum and of a schedule: it needs no warm-up.

    .. math::
        y_t &= (1 - \beta_1) z_t + \beta_1 x_t, \qquad g_t = \nabla f(y_t) \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2, \qquad \gamma_t = \gamma \, r_t \\
        z_{t+1} &= z_t - \gamma_t \left(\frac{g_t}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon} + \lambda y_t\right) \\
        x_{t+1} &= (1 - c_{t+1}) x_t + c_{t+1} z_{t+1}, \qquad
        c_t = \frac{t^r \gamma_t^p}{\sum_{i \le t} i^r \gamma_i^p}

    with the rectification :math:`r_t` of :class:`RAdam`: :class:`steprule.modifiers.ScheduleFree` around RAdam
    without momentum. In the first steps, where :math:`\rho_t \le 4`, the parameter stays where it is; without
    ``silent_sgd_phase`` it goes along the gradient. ``with optimizer.evaluating():`` brings :math:`x` into the
    model. `The Road Less Scheduled <https://arxiv.org/abs/2405.15682>`_, Defazio et al., 2024.

    Choose it where neither the length of a training nor that of a warm-up is to be given.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate: the size of a step in the parameter's own unit; usually 1e-4
            to 2e-2.
        betas (tuple of two floats): how much of the mean there is in the parameter, and how much of the running
            mean of the gradient's square is kept from step to step, without unit; usually 0.9 to 0.98 and 0.95
            to 0.999.
        eps (float): added to the denominator, in the gradient's unit; usually 1e-10 to 1e-6.
        weight_decay (float): the part of the parameter lost at each step, over the rate: in units of one over
            the rate; usually 0 to 0.3.
        r (float): the power of the step in the weights of the mean; usually 0.
        weight_lr_power (float): the power of the rate in them; usually 2.
        silent_sgd_phase (bool): keep still until the gradient's size is known.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import ScheduleFreeRAdam
        >>> weight = torch.tensor([1.0, -2.0], requires_grad=True)
        >>> optimizer = ScheduleFreeRAdam([weight], lr=1.0)
        >>> for _ in range(300):
        ...     optimizer.zero_grad()
        ...     weight.square().sum().backward()
        ...     optimizer.step()
        >>> with optimizer.evaluating():
        ...     bool(weight.abs().max() < 0.1)
        True
    """

    ranges: ClassVar[Ranges] = usually(
        lr="1e-4 to 2e-2",
        betas=(Range(above=0, below=1, called="beta parameter at index 0", usual="0.9 to 0.98"), "0.95 to 0.999"),
        eps="1e-10 to 1e-6",
        weight_decay="0 to 0.3",
        r="0",
        weight_lr_power="2",
    )
    parts: ClassVar[Parts] = (
        ScheduleFree().within(momentum=lambda s, h: h.betas[0], lr_power=lambda s, h: h.weight_lr_power, lr=rectified),
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 2.5e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 0,
        r: Number = 0.0,
        weight_lr_power: Number = 2.0,
        silent_sgd_phase: bool = True,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            dict(
                lr=lr,
                betas=betas,
                eps=eps,
                weight_decay=weight_decay,
                r=r,
                weight_lr_power=weight_lr_power,
                silent_sgd_phase=silent_sgd_phase,
            ),
            **options,
        )

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        beta2 = h.betas[1]
        s.exp_avg_sq = mean_square_of(s.exp_avg_sq, g, beta2)
        u = where(enough_seen(s, h), g / corrected_root(s.exp_avg_sq, beta2, s, h), g)
        rate = rectified(s, h)
        return p * (1 - rate * h.weight_decay) - rate * u
