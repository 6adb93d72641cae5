from __future__ import annotations

from typing import Any

from steprule.rule import norm, sum, where
from steprule.rule.modifier import Modifier

__all__ = ["OrthoGrad"]


class OrthoGrad(Modifier):
    r"""The part of the gradient that is orthogonal to the weights, as long as the gradient was.

    .. math::
        g_\perp = g_t - \frac{\theta_{t-1} \cdot g_t}{\theta_{t-1} \cdot \theta_{t-1}} \, \theta_{t-1}, \qquad
        g_t \leftarrow \frac{\lVert g_t \rVert}{\lVert g_\perp \rVert} \, g_\perp

    over each parameter. `Grokking at the Edge of Numerical Stability <https://arxiv.org/abs/2501.04697>`_, Prieto et
    al., 2025.

    Choose it where a classifier fits its training data and goes on to scale its logits, in place of decay.

    Example:
        >>> import torch
        >>> from steprule import SGD
        >>> from steprule.modifiers import OrthoGrad
        >>> weight = torch.tensor([1.0, 0.0], requires_grad=True)
        >>> optimizer = SGD([weight], lr=1.0, modifiers=[OrthoGrad()])
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> optimizer.step()
        >>> weight.detach()
        tensor([ 1., -5.])
    """

    def gradient(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        size = sum(p * p)
        across = g - where(size > 0, sum(p * g) / size, 0.0) * p
        return across * where(norm(across) > 0, norm(g) / norm(across), 0.0)
