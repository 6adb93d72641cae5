"""Whether two things are the same: to the bit, or to a tolerance."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def same(a: Any, b: Any) -> bool:
    """Whether nested dictionaries, lists and tuples are of the same kinds, in the same order, with the same bits.

    Parameters and tensors are one kind, and so are dictionaries of all classes.
    """
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and _form(a) == _form(b) and _bits(a) == _bits(b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, complex):
        return isinstance(b, complex) and same(a.real, b.real) and same(a.imag, b.imag)
    return type(a) is type(b) and (a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b)))


def _form(x: Tensor) -> tuple[object, ...]:
    return x.dtype, x.shape, x.layout, x.device


def _bits(x: Tensor) -> bytes:
    dense = x.detach().to_dense() if x.layout != torch.strided else x.detach()
    return dense.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def assert_close(ours: Iterable[Tensor], theirs: Iterable[Tensor], rtol: float, atol: float | None = None) -> None:
    """As many tensors, of the same dtypes and shapes, whose numbers are as near; the absolute tolerance is the relative
    one where none is given."""
    atol = rtol if atol is None else atol
    torch.testing.assert_close(list(ours), list(theirs), rtol=rtol, atol=atol)
