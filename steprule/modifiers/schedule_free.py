from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from steprule.grouping.hyperparameters import Range
from steprule.rule import array, lerp, maximum, scalar, stored, where
from steprule.rule.modifier import Modifier, Wrapped
from steprule.rule.slot import Slot

__all__ = ["ScheduleFree"]


class ScheduleFree(Modifier):
    r"""Momentum by averaging, in place of momentum and a schedule.

    .. math::
        y_t &= (1 - \beta) z_t + \beta x_t \\
        z_{t+1} &= z_t - u(y_t, g(y_t)) \\
        x_{t+1} &= (1 - c_{t+1}) x_t + c_{t+1} z_{t+1}, \qquad
        c_t = \frac{t^r \gamma_t^p}{\sum_{i \le t} i^r \gamma_i^p}

    where :math:`u` is all that the rule takes from :math:`y`, decay included, and :math:`\gamma_t` the largest rate so
    far. The parameter is :math:`y`, where gradients are taken; :math:`x` is evaluated, and follows from :math:`y` and
    :math:`z`, so that one more slot is kept. `The Road Less Scheduled <https://arxiv.org/abs/2405.15682>`_, Defazio et
    al., 2024. It takes the place of the rule's own momentum: give SGD none, and Adam ``betas=(0, 0.999)``.

    Choose it where the length of a training is not known. Take a constant rate, after a warm-up if one is needed;
    ``with optimizer.evaluating():`` for validation is a must, and a model with batch normalization needs some batches
    in training mode then, for its statistics.

    Args:
        momentum (float): :math:`\beta`, without unit; usually 0.9 to 0.98.
        r (float): the power of the step in the weights of the mean; usually 0.
        lr_power (float): :math:`p`, the power of the rate in them; usually 2.

    Example:
        >>> import torch
        >>> from steprule import SGD
        >>> from steprule.modifiers import ScheduleFree
        >>> weight = torch.zeros(1, requires_grad=True)
        >>> optimizer = SGD([weight], lr=1.0, modifiers=[ScheduleFree(momentum=0.5)])
        >>> for _ in range(2):
        ...     weight.grad = torch.ones(1)
        ...     optimizer.step()
        >>> weight.item()
        -1.75
        >>> with optimizer.evaluating():
        ...     weight.item()
        -1.5
    """

    defaults: ClassVar[Mapping[str, Any]] = {"momentum": 0.9, "r": 0.0, "lr_power": 2.0}
    ranges: ClassVar[Mapping[str, Any]] = {
        "momentum": Range(above=0, below=1, usual="0.9 to 0.98"),
        "r": Range(least=0, usual="0"),
        "lr_power": Range(least=0, usual="2"),
    }
    slots: ClassVar[Mapping[str, Slot]] = {"z": array("parameter"), "lr_max": scalar(), "weight_sum": scalar()}
    excludes: ClassVar[frozenset[str]] = frozenset({"ScheduleFree", "Lookahead"})

    def around(self, rule: Wrapped, p: Any, g: Any, s: Any, h: Any) -> Any:
        u = rule.step(p, g)
        # the sum in units of the largest rate: exact as long as that stays
        largest = maximum(s.lr_max, stored(h.lr))
        shrunk = where(largest > 0, (s.lr_max / largest) ** h.lr_power, 0.0)
        weight = where(largest > 0, s.step**h.r, 0.0)
        s.weight_sum = s.weight_sum * shrunk + weight
        c = where(weight > 0, weight / s.weight_sum, 0.0)
        s.lr_max = largest
        y = lerp(p, s.z, c) - (1 - h.momentum * (1 - c)) * u
        s.z = s.z - u
        return y

    def evaluation(self, p: Any, s: Any, h: Any) -> Any:
        return lerp(p, s.z, 1 - 1 / h.momentum)
