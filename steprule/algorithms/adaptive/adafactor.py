from __future__ import annotations

from typing import Any, ClassVar

import torch

from steprule.algorithms.arguments import Number, Options, Params, Ranges, Slots, Unpack, should_be
from steprule.optimizer import Optimizer
from steprule.rule import (
    column,
    eps,
    lerp,
    maximum,
    mean,
    minimum,
    ndim,
    norm,
    power,
    row,
    rsqrt,
    size,
    sqrt,
    square,
    where,
)

__all__ = ["Adafactor"]


class Adafactor(Optimizer):
    r"""Adam without momentum, whose second moment of a matrix is kept as the means of its rows and its columns.

    .. math::
        R_t &= R_{t-1} + t^{\tau} (\operatorname{mean}_{\text{row}} g_t^2 - R_{t-1}), \qquad
        C_t = C_{t-1} + t^{\tau} (\operatorname{mean}_{\text{column}} g_t^2 - C_{t-1}) \\
        u_t &= g_t / \sqrt{\max\left(R_t C_t / \max(\operatorname{mean} R_t, \epsilon_1),\ \epsilon_1^2\right)} \\
        \alpha_t &= \max(\epsilon_2, \operatorname{rms} \theta_{t-1}) \, \min(\gamma, t^{-1/2}) \\
        \theta_t &= (1 - \gamma\lambda)\, \theta_{t-1} - \alpha_t u_t / \max(1, \operatorname{rms}(u_t) / d)

    A vector keeps its whole second moment. Of a parameter with more than two dimensions the last two are the matrix.
    `Adafactor: Adaptive Learning Rates with Sublinear Memory Cost <https://arxiv.org/abs/1804.04235>`_, Shazeer and
    Stern, 2018.

    Choose it when Adam's state does not fit: a matrix of n x m keeps n + m numbers instead of 2 n m.

    Args:
        params: see :class:`steprule.Optimizer`; real.
        lr (float, Tensor or Schedule): the largest relative step, without unit: a step is at most this times the
            parameter's root mean square; usually 1e-3 to 1e-2.
        beta2_decay (float): the power of the step that is the weight of new squares, without unit; usually -0.8.
        eps (tuple of two floats): the least mean square, as its root, in the gradient's unit (None: the dtype's
            rounding unit), and the least size of a parameter, in its own unit; usually None and 1e-3.
        d (float): the root mean square at which a step is clipped, without unit; usually 1.
        weight_decay (float): the part of the parameter lost at each step, over the rate; usually 0.
        options: ``foreach``, ``maximize`` and what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.
        RuntimeError: in a step, if a parameter is complex or a gradient sparse.

    Example:
        >>> import torch
        >>> from steprule import Adafactor
        >>> weight = torch.full((3, 2), 2.0, requires_grad=True)
        >>> optimizer = Adafactor([weight], lr=0.25)
        >>> weight.sum().backward()
        >>> optimizer.step()
        >>> weight.detach()
        tensor([[1.5000, 1.5000],
                [1.5000, 1.5000],
                [1.5000, 1.5000]])
        >>> {name: tuple(value.shape) for name, value in optimizer.state[weight].items()}
        {'step': (), 'row_var': (3, 1), 'col_var': (1, 2)}
    """

    switches = frozenset({"foreach"})
    slots: ClassVar[Slots] = {"row_var": row(), "col_var": column()}
    ranges: ClassVar[Ranges] = {
        "lr": should_be("Learning rate", "1e-3 to 1e-2", least=0),
        "beta2_decay": should_be("beta2_decay", "-0.8", most=0),
        "eps": (should_be("epsilon1", "None", least=0, optional=True), should_be("epsilon2", "1e-3", least=0)),
        "d": should_be("Clipping threshold d", "1", least=1),
        "weight_decay": should_be("weight_decay", "0", least=0),
    }

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-2,
        beta2_decay: Number = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: Number = 1.0,
        weight_decay: Number = 0.0,
        **options: Unpack[Options],
    ) -> None:
        defaults: dict[str, Any] = dict(lr=lr, beta2_decay=beta2_decay, eps=eps, d=d, weight_decay=weight_decay)
        super().__init__(params, defaults, **options)

    def refuse(self, p: torch.Tensor) -> None:
        if p.is_complex():
            raise RuntimeError("Adafactor does not support complex parameters")
        if p.grad is not None and p.grad.is_sparse:
            raise RuntimeError("Adafactor does not support sparse gradients")

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        weight = power(s.step, h.beta2_decay)
        least = eps(p) if h.eps[0] is None else h.eps[0]
        if ndim(p) > 1:
            s.row_var = lerp(s.row_var, mean(square(g), dim=-1), weight)
            s.col_var = lerp(s.col_var, mean(square(g), dim=-2), weight)
            variance = s.row_var / maximum(mean(s.row_var, dim=-2), least) * s.col_var
        else:
            variance = s.variance = lerp(s.variance, square(g), weight)
        u = g * rsqrt(maximum(variance, least * least))
        scale, clip = norm(p) / sqrt(size(p)), norm(u) / sqrt(size(p)) / h.d
        # a NaN among the elements is not larger than anything, and spares the others
        alpha = where(scale > h.eps[1], scale, h.eps[1]) * minimum(h.lr, rsqrt(s.step))
        return p * (1 - h.lr * h.weight_decay) - alpha / where(clip > 1.0, clip, 1.0) * u
