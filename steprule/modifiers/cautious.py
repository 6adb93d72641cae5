from __future__ import annotations

from typing import Any

from steprule.rule import maximum, mean, where
from steprule.rule.modifier import Modifier
from steprule.rule.signs import same_sign

__all__ = ["Cautious"]


class Cautious(Modifier):
    r"""Step only where the step agrees with the gradient.

    .. math::
        u_t \leftarrow u_t \odot \phi_t / \max(\operatorname{mean}(\phi_t), 10^{-3}), \qquad
        \phi_t = [u_t \odot g_t > 0]

    with the rule's step :math:`u` and the gradient :math:`g` that the rule was given; the mean is over the parameter.
    `Cautious Optimizers: Improving Training with One Line of Code <https://arxiv.org/abs/2411.16085>`_, Liang et al.,
    2024.

    Choose it with a rule that has momentum, whose step may go against the gradient of the moment.

    Example:
        >>> import torch
        >>> from steprule import SGD
        >>> from steprule.modifiers import Cautious
        >>> weight = torch.zeros(2, requires_grad=True)
        >>> optimizer = SGD([weight], lr=0.1, momentum=0.5, modifiers=[Cautious()])
        >>> for gradient in (torch.tensor([1.0, 8.0]), torch.tensor([1.0, -1.0])):
        ...     weight.grad = gradient
        ...     optimizer.step()
        >>> weight.detach()  # the second step is taken of the first number only, and twice as far
        tensor([-0.4000, -0.8000])
    """

    def step(self, p: Any, g: Any, u: Any, s: Any, h: Any) -> Any:
        agrees = where(same_sign(u) * g > 0, 1.0, 0.0)
        return u * agrees / maximum(mean(agrees), 1e-3)
