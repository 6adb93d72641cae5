"""Tensors, parameters and gradients that depend on a seed alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def normal(
    *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu", size: float = 1.0
) -> Tensor:
    """Random numbers of this size, of every dtype and on every device alike."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return (size * torch.randn(shape, generator=generator, dtype=wide)).to(dtype).to(device)


def parameters(
    shapes: Iterable[Sequence[int]], dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> list[Tensor]:
    """Parameters of these shapes; the same numbers at every call."""
    return [normal(*shape, seed=i, dtype=dtype, device=device).requires_grad_() for i, shape in enumerate(shapes)]


def give_gradients(params: Iterable[Tensor], step: int, size: float = 1.0) -> None:
    """New tensors for the gradients, as zero_grad() and backward() leave them; other numbers at every step."""
    for i, p in enumerate(params):
        p.grad = normal(*p.shape, seed=100 * (step + 1) + i, dtype=p.dtype, size=size).to(p.device)


def grad_of(p: Tensor) -> Tensor:
    """A parameter's gradient, which is there."""
    assert p.grad is not None
    return p.grad


def leaf(value: Tensor, grad: Tensor | None = None) -> Tensor:
    """A parameter that is this tensor, with this gradient."""
    p = value.detach().requires_grad_()
    if grad is not None:
        give(p, grad)
    return p


def give(p: Tensor, grad: Tensor | None) -> None:
    """Set a gradient, of another dtype too, or none."""
    if grad is not None and grad.dtype != p.dtype:
        p.grad = None
        p.grad_dtype = None
    p.grad = grad


def weight(*shape: int, value: float = 1.0, grad: float | None = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    """A parameter of one number, three times unless a shape is given, whose gradient is one number too."""
    p = torch.full(shape or (3,), value, dtype=dtype, requires_grad=True)
    if grad is not None:
        p.grad = torch.full_like(p, grad)
    return p


def coo(rows: Any, values: Tensor, shape: Sequence[int], **flags: Any) -> Tensor:
    """A sparse tensor: these values in these rows, or at these indices of more dimensions, which may repeat."""
    index = torch.as_tensor(np.atleast_2d(np.asarray(rows, dtype=np.int64)), device=values.device)
    return torch.sparse_coo_tensor(index, values, tuple(shape), check_invariants=True, **flags)
