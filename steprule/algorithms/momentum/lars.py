from __future__ import annotations

from typing import Any, ClassVar

from steprule.algorithms.arguments import PENALTY, Number, Options, Params, Range, Ranges, Unpack, usually
from steprule.algorithms.weight_decay import penalized
from steprule.optimizer import Optimizer
from steprule.rule import ndim, norm, where

__all__ = ["LARS"]


class LARS(Optimizer):
    r"""SGD with momentum whose step on each layer is as large, against the rate, as the layer itself.

    .. math::
        u_t &= \frac{\eta \lVert \theta_{t-1} \rVert}{\lVert g_t \rVert + \lambda \lVert \theta_{t-1} \rVert}
            (g_t + \lambda \theta_{t-1}) \\
        b_t &= \mu b_{t-1} + (1 - \tau) u_t, \qquad
        \theta_t = \theta_{t-1} - \gamma b_t

    A layer is a parameter tensor; one of norm 0 takes :math:`g_t + \lambda \theta_{t-1}`, and vectors, which are
    biases and norms, take :math:`g_t`. As in torch, and other than in the paper, the rate multiplies the whole
    momentum. `Large Batch Training of Convolutional Networks <https://arxiv.org/abs/1708.03888>`_, You et al.,
    2017.

    Choose it for convolutional networks with batches of many thousands, where SGD's rate would have to be tuned for
    each layer.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate: over the trust coefficient, the relative change of a layer in
            a step, without unit; usually 0.1 to 10.
        momentum (float): the part of the velocity kept from step to step, without unit; usually 0.9.
        dampening (float): the part of each new step kept out of the velocity, without unit; usually 0.
        weight_decay (float): strength of the L2 penalty, in units of the loss over the parameter squared; 0, or
            1e-6 to 1e-2.
        trust_coefficient (float): :math:`\eta`, the relative change that a rate of 1 makes, without unit;
            usually 1e-3.
        nesterov (bool): look ahead along the velocity.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import LARS
        >>> weight = torch.tensor([[3.0, 4.0]], requires_grad=True)
        >>> optimizer = LARS([weight], lr=100.0)
        >>> weight.square().sum().backward()
        >>> optimizer.step()  # a tenth of its norm
        >>> weight.detach()
        tensor([[2.7000, 3.6000]])
    """

    ranges: ClassVar[Ranges] = usually(
        lr="0.1 to 10", momentum="0.9", dampening=Range(usual="0"), weight_decay=PENALTY, trust_coefficient="1e-3"
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-3,
        momentum: Number = 0.9,
        dampening: Number = 0,
        weight_decay: Number = 0,
        trust_coefficient: Number = 1e-3,
        nesterov: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            dict(
                lr=lr,
                momentum=momentum,
                dampening=dampening,
                weight_decay=weight_decay,
                trust_coefficient=trust_coefficient,
                nesterov=nesterov,
            ),
            **options,
        )

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        if ndim(p) > 1:
            size = norm(g) + h.weight_decay * norm(p)
            trust = where((norm(p) > 0) & (size > 0), h.trust_coefficient * norm(p) / size, 1.0)
            g = trust * penalized(g, p, h)
        if h.momentum:
            s.momentum_buffer = h.momentum * s.momentum_buffer + (1 - h.dampening) * g
            g = g + h.momentum * s.momentum_buffer if h.nesterov else s.momentum_buffer
        return p - h.lr * g
