"""Launch tables: where the tensors of a launch lie, and how the work is cut into chunks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["CHUNK", "IntTable", "chunk_table", "dense", "like", "materialized", "row_chunks", "same_layout"]

IntTable = npt.NDArray[np.int64]

CHUNK = 16384
"""Elements of a chunk at most: a few pages of each operand, so that any mix of sizes spreads evenly."""


def chunk_table(sizes: Sequence[int], limit: int = CHUNK) -> IntTable:
    """Cut tensors into chunks.

    Args:
        sizes: the number of elements of each tensor.
        limit: the number of elements of a chunk at most.

    Returns:
        int64 of shape (chunks, 4): tensor, offset of parameter and state, offset of gradient, count. In ascending
        order; an empty tensor has no chunk.
    """
    lengths = np.asarray(sizes, np.int64)
    counts = -(-lengths // limit)
    tensor = np.repeat(np.arange(len(lengths)), counts)
    first = np.cumsum(counts) - counts
    offset = (np.arange(len(tensor)) - first[tensor]) * limit
    return np.stack([tensor, offset, offset, np.minimum(limit, lengths[tensor] - offset)], axis=1)


def row_chunks(tensor: int, rows: IntTable, width: int, limit: int = CHUNK) -> IntTable:
    """The chunks of a gradient that holds only some rows of a parameter.

    Args:
        tensor: the number of the tensor.
        rows: the rows present, ascending and unique; row ``i`` of the gradient belongs to row ``rows[i]``.
        width: elements of a row.
        limit: the number of elements of a chunk at most.

    Returns:
        int64 of shape (chunks, 4), as :func:`chunk_table` gives; neighbouring rows share a chunk.
    """
    if len(rows) == 0 or width == 0:
        return np.empty((0, 4), np.int64)
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    starts = np.concatenate([[0], breaks])
    stops = np.concatenate([breaks, [len(rows)]])
    table = chunk_table((stops - starts) * width, limit)
    run = table[:, 0]
    table[:, 1] += rows[starts[run]] * width
    table[:, 2] += starts[run] * width
    table[:, 0] = tensor
    return table


def dense(tensor: torch.Tensor) -> bool:
    """Whether a strided tensor's elements fill one piece of memory, in any order of its dimensions.

    >>> dense(torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)), dense(torch.zeros(4, 4)[:, ::2])
    (True, False)
    """
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, extent in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if extent == 1:
            continue
        if stride != expected:
            return False
        expected *= extent
    return expected == math.prod(tensor.shape)


def materialized(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` itself if its memory holds its values, else (a conjugate or negative view, a tensor of zeros that has
    no memory) a copy of which that is true."""
    tensor = tensor.resolve_conj().resolve_neg()
    return tensor.clone() if tensor._is_zerotensor() else tensor


def same_layout(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors of one shape put equal indices at equal offsets."""
    if a.stride() == b.stride():
        return True
    return all(n == 1 or s == t for n, s, t in zip(a.shape, a.stride(), b.stride(), strict=True)) or a.numel() == 0


def like(tensor: torch.Tensor, param: torch.Tensor) -> torch.Tensor:
    """``tensor`` itself if it lies in memory as ``param`` does, else a copy that does."""
    if same_layout(tensor, param):
        return tensor
    return torch.empty_strided(param.shape, param.stride(), dtype=tensor.dtype, device=tensor.device).copy_(tensor)
