"""Numbers for each row or column of the matrices of a launch: where they stand, and how they are brought together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from steprule.rule.expression import Level
from steprule.rule.program import Program

from .tables import IntTable
from .upload import upload

__all__ = ["PLACE", "Lines", "Pieces", "matrix_chunks"]

PLACE = ("width", "height", "firstrow", "firstinside", "firstcolumn", "firstpiece", "matrices")
"""Where a chunk of whole rows lies: the extents of its tensor's matrices; the number of its first row among all rows of
the launch, and within its matrix; that of its first matrix's first column among all columns of the launch; where its
parts of sums over columns begin; and of how many matrices it has some rows."""


def matrix_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """How many matrices the last two dimensions are, and how many rows and columns each has."""
    return math.prod(shape[:-2]), shape[-2], shape[-1]


class Side:
    """All rows of T tensors in one line, or all columns, channels or matrices.

    What belongs to what is written down when it is first asked for: there may be as many matrices as elements.

    Args:
        counts: how many of them each tensor has.
        parts: in how many matrices they stand (and channels, in the order of memory), for each tensor.
        device: where the numbers are.
    """

    def __init__(self, counts: IntTable, parts: Mapping[Level, IntTable], device: torch.device) -> None:
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        self.total = int(self.starts[-1])
        self.counts, self.parts, self.device = counts, parts, device
        self.known: dict[tuple[str, Level | None], torch.Tensor] = {}

    def tensors(self) -> list[torch.Tensor]:
        """Everything that is read on the device."""
        return list(self.known.values())

    def within(self, level: Level) -> torch.Tensor:
        """The number of each line's matrix or channel; that of its tensor, if it stands in none."""
        many = self.parts.get(level)
        key = ("within", None if many is None else level)
        if key not in self.known:
            if many is None:
                found = np.repeat(np.arange(len(self.counts), dtype=np.int32), self.counts)
            else:
                found = np.repeat(np.arange(many.sum(), dtype=np.int32), self.extents(many))
            self.known[key] = upload(found, self.device)
        return self.known[key]

    def lengths(self, level: Level) -> torch.Tensor:
        """How many lines each matrix or channel has."""
        key = ("lengths", level)
        if key not in self.known:
            self.known[key] = upload(self.extents(self.parts[level]), self.device)
        return self.known[key]

    def extents(self, many: IntTable) -> IntTable:
        return np.repeat(self.counts // np.maximum(many, 1), many)

    def expand(self, values: torch.Tensor, level: Level) -> torch.Tensor:
        """What is one number for each tensor, matrix or channel, for each line."""
        return values[self.within(level)] if values.ndim else values

    def reduce(self, kind: str, values: torch.Tensor, level: Level) -> torch.Tensor:
        """What is one number for each line, reduced over the lines of each matrix or channel."""
        lengths = self.lengths(level)
        if not self.total:
            return values.new_zeros(len(lengths))
        parts = values.abs() if kind == "max_abs" else values.square() if kind == "sum_of_squares" else values
        how = "max" if kind == "max_abs" else "sum"
        joined: torch.Tensor = torch.segment_reduce(parts, how, lengths=lengths, unsafe=True, initial=0.0)
        return joined


class Lines:
    """The tables of a launch that have one number for each row or column.

    Args:
        program: what is run.
        params: the T parameters, of at least two dimensions.
        dtypes: those of the Program's slots of rows and columns.
        dtype: that of the arithmetic.

    Attributes:
        sums: what reductions over a dimension gave, in float64.
        read: what the passes read, in the dtype of the arithmetic.
        kept: the slots, in their dtypes.
        views: each tensor's part of each slot.
    """

    def __init__(
        self, program: Program, params: Sequence[torch.Tensor], dtypes: Sequence[torch.dtype], dtype: torch.dtype
    ) -> None:
        device = params[0].device
        shapes = [matrix_shape(p.shape) for p in params]
        self.shapes = np.asarray(shapes, np.int64)
        matrices, rows, columns = self.shapes.T
        channels = np.asarray([p.shape[0] for p in params], np.int64)
        self.sides = {
            Level.ROW: Side(matrices * rows, {Level.MATRIX: matrices, Level.CHANNEL: channels}, device),
            Level.COLUMN: Side(matrices * columns, {Level.MATRIX: matrices}, device),
            Level.CHANNEL: Side(channels, {}, device),
            Level.MATRIX: Side(matrices, {}, device),
        }
        self.sums = [self.table(r.level, torch.float64, device) for r in program.sums]
        self.read = [self.table(level, dtype, device) for level in program.lines]
        slots = program.line_slots
        self.kept = [self.table(slot.level, of, device) for slot, of in zip(slots, dtypes, strict=True)]
        self.views = [
            [self.part(table, slot.level, i).view(slot.shape(p.shape)) for i, p in enumerate(params)]
            for slot, table in zip(slots, self.kept, strict=True)
        ]

    def table(self, level: Level, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.zeros(self.sides[level].total, dtype=dtype, device=device)

    def tensors(self) -> list[torch.Tensor]:
        """Everything that is read or written on the device."""
        sides = [tensor for side in self.sides.values() for tensor in side.tensors()]
        return [*self.sums, *self.read, *self.kept, *sides]

    def part(self, table: torch.Tensor, level: Level, i: int) -> torch.Tensor:
        """What of a table belongs to a tensor."""
        starts = self.sides[level].starts
        return table[int(starts[i]) : int(starts[i + 1])]

    def broadcast(self, table: torch.Tensor, level: Level, i: int, shape: Sequence[int]) -> torch.Tensor:
        """A tensor's part of a table in a shape that goes with the tensor's."""
        part = self.part(table, level, i)
        return part.view(*shape[:-1], 1) if level is Level.ROW else part.view(*shape[:-2], 1, shape[-1])


@dataclass(frozen=True)
class Pieces:
    """Where the parts of sums over columns stand, and where they are joined: for each tensor that has any, the begin of
    its parts, that of its columns, and its matrices, parts of a matrix, and columns."""

    total: int
    tensors: dict[int, tuple[int, int, int, int, int]]

    def join(self, kind: str, parts: npt.NDArray[np.float64], table: npt.NDArray[np.float64]) -> None:
        """Bring the parts together, in their order."""
        for begin, column, matrices, count, width in self.tensors.values():
            own = parts[begin : begin + matrices * count * width].reshape(matrices, count, width)
            joined = own.max(axis=1) if kind == "max_abs" else own.sum(axis=1)
            table[column : column + matrices * width] = joined.ravel()


def matrix_chunks(lines: Lines, limit: int, least: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Pieces]:
    """Cut matrices into chunks of whole rows.

    Args:
        lines: which matrices there are.
        limit: the number of elements of a chunk at most, where it has more rows than ``least``.
        least: the number of rows of a chunk at least, where its matrix has as many.

    Returns:
        int64 of shape (chunks, 4), as :func:`steprule.kernels.tables.chunk_table` gives; of shape (chunks, 7), their
        :data:`PLACE`; and where the parts of sums over columns belong.
    """
    rows, columns = lines.sides[Level.ROW].starts, lines.sides[Level.COLUMN].starts
    chunks, places = [np.empty((0, 4), np.int64)], [np.empty((0, len(PLACE)), np.int64)]
    tensors: dict[int, tuple[int, int, int, int, int]] = {}
    total = 0
    for tensor, (matrices, height, width) in enumerate(lines.shapes.tolist()):
        if not matrices * height * width:
            continue
        tall = min(height, max(limit // width, least))
        parts = -(-height // tall)
        tall = -(-height // parts)
        parts = -(-height // tall)
        together = max(1, limit // (height * width)) if parts == 1 else 1
        matrix, part = (x.ravel() for x in np.mgrid[0:matrices:together, 0:parts])
        inside = part * tall
        held = np.minimum(together, matrices - matrix)
        offset = (matrix * height + inside) * width
        count = np.minimum(tall, height - inside) * held * width
        ones = np.ones_like(matrix)
        chunks.append(np.stack([tensor * ones, offset, offset, count], axis=1))
        first = [rows[tensor] + matrix * height + inside, inside, columns[tensor] + matrix * width]
        piece = total + (matrix * parts + part) * width
        places.append(np.stack([width * ones, height * ones, *first, piece, held], axis=1))
        tensors[tensor] = (total, int(columns[tensor]), matrices, parts, width)
        total += matrices * parts * width
    return np.concatenate(chunks), np.concatenate(places), Pieces(total, tensors)
