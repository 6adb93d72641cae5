from __future__ import annotations

from typing import Any, ClassVar

from steprule.algorithms.arguments import PENALTY, Number, Options, Params, Parts, Range, Ranges, Unpack, usually
from steprule.algorithms.weight_decay import penalized
from steprule.modifiers.schedule_free import ScheduleFree
from steprule.optimizer import Optimizer

__all__ = ["ScheduleFreeSGD"]


class ScheduleFreeSGD(Optimizer):
    r"""SGD that averages in place of momentum and of a schedule.

    .. math::
        y_t &= (1 - \beta) z_t + \beta x_t \\
        z_{t+1} &= z_t - \gamma (\nabla f(y_t) + \lambda y_t) \\
        x_{t+1} &= (1 - c_{t+1}) x_t + c_{t+1} z_{t+1}, \qquad
        c_t = \frac{t^r \gamma_t^p}{\sum_{i \le t} i^r \gamma_i^p}

    with :math:`\gamma_t` the largest rate so far: :class:`steprule.modifiers.ScheduleFree` around SGD. The
    parameter is :math:`y`; ``with optimizer.evaluating():`` brings :math:`x` into the model. `The Road Less
    Scheduled <https://arxiv.org/abs/2405.15682>`_, Defazio et al., 2024.

    Choose it in place of SGD with momentum and a schedule where the length of a training is not known. Its rate is
    ten times and more that of SGD with momentum; ``lr=warmup(...)`` warms it up.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate, in units of the parameter squared over the loss; usually 0.5
            to 50.
        momentum (float): :math:`\beta`, how much of the mean there is in the parameter, without unit; usually
            0.9 to 0.98.
        weight_decay (float): strength of the L2 penalty, in units of the loss over the parameter squared, at
            :math:`y`; 0, or 1e-6 to 1e-2.
        r (float): the power of the step in the weights of the mean; usually 0.
        weight_lr_power (float): the power of the rate in them; usually 2.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import ScheduleFreeSGD
        >>> weight = torch.zeros(1, requires_grad=True)
        >>> optimizer = ScheduleFreeSGD([weight], lr=1.0, momentum=0.5)
        >>> for _ in range(2):
        ...     weight.grad = torch.ones(1)
        ...     optimizer.step()
        >>> weight.item()
        -1.75
        >>> with optimizer.evaluating():
        ...     weight.item()
        -1.5
    """

    ranges: ClassVar[Ranges] = usually(
        lr="0.5 to 50",
        momentum=Range(above=0, below=1, usual="0.9 to 0.98"),
        weight_decay=PENALTY,
        r="0",
        weight_lr_power="2",
    )
    parts: ClassVar[Parts] = (ScheduleFree().within(lr_power=lambda s, h: h.weight_lr_power),)

    def __init__(
        self,
        params: Params,
        lr: Number = 1.0,
        momentum: Number = 0.9,
        weight_decay: Number = 0,
        r: Number = 0.0,
        weight_lr_power: Number = 2.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            dict(lr=lr, momentum=momentum, weight_decay=weight_decay, r=r, weight_lr_power=weight_lr_power),
            **options,
        )

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        return p - h.lr * penalized(g, p, h)
