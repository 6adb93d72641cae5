from __future__ import annotations

from typing import Any, ClassVar

from steprule.algorithms.arguments import PENALTY, Number, Options, Params, Range, Ranges, Slots, Unpack, usually
from steprule.algorithms.weight_decay import decayed
from steprule.optimizer import Optimizer
from steprule.rule import array, lerp, sqrt

__all__ = ["RMSpropTF"]


class RMSpropTF(Optimizer):
    r"""RMSprop as TensorFlow has it: the mean square begins with 1, and epsilon stands within the root.

    .. math::
        v_t &= \alpha v_{t-1} + (1 - \alpha) g_t^2, \qquad v_0 = 1 \\
        b_t &= \mu b_{t-1} + \gamma \, g_t / \sqrt{v_t + \epsilon} \\
        \theta_t &= \theta_{t-1} - b_t

    Centered, :math:`v_t` less the square of the running mean of the gradient takes its place. Without
    ``lr_in_momentum`` the rate multiplies the momentum where it is used, as in torch. `Lecture 6e of Neural
    Networks for Machine Learning <https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf>`_,
    Tieleman and Hinton, 2012, with TensorFlow's constants.

    Choose it to train EfficientNets, MobileNets and their kin by recipes written for TensorFlow.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate: the size of a step in the parameter's own unit; usually 1e-3
            to 0.1.
        alpha (float): how much of the mean square is kept from step to step, without unit; usually 0.9 to 0.99.
        eps (float): added to the mean square, in the gradient's unit squared; usually 1e-10 to 1e-3.
        weight_decay (float): strength of the L2 penalty, in units of the loss over the parameter squared; 0, or
            1e-6 to 1e-2.
        momentum (float): the part of the velocity kept from step to step, without unit; usually 0.9.
        centered (bool): divide by the estimated deviation from the mean; one more slot.
        decoupled_weight_decay (bool): shrink the parameter itself, as :class:`AdamW` does.
        lr_in_momentum (bool): the momentum keeps the rates of former steps.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import RMSpropTF
        >>> weight = torch.tensor([1.0, -2.0], requires_grad=True)
        >>> optimizer = RMSpropTF([weight], lr=0.01)
        >>> for _ in range(300):
        ...     optimizer.zero_grad()
        ...     weight.square().sum().backward()
        ...     optimizer.step()
        >>> bool(weight.abs().max() < 0.01)
        True
    """

    slots: ClassVar[Slots] = {"square_avg": array(1.0)}
    ranges: ClassVar[Ranges] = usually(
        lr="1e-3 to 0.1",
        alpha=Range(least=0, usual="0.9 to 0.99"),
        eps="1e-10 to 1e-3",
        weight_decay=PENALTY,
        momentum="0.9",
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-2,
        alpha: Number = 0.9,
        eps: Number = 1e-10,
        weight_decay: Number = 0,
        momentum: Number = 0,
        centered: bool = False,
        decoupled_weight_decay: bool = False,
        lr_in_momentum: bool = True,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            dict(
                lr=lr,
                alpha=alpha,
                eps=eps,
                weight_decay=weight_decay,
                momentum=momentum,
                centered=centered,
                decoupled_weight_decay=decoupled_weight_decay,
                lr_in_momentum=lr_in_momentum,
            ),
            **options,
        )

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        p, g = decayed(p, g, h)
        square = s.square_avg = lerp(s.square_avg, g * g, 1 - h.alpha)
        if h.centered:
            s.grad_avg = lerp(s.grad_avg, g, 1 - h.alpha)
            square = square - s.grad_avg * s.grad_avg
        u = g / sqrt(square + h.eps)
        if not h.momentum:
            return p - h.lr * u
        s.momentum_buffer = h.momentum * s.momentum_buffer + (h.lr * u if h.lr_in_momentum else u)
        return p - (s.momentum_buffer if h.lr_in_momentum else h.lr * s.momentum_buffer)
