from __future__ import annotations

from typing import Any

from steprule.rule import norm, where
from steprule.rule.modifier import Modifier

__all__ = ["Trust"]


class Trust(Modifier):
    r"""Scale the step on each layer to the size of the layer.

    .. math::
        u_t \leftarrow \gamma \, \frac{\lVert \theta_{t-1} \rVert}{\lVert u_t \rVert} \, u_t

    with the group's rate :math:`\gamma`, which is ``lr``; where either norm is 0, the step stays. A layer is a
    parameter tensor. `Large Batch Training of Convolutional Networks <https://arxiv.org/abs/1708.03888>`_, You et al.,
    2017. Around AdamW without decay it is :class:`steprule.Lamb`.

    Choose it for very large batches.

    Example:
        >>> import torch
        >>> from steprule import SGD
        >>> from steprule.modifiers import Trust
        >>> weight = torch.tensor([3.0, 4.0], requires_grad=True)
        >>> optimizer = SGD([weight], lr=0.1, modifiers=[Trust()])
        >>> weight.grad = torch.tensor([0.0, 1e-3])
        >>> optimizer.step()
        >>> weight.detach()
        tensor([3.0000, 3.5000])
    """

    def step(self, p: Any, g: Any, u: Any, s: Any, h: Any) -> Any:
        return u * where((norm(p) > 0) & (norm(u) > 0), h.lr * norm(p) / norm(u), 1.0)
