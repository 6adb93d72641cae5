from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from steprule.grouping.hyperparameters import Range
from steprule.rule import array, lerp
from steprule.rule.modifier import Modifier
from steprule.rule.slot import Slot

__all__ = ["EMA"]


class EMA(Modifier):
    r"""A running mean of the weights, to evaluate with.

    .. math::
        \bar\theta_t = \beta \bar\theta_{t-1} + (1 - \beta) \theta_t

    beginning with the weights before the first step. `Acceleration of Stochastic Approximation by Averaging
    <https://doi.org/10.1137/0330046>`_, Polyak and Juditsky, 1992. It does not change what is trained:
    ``with optimizer.evaluating():`` brings the mean into the model, and the weights back at the end. Buffers, such as
    the statistics of batch normalization, stay as they are.

    Choose it for generative models, and for any that is evaluated at a rate that has not gone down.

    Args:
        decay (float, Tensor or Schedule): :math:`\beta`, how much of the mean is kept from step to step, without unit;
            usually 0.99 to 0.9999. For a mean that follows faster at first give a schedule.

    Example:
        >>> import torch
        >>> from steprule import SGD
        >>> from steprule.modifiers import EMA
        >>> weight = torch.zeros(1, requires_grad=True)
        >>> optimizer = SGD([weight], lr=1.0, modifiers=[EMA(decay=0.75)])
        >>> weight.grad = torch.ones(1)
        >>> optimizer.step()
        >>> with optimizer.evaluating():
        ...     print(weight.item())
        -0.25
        >>> weight.item()
        -1.0
    """

    defaults: ClassVar[Mapping[str, Any]] = {"decay": 0.999}
    ranges: ClassVar[Mapping[str, Any]] = {"decay": Range(least=0, most=1, usual="0.99 to 0.9999")}
    slots: ClassVar[Mapping[str, Slot]] = {"mean": array("parameter")}

    def weights(self, p: Any, new: Any, s: Any, h: Any) -> Any:
        s.mean = lerp(s.mean, new, 1 - h.decay)
        return new

    def evaluation(self, p: Any, s: Any, h: Any) -> Any:
        return s.mean
