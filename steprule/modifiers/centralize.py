from __future__ import annotations

from typing import Any

from steprule.rule import mean, ndim
from steprule.rule.modifier import Modifier

__all__ = ["Centralize"]


class Centralize(Modifier):
    r"""Take from each row of the gradient its mean; vectors are left as they are, and a row of a convolution is what
    makes one channel.

    .. math::
        g_t \leftarrow g_t - \operatorname{mean}_{\text{row}}(g_t)

    `Gradient Centralization: A New Optimization Technique for Deep Neural Networks
    <https://arxiv.org/abs/2004.01461>`_, Yong et al., 2020.

    Choose it for convolutions and dense layers that are followed by a normalization.

    Example:
        >>> import torch
        >>> from steprule import SGD
        >>> from steprule.modifiers import Centralize
        >>> weight = torch.zeros(1, 2, requires_grad=True)
        >>> optimizer = SGD([weight], lr=1.0, modifiers=[Centralize()])
        >>> weight.grad = torch.tensor([[3.0, 1.0]])
        >>> optimizer.step()
        >>> weight.detach()
        tensor([[-1.,  1.]])
    """

    def gradient(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        return g - mean(g, scope="channel") if ndim(p) > 1 else g
