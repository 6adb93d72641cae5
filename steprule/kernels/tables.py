"""Launch tables: how the work of a launch is cut into chunks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["CHUNK", "IntTable", "chunk_table", "row_chunks"]

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
