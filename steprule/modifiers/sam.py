from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from steprule.grouping.hyperparameters import Range
from steprule.rule import abs, norm, square
from steprule.rule.modifier import Modifier

__all__ = ["ASAM", "SAM"]


class SAM(Modifier):
    r"""The gradient at the worst point nearby, for a flat minimum.

    .. math::
        \epsilon_t = \rho \, g(\theta_{t-1}) / \lVert g(\theta_{t-1}) \rVert, \qquad
        g_t \leftarrow g(\theta_{t-1} + \epsilon_t)

    with the norm over all parameters. `Sharpness-Aware Minimization for Efficiently Improving Generalization
    <https://arxiv.org/abs/2010.01412>`_, Foret et al., 2021.

    A step needs two gradients: give ``optimizer.step(closure)`` a closure that computes the loss and its gradients, or
    call ``optimizer.first_step(zero_grad=True)`` after the first backward and ``optimizer.second_step()`` after the
    second. With a GradScaler, ``scaler.step(optimizer)`` stands in the place of the latter, and after it
    ``optimizer.go_back()``: where the second backward overflows the step is left out, and the weights go back.

    Choose it where generalization is worth twice the time.

    Args:
        rho (float, Tensor or Schedule): :math:`\rho`, how far away, in the parameter's own unit; usually 0.01 to 0.1.

    Example:
        >>> import torch
        >>> from steprule import SGD
        >>> from steprule.modifiers import SAM
        >>> weight = torch.tensor([1.0], requires_grad=True)
        >>> optimizer = SGD([weight], lr=0.25, modifiers=[SAM(rho=0.5)])
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = weight.square().sum()
        ...     loss.backward()
        ...     return loss
        >>> optimizer.step(closure).item(), weight.item()
        (1.0, 0.25)
    """

    defaults: ClassVar[Mapping[str, Any]] = {"rho": 0.05}
    ranges: ClassVar[Mapping[str, Any]] = {"rho": Range(least=0, usual="0.01 to 0.1")}
    excludes: ClassVar[frozenset[str]] = frozenset({"SAM", "ASAM"})
    points: ClassVar[int] = 2

    def ascent(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        return p + h.rho / (norm(g, scope="all") + 1e-12) * g


class ASAM(SAM):
    r""":class:`SAM` whose neighbourhood is as large, in each direction, as the weight.

    .. math::
        \epsilon_t = \rho \, \theta_{t-1}^2 \odot g(\theta_{t-1}) /
            \lVert \lvert\theta_{t-1}\rvert \odot g(\theta_{t-1}) \rVert

    `ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural Networks
    <https://arxiv.org/abs/2102.11600>`_, Kwon et al., 2021.

    Choose it in place of :class:`SAM` where the scale of the weights differs from layer to layer.

    Args:
        rho (float, Tensor or Schedule): :math:`\rho`, how far away, without unit; usually 0.5 to 2.

    Example:
        >>> import torch
        >>> from steprule import SGD
        >>> from steprule.modifiers import ASAM
        >>> weight = torch.tensor([1.0], requires_grad=True)
        >>> optimizer = SGD([weight], lr=0.25, modifiers=[ASAM(rho=0.5)])
        >>> weight.square().sum().backward()
        >>> optimizer.first_step(zero_grad=True)
        >>> weight.square().sum().backward()
        >>> optimizer.second_step()
        >>> weight.item()
        0.25
    """

    defaults: ClassVar[Mapping[str, Any]] = {"rho": 0.5}
    ranges: ClassVar[Mapping[str, Any]] = {"rho": Range(least=0, usual="0.5 to 2")}

    def ascent(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        return p + h.rho / (norm(abs(p) * g, scope="all") + 1e-12) * square(p) * g
