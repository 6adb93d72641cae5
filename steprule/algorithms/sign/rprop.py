from __future__ import annotations

from typing import Any, ClassVar

from steprule.algorithms.arguments import Number, Options, Params, Range, Ranges, Slots, Unpack, usually
from steprule.optimizer import SWITCHES, Optimizer
from steprule.rule import array, clip, scalar, sign, where

__all__ = ["Rprop"]

ETAS = "Invalid eta values: {whole[0]}, {whole[1]}"


class Rprop(Optimizer):
    r"""Resilient backpropagation: only the gradient's sign counts, and each coordinate learns its own step.

    .. math::
        \eta_t &= \begin{cases}
            \min(\eta_{t-1} \eta_+, \Gamma_{\max}) & \text{if } g_{t-1} g_t > 0 \\
            \max(\eta_{t-1} \eta_-, \Gamma_{\min}),\ g_t \leftarrow 0 & \text{if } g_{t-1} g_t < 0 \\
            \eta_{t-1} & \text{else}\end{cases} \\
        \theta_t &= \theta_{t-1} - \eta_t \operatorname{sign}(g_t)

    `A direct adaptive method for faster backpropagation learning: the RPROP algorithm
    <https://doi.org/10.1109/ICNN.1993.298623>`_, Riedmiller and Braun, 1993.

    Choose it for full batches, whose gradient has no noise: there it is hard to beat without second derivatives. On
    small batches the signs mislead it.

    The rate is the size of the first step alone: with ``lr=0`` the steps are those of ``step_sizes``, not none, as in
    torch.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the size of every first step, in the parameter's unit; usually 1e-4 to 0.1.
        etas (tuple of two floats): the factors by which a step shrinks where the sign turned and grows where it
            stayed, without unit; usually 0.5 and 1.2.
        step_sizes (tuple of two floats): the smallest and the largest step, in the parameter's unit.
        options: ``capturable``, ``foreach``, ``maximize``, ``differentiable`` and what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import Rprop
        >>> weight = torch.tensor([1.0, -200.0], requires_grad=True)
        >>> optimizer = Rprop([weight], lr=0.25)
        >>> for _ in range(2):
        ...     optimizer.zero_grad()
        ...     weight.square().sum().backward()
        ...     optimizer.step()
        >>> weight.detach()
        tensor([   0.4500, -199.4500])
    """

    switches = SWITCHES - {"fused"}
    slots: ClassVar[Slots] = {
        "step": scalar(),
        "step_size": array("lr", exact="step sizes span more than the codes of a block, and are multiplied on and on"),
        "prev": array(exact="what is rounded to zero has lost its sign, which is all that is asked of it"),
    }
    ranges: ClassVar[Ranges] = usually(
        lr="1e-4 to 0.1",
        etas=(Range(above=0, below=1, usual="0.5", message=ETAS), Range(above=1, usual="1.2", message=ETAS)),
        step_sizes=(Range(), Range()),
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-2,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50),
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, dict(lr=lr, etas=etas, step_sizes=step_sizes), **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        smaller, larger = h.etas
        smallest, largest = h.step_sizes
        agreement = g * s.prev
        turned = agreement < 0
        factor = where(agreement > 0, larger, where(turned, smaller, 1.0))
        s.step_size = clip(s.step_size * factor, smallest, largest)
        s.prev = where(turned, 0.0, g)
        return p - sign(s.prev) * s.step_size
