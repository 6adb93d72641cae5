from __future__ import annotations

from typing import Any, ClassVar

import torch

from steprule.algorithms.arguments import Number, Options, Params, Range, Ranges, Slots, Unpack, usually
from steprule.algorithms.moments import mean_of
from steprule.optimizer import Optimizer
from steprule.rule import (
    array,
    clip,
    exp,
    matrix,
    max_abs,
    mean,
    minimum,
    ndim,
    normal,
    scalar,
    sqrt,
    square,
    table,
    where,
)

from .drawn import normal_like
from .square_tables import is_whole

__all__ = ["Kron"]

TINY = 1.1754943508222875e-38


class Kron(Optimizer):
    r"""PSGD: each side of a matrix has a triangular factor that is fitted until the gradient between them is white.

    .. math::
        m_t &= \beta m_{t-1} + (1 - \beta)\, g_t, \qquad \hat m_t = m_t / (1 - \beta^t) \\
        A &= Q_L \hat m_t Q_R^T, \qquad B = Q_L^{-T} V Q_R^{-1}, \qquad V_{ij} \sim \mathcal{N}(0, 1) \\
        Q_L &\leftarrow Q_L - \eta \frac{\operatorname{triu}(A A^T - B B^T)}{\lVert A A^T + B B^T \rVert} Q_L, \qquad
        Q_R \leftarrow Q_R - \eta \frac{\operatorname{triu}(A^T A - B^T B)}{\lVert A^T A + B^T B \rVert} Q_R \\
        u_t &= Q_L^T Q_L \, \hat m_t \, Q_R^T Q_R, \qquad
        \theta_t = \theta_{t-1} - \gamma \left(\min\left(1, \frac{1.1}{\operatorname{rms}(u_t)}\right) u_t
            + \lambda \theta_{t-1}\right)

    The factors are fitted in each of the first 500 steps, and then ever more seldom, down to every 33rd; ``seed`` says
    V. A parameter of more than two dimensions is the matrix (size(0), everything else); a side of more than
    ``max_size_triangular`` has the diagonal alone, and what has fewer dimensions has one factor for each element, and
    no weight decay. Factors are balanced whenever they are fitted, which changes no step. `Curvature-Informed SGD via
    General Purpose Lie-Group Preconditioners <https://arxiv.org/abs/2402.04553>`_, Pooladzandi and Li, 2024, in the
    form and with the defaults of `kron_torch`.

    Choose it where gradients are badly scaled along directions that no diagonal sees, and AdamW stalls: it needs no
    eps and no decomposition.

    Args:
        params: see :class:`steprule.Optimizer`; real.
        lr (float, Tensor or Schedule): the rate: the root mean square of a step is at most 1.1 times it, in the
            parameter's own unit; usually 1e-4 to 1e-2.
        momentum (float): how much of the running mean of the gradient is kept from step to step, without unit; usually
            0.9 to 0.98.
        weight_decay (float): how much of a matrix counts in the direction, in units of one over the parameter; usually
            0 to 0.1.
        preconditioner_update_probability (float, Schedule, optional): in what part of the steps factors are fitted, or
            None, as above.
        max_size_triangular (int): the longest side that has a triangular factor; usually 0 to 8192.
        momentum_into_precond_update (bool): fit the factors to the momentum, and not to the gradient.
        precond_lr (float): the rate of the factors, without unit; usually 0.1.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.
        RuntimeError: in a step, if a matrix is complex or its gradient sparse, or if it is a DTensor that is cut.

    Example:
        >>> import torch
        >>> from steprule import Kron
        >>> weight = torch.ones(4, 2, requires_grad=True)
        >>> optimizer = Kron([weight], lr=0.03)
        >>> for _ in range(200):
        ...     weight.grad = weight.detach() * torch.tensor([1000.0, 1.0])
        ...     optimizer.step()
        >>> bool(weight.abs().max() < 0.1)  # whatever the curvature
        True
    """

    switches: ClassVar[frozenset[str]] = frozenset()
    slots: ClassVar[Slots] = {
        "Q_rows": table("rows", "rows", "identity", most="max_size_triangular"),
        "Q_columns": table("columns", "columns", "identity", most="max_size_triangular"),
        "Q": array(1.0),
        "update_counter": scalar(),
    }
    ranges: ClassVar[Ranges] = usually(
        lr="1e-4 to 1e-2",
        momentum=Range(least=0, below=1, usual="0.9 to 0.98"),
        weight_decay="0 to 0.1",
        preconditioner_update_probability=Range(least=0, most=1, optional=True),
        max_size_triangular=Range(least=0, usual="0 to 8192"),
        precond_lr="0.1",
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-3,
        momentum: Number = 0.9,
        weight_decay: Number = 0.0,
        preconditioner_update_probability: Number | None = None,
        max_size_triangular: int = 8192,
        momentum_into_precond_update: bool = True,
        precond_lr: Number = 0.1,
        **options: Unpack[Options],
    ) -> None:
        defaults: dict[str, Any] = dict(lr=lr, momentum=momentum, weight_decay=weight_decay)
        defaults |= dict(
            preconditioner_update_probability=preconditioner_update_probability, max_size_triangular=max_size_triangular
        )
        defaults |= dict(momentum_into_precond_update=momentum_into_precond_update, precond_lr=precond_lr)
        super().__init__(params, defaults, **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        probability = h.preconditioner_update_probability
        if probability is None:
            probability = clip(exp(-0.001 * (s.step - 1 - 500)), 0.03, 1.0)
        waited = s.update_counter + 1
        due = (probability > 0) & (waited >= 1 / probability)
        s.update_counter = where(due, 0, waited)
        s.momentum_buffer = mean_of(s.momentum_buffer, g, h.momentum)
        m = s.momentum_buffer / (1 - h.momentum**s.step)
        seen = m if h.momentum_into_precond_update else g
        if ndim(p) > 1:
            factors = s.Q_rows, s.Q_columns
            s.Q_rows, s.Q_columns = factors = matrix(
                fitted, *factors, seen, h.precond_lr, h.seed, s.step, returns=factors, every=due
            )
            u = matrix(whitened, m, *factors, returns=g)
        else:
            a, b = s.Q * seen, normal() / s.Q
            change = (square(a) - square(b)) / (max_abs(square(a) + square(b)) + TINY)
            s.Q = where(due, s.Q - h.precond_lr * change * s.Q, s.Q)
            u = square(s.Q) * m
        u = minimum(1.0, 1.1 / (sqrt(mean(square(u))) + 1e-6)) * u
        return p - h.lr * (u + h.weight_decay * p if ndim(p) > 1 and h.weight_decay else u)


def times(factor: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A factor, or its diagonal, times matrices."""
    found: torch.Tensor = factor @ x if is_whole(factor) else factor * x
    return found


def transposed(factor: torch.Tensor) -> torch.Tensor:
    return factor.mT if is_whole(factor) else factor


def divided(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """``factor^-T @ x``."""
    if not is_whole(factor):
        return x / factor
    found: torch.Tensor = torch.linalg.solve_triangular(factor.mT, x, upper=False)
    return found


def fitted(
    rows: torch.Tensor, columns: torch.Tensor, m: torch.Tensor, rate: float, seed: float, step: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both factors, one step nearer to those between which the gradient is as white as noise."""
    if m.numel() == 0:
        return rows, columns
    v = normal_like(m, m.shape[1:], seed, step).expand_as(m)
    a = times(columns, times(rows, m).mT).mT
    b = divided(divided(v, rows).mT, columns).mT
    new_rows, new_columns = moved_factor(rows, a, b, rate), moved_factor(columns, a.mT, b.mT, rate)
    largest = [q.abs().amax((-2, -1), keepdim=True) for q in (new_rows, new_columns)]
    middle = (largest[0] * largest[1]).sqrt()
    return new_rows * (middle / largest[0]), new_columns * (middle / largest[1])


def moved_factor(q: torch.Tensor, a: torch.Tensor, b: torch.Tensor, rate: float) -> torch.Tensor:
    """The factor of the first side after a step."""
    if not is_whole(q):
        one, two = a.square().sum(-1, keepdim=True), b.square().sum(-1, keepdim=True)
        return q - rate * (one - two) * q / ((one + two).amax(-2, keepdim=True) + TINY)
    one, two = a @ a.mT, b @ b.mT
    return q - (rate * (one - two)).triu() / (least_norm(one + two) + TINY) @ q


def least_norm(a: torch.Tensor) -> torch.Tensor:
    """A lower bound of the spectral norm of symmetric matrices, near to it: one step of the power iteration from the
    longest column."""
    largest = a.abs().amax((-2, -1), keepdim=True)
    a = a / torch.where(largest > 0, largest, 1.0)
    at = a.square().sum(-2, keepdim=True).argmax(-1, keepdim=True)
    x = a @ a.gather(-1, at.expand(*a.shape[:-1], 1))
    length = x.norm(dim=-2, keepdim=True).clamp(min=TINY)
    bound: torch.Tensor = largest * (a @ (x / length)).norm(dim=-2, keepdim=True)
    return bound


def whitened(m: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """The gradient between the squares of both factors."""
    left = times(transposed(rows), times(rows, m))
    return times(transposed(columns), times(columns, left.mT)).mT
