from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from steprule.grouping.hyperparameters import Range
from steprule.rule import maximum, minimum, ndim, norm
from steprule.rule.modifier import Modifier

__all__ = ["AdaptiveClip"]


class AdaptiveClip(Modifier):
    r"""Clip the gradient of each row against the row itself.

    .. math::
        g_i \leftarrow g_i \min\left(1, \; \lambda \,
            \frac{\max(\lVert \theta_i \rVert, 10^{-3})}{\max(\lVert g_i \rVert, 10^{-6})}\right)

    for each row :math:`i` of a matrix, or what makes one channel of a convolution; a vector is one row.
    `High-Performance Large-Scale Image Recognition Without Normalization
    <https://arxiv.org/abs/2102.06171>`_, Brock et al., 2021 (AGC).

    Choose it in place of ``clip_norm`` for networks without normalization.

    Args:
        clip (float): :math:`\lambda`, the largest ratio of a gradient to its weights, without unit; usually 0.01 to
            0.16.

    Example:
        >>> import torch
        >>> from steprule import SGD
        >>> from steprule.modifiers import AdaptiveClip
        >>> weight = torch.tensor([[0.0, 1.0], [1.0, 0.0]], requires_grad=True)
        >>> optimizer = SGD([weight], lr=1.0, modifiers=[AdaptiveClip(0.25)])
        >>> weight.grad = torch.tensor([[0.125, 0.0], [0.0, 8.0]])
        >>> optimizer.step()
        >>> weight.detach()
        tensor([[-0.1250,  1.0000],
                [ 1.0000, -0.2500]])
    """

    defaults: ClassVar[Mapping[str, Any]] = {"clip": 0.01}
    ranges: ClassVar[Mapping[str, Any]] = {"clip": Range(above=0, usual="0.01 to 0.16")}

    def gradient(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        row: Any = {"scope": "channel"} if ndim(p) > 1 else {}
        return g * minimum(1.0, h.clip * maximum(norm(p, **row), 1e-3) / maximum(norm(g, **row), 1e-6))
