"""Tensors of a launch that share every number of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

__all__ = ["SharedNumbers", "size_along"]


@dataclass
class SharedNumbers:
    """Tensors of a launch that share every number: one evaluation of the host's scalars serves them all."""

    group: int
    members: list[int]
    step: float
    is_new: bool
    slots: list[float]
    shape: tuple[int, ...]
    dtype: torch.dtype
    scalars: tuple[float, ...] = field(default=())
    updates: tuple[float, ...] = field(default=())

    def size(self, dim: int | str | None) -> float:
        return size_along(self.shape, self.dtype, dim)


def size_along(shape: Sequence[int], dtype: torch.dtype, dim: int | str | None) -> float:
    """What a rule asks of a parameter: its extent along a dimension, how many elements it has, or its dtype's eps."""
    if dim == "eps":
        return float(torch.finfo(dtype).eps)
    return float(math.prod(shape) if dim is None else shape[int(dim)])
