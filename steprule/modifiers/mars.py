from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from steprule.grouping.hyperparameters import Range
from steprule.rule import maximum, norm
from steprule.rule.modifier import Modifier

__all__ = ["Mars"]


class Mars(Modifier):
    r"""A gradient of less variance, by the change since the step before.

    .. math::
        c_t = g_t + \gamma \frac{\beta_1}{1 - \beta_1} (g_t - g_{t-1}), \qquad
        g_t \leftarrow c_t / \max(1, \lVert c_t \rVert)

    over each parameter, with :math:`g_0 = 0`. `MARS: Unleashing the Power of Variance Reduction for Training Large
    Models <https://arxiv.org/abs/2411.10438>`_, Yuan et al., 2024, in the approximate form, which takes the gradient
    of each batch once. Around AdamW it is MARS-AdamW, around a rule by the sign of a running mean MARS-Lion.

    Choose it for the pretraining of language models with large batches.

    Args:
        gamma (float): how much of the change counts, without unit; usually 0.01 to 0.05.
        beta1 (float): that of the rule's running mean, without unit; usually 0.95.

    Example:
        >>> import torch
        >>> from steprule import SGD
        >>> from steprule.modifiers import Mars
        >>> weight = torch.zeros(1, requires_grad=True)
        >>> optimizer = SGD([weight], lr=1.0, modifiers=[Mars(gamma=0.5, beta1=0.5)])
        >>> weight.grad = torch.full((1,), 0.5)
        >>> optimizer.step()
        >>> weight.detach()
        tensor([-0.7500])
    """

    defaults: ClassVar[Mapping[str, Any]] = {"gamma": 0.025, "beta1": 0.95}
    ranges: ClassVar[Mapping[str, Any]] = {
        "gamma": Range(least=0, usual="0.01 to 0.05"),
        "beta1": Range(least=0, below=1, usual="0.95"),
    }

    def gradient(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        corrected = g + h.gamma * h.beta1 / (1 - h.beta1) * (g - s.last)
        s.last = g
        return corrected / maximum(norm(corrected), 1.0)
