from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from steprule.grouping.hyperparameters import Range
from steprule.rule import mean, sqrt, square, where
from steprule.rule.modifier import Modifier

__all__ = ["ClipStep"]


class ClipStep(Modifier):
    r"""Scale a step down whose root mean square exceeds the rate.

    .. math::
        u_t \leftarrow u_t / \max(1, \operatorname{RMS}(u_t) / (\gamma d))

    over each parameter, with the group's rate :math:`\gamma`, which is ``lr``: StableAdamW's clipping. `Stable and
    low-precision training for large-scale vision-language models <https://arxiv.org/abs/2304.13013>`_, Wortsman et
    al., 2023; first in `Adafactor <https://arxiv.org/abs/1804.04235>`_, Shazeer and Stern, 2018.

    Choose it against the spikes of a loss, in place of clipping the gradient.

    Args:
        rms (float): :math:`d`, the largest root mean square of a step over the rate, without unit; usually 1.

    Example:
        >>> import torch
        >>> from steprule import SGD
        >>> from steprule.modifiers import ClipStep
        >>> weight = torch.zeros(2, requires_grad=True)
        >>> optimizer = SGD([weight], lr=0.5, modifiers=[ClipStep()])
        >>> weight.grad = torch.tensor([4.0, -4.0])
        >>> optimizer.step()
        >>> weight.detach()
        tensor([-0.5000,  0.5000])
    """

    defaults: ClassVar[Mapping[str, Any]] = {"rms": 1.0}
    ranges: ClassVar[Mapping[str, Any]] = {"rms": Range(above=0, usual="1")}

    def step(self, p: Any, g: Any, u: Any, s: Any, h: Any) -> Any:
        size, most = sqrt(mean(square(u))), h.lr * h.rms
        return u * where(size > most, most / size, 1.0)
