from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch

from ..kernels.launch import arithmetic, scalar_dtype
from .by_torch import Gradient, OptimizerByTorch
from .parts import Number, Params

__all__ = ["Adafactor"]

BLOCK = 1 << 19
"""Elements that are worked on at a time: their intermediate results stay in the cache."""


class Adafactor(OptimizerByTorch):
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

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: Number = 0.0,
        **options: Any,
    ) -> None:
        defaults: dict[str, Any] = dict(lr=lr, beta2_decay=beta2_decay, eps=eps, d=d, weight_decay=weight_decay)
        super().__init__(params, defaults, **options)

    def validate(self, h: Mapping[str, Any]) -> None:
        super().validate(h)
        if isinstance(h["lr"], torch.Tensor) and h["lr"].numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        if not h["lr"] >= 0.0:
            raise ValueError(f"Learning rate should be >= 0 but is: {h['lr']}")
        if not h["beta2_decay"] <= 0.0:
            raise ValueError(f"beta2_decay should be <= 0 but is: {h['beta2_decay']}")
        for index, least in enumerate(h["eps"], 1):
            if least is not None and not least >= 0.0:
                raise ValueError(f"epsilon{index} should be >= 0 but is: {least}")
        if not h["d"] >= 1.0:
            raise ValueError(f"Clipping threshold d should be >= 1 but is: {h['d']}")
        if not h["weight_decay"] >= 0.0:
            raise ValueError(f"weight_decay should be >= 0 but is: {h['weight_decay']}")

    def refuse(self, p: torch.Tensor) -> None:
        if p.is_complex():
            raise RuntimeError("Adafactor does not support complex parameters")
        if p.grad is not None and p.grad.is_sparse:
            raise RuntimeError("Adafactor does not support sparse gradients")

    def update_one(self, p: torch.Tensor, gradient: Gradient, state: dict[str, Any], h: Mapping[str, Any]) -> None:
        g = gradient.grad
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=scalar_dtype())
            if p.ndim > 1:
                state["row_var"], state["col_var"] = g.new_zeros(row_shape(p)), g.new_zeros(column_shape(p))
            else:
                state["variance"] = torch.zeros_like(g)
        state["step"] += 1
        if p.numel() == 0:
            return
        if p.ndim == 0:
            state = {**state, "variance": state["variance"].view(1)}
            p, gradient = p.view(1), replace(gradient, param=p.view(1), grad=g.view(1))
        step, lr = state["step"].item(), float(h["lr"])
        least = torch.finfo(p.dtype).eps if h["eps"][0] is None else h["eps"][0]
        alpha = rms(p).clamp(min=h["eps"][1]) * min(lr, step**-0.5)
        parts, weight = parts_of(p), step ** h["beta2_decay"]
        divided = (factored if p.ndim > 1 else whole)(gradient, parts, state, weight, least)
        squares = torch.zeros((), dtype=torch.float64, device=p.device)
        for part in parts:
            u, factor = divided(part)
            squares += (torch.linalg.vector_norm(u, dim=-1, keepdim=True) * factor).square().sum(dtype=torch.float64)
        clip = ((squares / p.numel()).sqrt() / h["d"]).clamp(min=1.0)
        scale = (-alpha / clip).to(arithmetic(p.dtype))
        for part in parts:
            u, factor = divided(part)
            here = p[part]
            new = here.to(u.dtype)
            if h["weight_decay"]:
                new.mul_(1 - lr * h["weight_decay"])
            new.add_(u.mul_(factor * scale))
            if new is not here:
                here.copy_(new)


Divided: TypeAlias = Callable[[slice], tuple[torch.Tensor, Any]]
"""Gives for a part of the gradient, over the root of its mean square, two factors: an array like it and another."""


def whole(gradient: Gradient, _: Sequence[slice], state: dict[str, Any], weight: float, least: float) -> Divided:
    """With the whole second moment of a vector."""
    x = gradient[:]
    variance = torch.lerp(state["variance"].to(x.dtype), x.square(), weight)
    state["variance"].copy_(variance)
    root = variance.clamp_(min=least * least).rsqrt_()
    return lambda part: (gradient[part] * root[part], 1.0)


def factored(gradient: Gradient, parts: Sequence[slice], state: dict[str, Any], weight: float, least: float) -> Divided:
    """With the means of rows and columns of a matrix, whose product over the mean of all is the second moment."""
    p, kind = gradient.param, arithmetic(gradient.param.dtype)
    rows, columns = (p.new_zeros(shape, dtype=kind) for shape in (row_shape(p), column_shape(p)))
    for part in parts:
        square = gradient[part].square()
        own(rows, part, p).copy_(square.sum(dim=-1, keepdim=True))
        own(columns, part, p).add_(square.sum(dim=-2, keepdim=True))
    for name, squares, count in (("row_var", rows, p.shape[-1]), ("col_var", columns, p.shape[-2])):
        squares.copy_(torch.lerp(state[name].to(kind), squares.div_(count), weight))
        state[name].copy_(squares)
    rows.div_(rows.mean(dim=-2, keepdim=True).clamp_(min=least))
    # a GPU would have to be waited for
    separable = p.is_cpu and bool((rows.amin(dim=-2) * columns.amin(dim=-1) >= least * least).all())
    if separable:
        rows.rsqrt_()
        columns.rsqrt_()

    def divided(part: slice) -> tuple[torch.Tensor, Any]:
        x, row, column = gradient[part], own(rows, part, p), own(columns, part, p)
        if separable:
            return x * column, row
        return x * (row * column).clamp_(min=least * least).rsqrt_(), 1.0

    return divided


def own(of: torch.Tensor, part: slice, p: torch.Tensor) -> torch.Tensor:
    """What belongs to a part of the first dimension: all of it, for the columns of a single matrix."""
    return of[part] if of.shape[0] == p.shape[0] else of


def parts_of(p: torch.Tensor) -> list[slice]:
    """Pieces of the first dimension."""
    whole = p.shape[0]
    step = max(1, BLOCK * whole // p.numel()) if p.device.type == "cpu" else whole
    return [slice(start, start + step) for start in range(0, whole, step)]


def row_shape(p: torch.Tensor) -> tuple[int, ...]:
    return (*p.shape[:-1], 1)


def column_shape(p: torch.Tensor) -> tuple[int, ...]:
    return (*p.shape[:-2], 1, p.shape[-1])


def rms(p: torch.Tensor) -> torch.Tensor:
    norm: torch.Tensor = torch.linalg.vector_norm(p, dtype=arithmetic(p.dtype))
    return norm.double() / math.sqrt(p.numel())
