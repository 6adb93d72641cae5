from __future__ import annotations

from typing import Any

from steprule.rule import where
from steprule.rule.modifier import Modifier

__all__ = ["CautiousDecay"]


class CautiousDecay(Modifier):
    r"""Decay only where the step goes towards zero too.

    .. math::
        \theta_t = \theta_{t-1} - u_t - [u_t \odot \theta_{t-1} \ge 0] \odot \gamma\lambda\,\theta_{t-1}

    `Cautious Weight Decay <https://arxiv.org/abs/2510.12402>`_, Chen et al., 2025. It changes decoupled decay alone: a
    penalty in the gradient is part of the step :math:`u`.

    Choose it with :class:`steprule.AdamW` and other rules of decoupled decay, without tuning that anew.

    Example:
        >>> import torch
        >>> from steprule import AdamW
        >>> from steprule.modifiers import CautiousDecay
        >>> weight = torch.tensor([100.0, -100.0], requires_grad=True)
        >>> optimizer = AdamW([weight], lr=0.5, weight_decay=0.02, modifiers=[CautiousDecay()])
        >>> weight.sum().backward()
        >>> optimizer.step()
        >>> weight.detach()
        tensor([  98.5000, -100.5000])
    """

    def decay(self, p: Any, lost: Any, u: Any, s: Any, h: Any) -> Any:
        return where(u * p >= 0, lost, 0.0)
