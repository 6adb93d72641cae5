"""Functions of whole matrices between passes: what they are given as stacks, and what becomes of their results."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from steprule.rule.program import FIRST_SLOT, Matrix, Program, Source
from steprule.rule.slot import Slot

__all__ = ["Matrices"]


@dataclass(frozen=True)
class Piece:
    """A block of a parameter's matrix: which parameter, which block of it, and which rows and columns it has."""

    member: int
    index: int | None
    rows: slice
    columns: slice

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    def of_array(self, matrix: torch.Tensor) -> torch.Tensor:
        return matrix[self.rows, self.columns]

    def of_table(self, table: torch.Tensor, slot: Slot) -> torch.Tensor:
        whole = table if self.index is None else table[self.index]
        rows, columns = slot.extents(self.shape)
        return whole[:rows, :columns]


class Matrices:
    """The matrix functions of a launch.

    Args:
        program: whose.
        params: the T parameters.
        names: what a person calls them.
        tables: for each slot that is a table, those of the parameters.
        dtype: that of the arithmetic.

    Attributes:
        operands: for each operand of a matrix function, the matrices of the parameters; until there are any, the
            parameters stand in their place.
    """

    def __init__(
        self,
        program: Program,
        params: Sequence[torch.Tensor],
        names: Sequence[str],
        tables: Sequence[Sequence[torch.Tensor]],
        dtype: torch.dtype,
    ) -> None:
        self.program, self.params, self.names, self.tables = program, params, names, tables
        first = FIRST_SLOT + len(program.slots)
        own = enumerate(program.temporary_dtypes, first)
        self.dtypes = {operand: getattr(torch, name) if name else dtype for operand, name in own}
        self.dtype = dtype
        self.drop()

    def drop(self) -> None:
        """Let go of what stands between passes."""
        self.operands: dict[int, list[torch.Tensor]] = {operand: list(self.params) for operand in self.dtypes}
        self.stacks: dict[tuple[int, tuple[int, ...]], torch.Tensor] = {}
        self.made: dict[int, list[torch.Tensor]] = {}

    def shape(self, i: int) -> tuple[int, int]:
        """A parameter's matrix: its first dimension, and everything else.

        Raises:
            RuntimeError: it is none.
        """
        p = self.params[i]
        if p.ndim < 2 or p.is_complex():
            raise RuntimeError(
                f"{self.program.name} works on whole real matrices, but parameter {self.names[i]} is "
                f"{p.dtype} of shape {tuple(p.shape)}; give it to another optimizer"
            )
        return p.shape[0], p.numel() // max(p.shape[0], 1)

    def make_room(self, step: Matrix) -> None:
        """Stacks for what the pass before writes."""
        for source in step.inputs:
            if source.kind == "array" and source.written:
                shapes: dict[tuple[int, int], list[int]] = {}
                for i in range(len(self.params)):
                    shapes.setdefault(self.shape(i), []).append(i)
                for shape, members in shapes.items():
                    dtype = self.dtypes[source.index]
                    stack = torch.empty(len(members), *shape, dtype=dtype, device=self.params[0].device)
                    self.place(source.index, members, stack)

    def place(self, operand: int, members: Sequence[int], stack: torch.Tensor) -> None:
        """Let an operand's matrices be those of a stack."""
        self.stacks[operand, tuple(members)] = stack
        for i, matrix in zip(members, stack, strict=True):
            self.operands[operand][i] = matrix

    def run(self, step: Matrix, numbers: Callable[[Matrix], dict[int, tuple[float, ...]]]) -> None:
        """Call a function, once for all matrices of a shape that are given the same numbers."""
        given = numbers(step)
        calls: dict[Any, list[Piece]] = {}
        for i in range(len(self.params)):
            if step.due and not given[i][-1]:
                self.keep(step, i)
                continue
            own = given[i][: len(given[i]) - step.due]
            for piece in pieces(i, self.shape(i), step.block):
                calls.setdefault((piece.shape, own), []).append(piece)
        for (shape, own), those in calls.items():
            stacks = [self.stack(source, those, step) for source in step.inputs]
            results = in_batches(step, stacks, own)
            self.take(step, those, shape, results if isinstance(results, (tuple, list)) else (results,))

    def stack(self, source: Source, those: Sequence[Piece], step: Matrix) -> torch.Tensor:
        """What a function is given of some matrices, which it may overwrite."""
        if source.kind == "array":
            whole = self.stacks.get((source.index, tuple(piece.member for piece in those)))
            if source.written and whole is not None and step.block is None:
                return whole
            return torch.stack([piece.of_array(self.matrix(source.index, piece.member)) for piece in those])
        slot = self.program.tables[source.slot]
        found = self.tables[source.index] if source.kind == "slot" else self.made[source.index]
        stack = torch.stack([piece.of_table(found[piece.member], slot) for piece in those])
        return stack.to(getattr(torch, step.dtype) if step.dtype else self.dtype)

    def matrix(self, operand: int, i: int) -> torch.Tensor:
        return self.operands[operand][i].reshape(self.shape(i))

    def take(self, step: Matrix, those: Sequence[Piece], shape: tuple[int, int], results: Sequence[Any]) -> None:
        """Keep what a function returned.

        Raises:
            RuntimeError: it has another shape than was said.
        """
        wanted = [shape if r.kind == "array" else self.program.tables[r.slot].extents(shape) for r in step.results]
        found = [tuple(r.shape) for r in results]
        expected = [(len(those), *extents) for extents in wanted]
        if found != expected:
            returned, needed = (", ".join(map(str, shapes)) for shapes in (found, expected))
            raise RuntimeError(
                f"{step.function.__name__} was given stacks of {len(those)} matrices of shape {shape} and returned "
                f"{returned} where {needed} is needed; a matrix function keeps the shape, or says in returns= "
                "what its results are like"
            )
        for result, values in zip(step.results, results, strict=True):
            if result.kind == "array":
                self.take_array(result.index, those, values, step)
            else:
                self.take_table(result, those, values)

    def take_array(self, operand: int, those: Sequence[Piece], values: torch.Tensor, step: Matrix) -> None:
        if step.block is None:
            self.place(operand, [piece.member for piece in those], values.to(self.dtypes[operand]).contiguous())
            return
        for piece, value in zip(those, values, strict=True):
            known = self.operands[operand][piece.member]
            if known is self.params[piece.member]:
                known = self.params[piece.member].new_empty(self.shape(piece.member), dtype=self.dtypes[operand])
                self.operands[operand][piece.member] = known
            piece.of_array(known).copy_(value)

    def take_table(self, result: Source, those: Sequence[Piece], values: torch.Tensor) -> None:
        slot = self.program.tables[result.slot]
        made = self.made.setdefault(result.index, [None] * len(self.params))  # type: ignore[list-item]
        for piece, value in zip(those, values, strict=True):
            if made[piece.member] is None:
                made[piece.member] = torch.zeros_like(self.tables[result.slot][piece.member])
            piece.of_table(made[piece.member], slot).copy_(value)

    def keep(self, step: Matrix, i: int) -> None:
        """A function is not due: its results are what they were."""
        for result in step.results:
            made = self.made.setdefault(result.index, [None] * len(self.params))  # type: ignore[list-item]
            made[i] = self.tables[result.slot][i]

    def commit(self, skipped: torch.Tensor | None = None) -> None:
        """The step is done: the slots get their new values, unless it was ``skipped`` (not zero)."""
        values = {slot: self.made[made] for slot, made in self.program.kept_tables if made in self.made}
        for slot, made in values.items():
            for table, value in zip(self.tables[slot], made, strict=True):
                if value is not table:
                    table.copy_(value if skipped is None else torch.where(skipped != 0, table, value))


BATCH = 2**26
"""Elements that a function is given at a time, where what it returns may take their place: it needs room of its own."""


def in_batches(step: Matrix, stacks: Sequence[torch.Tensor], numbers: Sequence[float]) -> Any:
    """What a function makes of stacks."""
    whole = stacks[0]
    most = max(1, BATCH // max(1, math.prod(whole.shape[1:])))
    if len(stacks) > 1 or not step.in_place or len(whole) <= most:
        return step.function(*stacks, *numbers)
    for part in whole.split(most):  # type: ignore[no-untyped-call]
        result = step.function(part, *numbers)
        [values] = result if isinstance(result, (tuple, list)) else [result]
        if values.shape != part.shape:
            return result  # which is refused
        part.copy_(values)
    return whole


def pieces(member: int, shape: tuple[int, int], block: int | None) -> list[Piece]:
    """The blocks of a matrix, row by row of them; the whole of it where there is one."""
    rows, columns = (cuts(extent, block) for extent in shape)
    count = len(rows) * len(columns)
    return [
        Piece(member, None if count == 1 else k, r, c) for k, (r, c) in enumerate((r, c) for r in rows for c in columns)
    ]


def cuts(extent: int, block: int | None) -> list[slice]:
    size = extent if block is None else min(block, extent)
    return [slice(start, min(start + size, extent)) for start in range(0, extent, max(size, 1))] or [slice(0, 0)]
