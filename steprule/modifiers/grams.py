from __future__ import annotations

from typing import Any

from steprule.rule import abs, sign
from steprule.rule.modifier import Modifier

__all__ = ["Grams"]


class Grams(Modifier):
    r"""As far as the rule goes, in the direction of the gradient.

    .. math::
        u_t \leftarrow \operatorname{sign}(g_t) \odot \lvert u_t \rvert

    `Grams: Gradient Descent with Adaptive Momentum Scaling <https://arxiv.org/abs/2412.17107>`_, Cao et al., 2024.

    Choose it in place of :class:`Cautious` where nothing is to be left out of a step.

    Example:
        >>> import torch
        >>> from steprule import SGD
        >>> from steprule.modifiers import Grams
        >>> weight = torch.zeros(2, requires_grad=True)
        >>> optimizer = SGD([weight], lr=0.5, momentum=0.5, modifiers=[Grams()])
        >>> for gradient in (torch.tensor([1.0, 8.0]), torch.tensor([1.0, -1.0])):
        ...     weight.grad = gradient
        ...     optimizer.step()
        >>> weight.detach()
        tensor([-1.2500, -2.5000])
    """

    def step(self, p: Any, g: Any, u: Any, s: Any, h: Any) -> Any:
        return abs(u) * sign(g)
