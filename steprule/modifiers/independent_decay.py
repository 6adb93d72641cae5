from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from steprule.grouping.hyperparameters import Range
from steprule.rule.modifier import Modifier

__all__ = ["IndependentDecay"]


class IndependentDecay(Modifier):
    r"""Decay that is not multiplied by the rate, beside that of the rule.

    .. math::
        \theta_t = \theta_{t-1} - u_t - \lambda\,\theta_{t-1}

    with the rule's step :math:`u`. `Small-scale proxies for large-scale Transformer training instabilities
    <https://arxiv.org/abs/2309.14322>`_, Wortsman et al., 2023; as AdamW was first proposed in `Decoupled Weight Decay
    Regularization <https://arxiv.org/abs/1711.05101>`_, Loshchilov and Hutter, 2019.

    Choose it, with ``weight_decay=0``, to tune rate and decay apart from each other.

    Args:
        rate (float, Tensor or Schedule): :math:`\lambda`, the part of the parameter lost at each step, without unit;
            usually 1e-5 to 1e-3.

    Example:
        >>> import torch
        >>> from steprule import AdamW
        >>> from steprule.modifiers import IndependentDecay
        >>> weight = torch.tensor([100.0], requires_grad=True)
        >>> optimizer = AdamW([weight], lr=0.5, weight_decay=0, modifiers=[IndependentDecay(0.01)])
        >>> weight.sum().backward()
        >>> optimizer.step()
        >>> weight.detach()
        tensor([98.5000])
    """

    defaults: ClassVar[Mapping[str, Any]] = {"rate": 1e-4}
    ranges: ClassVar[Mapping[str, Any]] = {"rate": Range(least=0, usual="1e-5 to 1e-3")}

    def decay(self, p: Any, lost: Any, u: Any, s: Any, h: Any) -> Any:
        return lost + h.rate * p
