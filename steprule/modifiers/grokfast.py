from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from steprule.grouping.hyperparameters import Range
from steprule.rule import lerp, where
from steprule.rule.modifier import Modifier

__all__ = ["Grokfast"]


class Grokfast(Modifier):
    r"""Add to the gradient what of it changes slowly.

    .. math::
        \mu_t = \alpha \mu_{t-1} + (1 - \alpha) g_t, \qquad g_t \leftarrow g_t + \lambda \mu_t

    beginning with :math:`\mu_1 = g_1`. `Grokfast: Accelerated Grokking by Amplifying Slow Gradients
    <https://arxiv.org/abs/2405.20233>`_, Lee et al., 2024.

    Choose it where generalization comes long after the training data are fitted.

    Args:
        alpha (float): how much of the running mean is kept from step to step, without unit; usually 0.8 to 0.99.
        amplification (float): :math:`\lambda`, without unit; usually 0.1 to 5.

    Example:
        >>> import torch
        >>> from steprule import SGD
        >>> from steprule.modifiers import Grokfast
        >>> weight = torch.zeros(1, requires_grad=True)
        >>> optimizer = SGD([weight], lr=1.0, modifiers=[Grokfast(amplification=2.0)])
        >>> weight.grad = torch.ones(1)
        >>> optimizer.step()
        >>> weight.detach()
        tensor([-3.])
    """

    defaults: ClassVar[Mapping[str, Any]] = {"alpha": 0.98, "amplification": 2.0}
    ranges: ClassVar[Mapping[str, Any]] = {
        "alpha": Range(least=0, below=1, usual="0.8 to 0.99"),
        "amplification": Range(least=0, usual="0.1 to 5"),
    }

    def gradient(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        s.mean = where(s.is_new, g, lerp(s.mean, g, 1 - h.alpha))
        return g + h.amplification * s.mean
