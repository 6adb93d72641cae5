from __future__ import annotations

from typing import Any, ClassVar

from steprule.algorithms.arguments import Number, Options, Params, Ranges, Unpack, usually
from steprule.algorithms.moments import adam_step
from steprule.optimizer import Optimizer
from steprule.rule import norm, where

__all__ = ["Lamb"]


class Lamb(Optimizer):
    r"""Adam whose step on each layer is as large, against the rate, as the layer itself.

    .. math::
        u_t &= \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon} + \lambda \theta_{t-1} \\
        \theta_t &= \theta_{t-1} - \gamma \, \frac{\lVert \theta_{t-1} \rVert}{\lVert u_t \rVert} \, u_t

    with the moments :math:`m` and :math:`v` of :class:`Adam`; the ratio is 1 where either norm is 0. A layer is a
    parameter tensor. `Large Batch Optimization for Deep Learning: Training BERT in 76 minutes
    <https://arxiv.org/abs/1904.00962>`_, You et al., 2020, algorithm 2.

    Choose it for very large batches, where Adam's rate would have to be tuned for each layer.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate: the relative change of a layer in a step, without unit; usually 1e-4
            to 1e-2.
        betas (tuple of two floats): how much of the running means of the gradient and of its square is kept from step
            to step, without unit; usually 0.9 and 0.999.
        eps (float): added to the denominator, in the gradient's unit; usually 1e-8 to 1e-6.
        weight_decay (float): how much of the parameter counts in the direction, in units of one over the parameter;
            usually 0 to 0.1.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import Lamb
        >>> weight = torch.tensor([3.0, -4.0], requires_grad=True)
        >>> optimizer = Lamb([weight], lr=0.2, weight_decay=0)
        >>> weight.sum().backward()
        >>> optimizer.step()  # a fifth of the norm, which is 5, along (1, 1)
        >>> weight.detach()
        tensor([ 2.2929, -4.7071])
    """

    ranges: ClassVar[Ranges] = usually(
        lr="1e-4 to 1e-2", eps="1e-8 to 1e-6", betas=("0.9", "0.999"), weight_decay="0 to 0.1"
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-6,
        weight_decay: Number = 1e-2,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay), **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        u = adam_step(g, s, h, 1.0) + h.weight_decay * p
        ratio = where((norm(p) > 0) & (norm(u) > 0), norm(p) / norm(u), 1.0)
        return p - h.lr * ratio * u
