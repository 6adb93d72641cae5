"""How a GPU cuts matrices into tiles, and where the sums over their rows and columns go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from steprule.kernels.tables import IntTable

__all__ = ["PLACE", "Joins", "Tile", "Tiling", "tile_for"]

ELEMENTS = 2048
"""Elements of a tile."""
SPAN = 2**14
"""Elements of a chunk at most: it is a tile, or several beside each other."""
NARROW = 64
"""Columns of a tile where there are as many, which are read together."""

PLACE = (
    *("width", "height", "tall", "held", "begin", "stop"),
    *("firstrow", "firstcolumn", "rowpart", "columnpart"),
)
"""Where a chunk lies: the extents of its tensor's matrices; how many rows it has of a matrix, and of how many matrices;
its first column and the one behind its last; the number of its first row among all rows of the launch, and that of its
first matrix's first column among all columns; where its sums over each row go, and those over columns."""


class Tile(NamedTuple):
    """What a program works on at a time: some columns of some rows, of one matrix or of several small ones."""

    many: int
    rows: int
    columns: int


def tile_for(height: int, width: int, elements: int = ELEMENTS) -> Tile:
    """The tile for matrices of these extents: of few kinds, for each is compiled.

    >>> [tuple(tile_for(*shape)) for shape in ((768, 3072), (20, 20), (8, 4096), (4096, 8), (1, 10**7), (3, 3), (1, 1))]
    [(1, 32, 64), (1, 32, 64), (1, 8, 256), (1, 256, 8), (1, 1, 2048), (128, 4, 4), (2048, 1, 1)]
    """

    def holding(n: int, most: int) -> int:
        return most if n > most // 4 else 1 << (n - 1).bit_length()

    columns = holding(width, min(NARROW, elements))
    rows = holding(height, elements // columns)
    columns = holding(width, elements // rows)
    return Tile(elements // (rows * columns) if height <= rows and width <= columns else 1, rows, columns)


class Joins:
    """Sums that come in parts: the first ``total`` numbers of a table are the sums, the parts stand behind them."""

    def __init__(self, total: int) -> None:
        self.total = self.size = total
        self.rows: list[IntTable] = [np.empty((0, 4), np.int64)]

    def add(self, lines: IntTable, first: IntTable, stride: int, parts: int) -> int:
        """Room for so many parts of each of some lines.

        Args:
            lines: their numbers.
            first: where the first part of each stands in the room that is made.
            stride: the distance from a part to the next.
            parts: how many each has.

        Returns:
            Where the room begins.
        """
        begin = self.size
        ones = np.ones_like(lines)
        self.rows.append(np.stack([begin + first, stride * ones, parts * ones, lines], axis=1))
        self.size += parts * len(lines)
        return begin

    @property
    def table(self) -> IntTable:
        """int64 of shape (lines, 4): where the first part of a line is, the distance to the next, how many there are,
        and where their sum goes."""
        return np.concatenate(self.rows)


class Tiling:
    """Chunks of the matrices of T tensors.

    Args:
        shapes: how many matrices each tensor has, and their rows and columns.
        elements: of a tile.
        span: elements of a chunk at most, if it has several tiles.

    Attributes:
        chunks: int64 of shape (chunks, 4), as :func:`steprule.kernels.tables.chunk_table` gives.
        places: int64 of shape (chunks, 10), their :data:`PLACE`.
        tiles: the numbers of the chunks that are cut into each kind of tile.
        counts: how many chunks each tensor has.
        row_sums: the parts of sums over each row, and where they are joined.
        column_sums: those over columns.
    """

    def __init__(self, shapes: Sequence[tuple[int, int, int]], elements: int = ELEMENTS, span: int = SPAN) -> None:
        chunks, places = [np.empty((0, 4), np.int64)], [np.empty((0, len(PLACE)), np.int64)]
        self.row_sums = Joins(sum(matrices * height for matrices, height, _ in shapes))
        self.column_sums = Joins(sum(matrices * width for matrices, _, width in shapes))
        self.counts = [0] * len(shapes)
        numbers: dict[Tile, list[IntTable]] = {}
        row = column = known = 0
        for tensor, (matrices, height, width) in enumerate(shapes):
            rows, columns = matrices * height, matrices * width
            if rows * width:
                tile = tile_for(height, width, elements)
                own = self.cut(tile, matrices, height, width, row, column, span)
                self.counts[tensor] = len(own)
                offset = (own[:, PLACE.index("firstrow")] - row) * width
                count = own[:, PLACE.index("tall")] * own[:, PLACE.index("held")] * width
                chunks.append(np.stack([np.full_like(offset, tensor), offset, offset, count], axis=1))
                places.append(own)
                numbers.setdefault(tile, []).append(known + np.arange(len(own)))
                known += len(own)
            row, column = row + rows, column + columns
        self.chunks, self.places = np.concatenate(chunks), np.concatenate(places)
        self.tiles = {tile: np.concatenate(own) for tile, own in numbers.items()}

    def cut(self, tile: Tile, matrices: int, height: int, width: int, row: int, column: int, span: int) -> IntTable:
        """The places of a tensor's chunks, whose first row and column have these numbers."""
        wide = max(tile.columns, span // (tile.many * tile.rows) // tile.columns * tile.columns)
        high, across = -(-height // tile.rows), -(-width // wide)
        matrix, block, split = (x.ravel() for x in np.mgrid[0 : matrices : tile.many, 0:high, 0:across])
        top, begin = block * tile.rows, split * wide
        firstrow, firstcolumn = row + matrix * height + top, column + matrix * width
        rowpart, columnpart = firstrow, firstcolumn
        if across > 1:
            lines = np.arange(matrices * height)
            room = self.row_sums.add(row + lines, lines, len(lines), across)
            rowpart = room + split * len(lines) + matrix * height + top
        if high > 1:
            lines = np.arange(matrices * width)
            room = self.column_sums.add(column + lines, lines // width * high * width + lines % width, width, high)
            columnpart = room + (matrix * high + block) * width
        ones = np.ones_like(matrix)
        extents = [width * ones, height * ones, np.minimum(tile.rows, height - top)]
        extents += [np.minimum(tile.many, matrices - matrix), begin, np.minimum(begin + wide, width)]
        return np.stack([*extents, firstrow, firstcolumn, rowpart, columnpart], axis=1)
