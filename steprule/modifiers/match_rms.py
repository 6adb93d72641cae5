from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from steprule.grouping.hyperparameters import Range
from steprule.rule import mean, sqrt, square, where
from steprule.rule.modifier import Modifier

__all__ = ["MatchRMS"]


class MatchRMS(Modifier):
    r"""Scale every step to one root mean square over the rate.

    .. math::
        u_t \leftarrow \gamma r \, u_t / \operatorname{RMS}(u_t)

    over each parameter, with the group's rate :math:`\gamma`, which is ``lr``. `Muon is Scalable for LLM Training
    <https://arxiv.org/abs/2502.16982>`_, Liu et al., 2025, who bring Muon's steps to the 0.2 that is usual of AdamW's.

    Choose it to use the rates and the decay that were tuned for AdamW with another rule.

    Args:
        rms (float): :math:`r`, the root mean square of a step over the rate, without unit; usually 0.2 to 0.4.

    Example:
        >>> import torch
        >>> from steprule import SGD
        >>> from steprule.modifiers import MatchRMS
        >>> weight = torch.zeros(2, requires_grad=True)
        >>> optimizer = SGD([weight], lr=0.5, modifiers=[MatchRMS(0.5)])
        >>> weight.grad = torch.tensor([1e-3, -1e-3])
        >>> optimizer.step()
        >>> weight.detach()
        tensor([-0.2500,  0.2500])
    """

    defaults: ClassVar[Mapping[str, Any]] = {"rms": 0.2}
    ranges: ClassVar[Mapping[str, Any]] = {"rms": Range(above=0, usual="0.2 to 0.4")}

    def step(self, p: Any, g: Any, u: Any, s: Any, h: Any) -> Any:
        size = sqrt(mean(square(u)))
        return u * where(size > 0, h.lr * h.rms / size, 0.0)
