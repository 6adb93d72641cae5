from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from steprule.algorithms.arguments import PENALTY, Number, Params, PlacedOptions, Ranges, Slots, Unpack, usually
from steprule.algorithms.moments import mean_of, mean_square_of
from steprule.algorithms.weight_decay import penalized
from steprule.optimizer import SWITCHES, Optimizer
from steprule.rule import scalar, sqrt

__all__ = ["RMSprop"]


class RMSprop(Optimizer):
    r"""RMSprop: the gradient over the root of the running mean of its square.

    .. math::
        v_t &= \alpha v_{t-1} + (1 - \alpha) g_t^2 \\
        b_t &= \mu b_{t-1} + g_t / (\sqrt{v_t} + \epsilon) \\
        \theta_t &= \theta_{t-1} - \gamma b_t

    Centered, the variance :math:`v_t - \bar g_t^2` with the running mean :math:`\bar g` takes the place of
    :math:`v_t`. `Lecture 6e of Neural Networks for Machine Learning
    <https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf>`_, Tieleman and Hinton, 2012; centered
    `Generating Sequences With Recurrent Neural Networks <https://arxiv.org/abs/1308.0850>`_, Graves, 2013.

    Choose it for recurrent networks and reinforcement learning, where its lack of momentum suits gradients whose
    distribution shifts; else :class:`Adam`.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate: about the size of a step in the parameter's own unit; usually 1e-5
            to 1e-2.
        alpha (float): how much of the running means is kept from step to step, without unit; usually 0.9 to 0.999.
        eps (float): added to the denominator, in the gradient's unit; usually 1e-8 to 1e-3.
        weight_decay (float): strength of the L2 penalty, in units of the loss over the parameter squared; 0, or
            1e-6 to 1e-2.
        momentum (float): the part of the velocity kept from step to step, without unit; 0, or 0.5 to 0.95.
        centered (bool): divide by the standard deviation instead; one more slot.
        capturable, foreach, maximize, differentiable: see :class:`steprule.Optimizer`.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import RMSprop
        >>> weight = torch.tensor([1.0, -200.0], requires_grad=True)
        >>> optimizer = RMSprop([weight], lr=0.025)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> weight.detach()
        tensor([   0.7500, -199.7500])
    """

    switches = SWITCHES - {"fused"}
    slots: ClassVar[Slots] = {"step": scalar()}
    ranges: ClassVar[Ranges] = usually(
        lr="1e-5 to 1e-2", eps="1e-8 to 1e-3", momentum="0, or 0.5 to 0.95", weight_decay=PENALTY, alpha="0.9 to 0.999"
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-2,
        alpha: Number = 0.99,
        eps: Number = 1e-8,
        weight_decay: Number = 0,
        momentum: Number = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        **options: Unpack[PlacedOptions],
    ) -> None:
        defaults = dict(lr=lr, momentum=momentum, alpha=alpha, eps=eps, centered=centered, weight_decay=weight_decay)
        named: dict[str, Any] = dict(
            capturable=capturable, foreach=foreach, maximize=maximize, differentiable=differentiable
        )
        super().__init__(params, defaults, **options, **named)

    def validate(self, h: Mapping[str, Any]) -> None:
        super().validate(h)
        if h["centered"] and h["state_dtype"] not in (None, "float32"):
            raise ValueError(
                f"state_dtype={h['state_dtype']!r} can't hold the state of RMSprop with centered=True: its variance is "
                "a difference of two nearly equal slots"
            )

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        g = penalized(g, p, h)
        s.square_avg = square = mean_square_of(s.square_avg, g, h.alpha)
        if h.centered:
            s.grad_avg = mean_of(s.grad_avg, g, h.alpha)
            square = square - s.grad_avg * s.grad_avg
        step = g / (sqrt(square) + h.eps)
        if h.momentum:
            s.momentum_buffer = step = h.momentum * s.momentum_buffer + step
        return p - h.lr * step
