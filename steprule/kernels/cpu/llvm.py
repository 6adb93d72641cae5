"""Runs a Program as machine code on the CPU."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch

from steprule.kernels.entry import Entry, Group
from steprule.kernels.launch import Launch
from steprule.kernels.layout import materialized, real
from steprule.kernels.overlaps import fault
from steprule.kernels.row_tables import matrix_chunks
from steprule.kernels.slots import computed_in
from steprule.kernels.tables import CHUNK, chunk_table, row_chunks
from steprule.rule.expression import Level
from steprule.rule.program import GRAD, OF_ITS_OWN, Program

from .pool import ALONE, run_on_threads
from .source import TABLES, assembly

__all__ = ["LLVMLaunch"]

NAMES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.bfloat16: "bfloat",
    torch.float16: "half",
    torch.complex64: "float",
    torch.complex128: "double",
    torch.int8: "i8 int8",
    torch.uint8: "i8 uint8",
}

WHOLE = {torch.int8: "i8 whole", torch.int16: "i16 whole"}
"""What operands are that hold whole numbers, not codes."""
LIMIT = 4 * CHUNK
"""Elements of a chunk of whole rows at most, ..."""
ROWS = 64
"""... but for so many rows, for each chunk keeps its own sums over columns until they are joined."""


class LLVMLaunch(Launch):
    """Runs all tensors with machine code, a chunk at a time, on as many threads as torch uses."""

    backend = "llvm"

    def __init__(self, program: Program, entries: Sequence[Entry], groups: Sequence[Group], reason: str) -> None:
        super().__init__(program, entries, groups, reason)
        self.reduces = any(phase.reductions or phase.sums for phase in program.phases)
        self.patient = self.may_leave_out(program, entries[0])
        count = len(entries)
        self.arithmetic = computed_in(self.params[0].dtype)
        kind = NAMES[self.arithmetic]
        temporaries = [getattr(torch, name) if name else self.arithmetic for name in program.temporary_dtypes]
        dtypes = [
            self.params[0].dtype,
            self.grad_dtype,
            *(slot[0].dtype for slot in self.slots),
            *temporaries,
        ]
        whole = self.whole_operand
        self.types = tuple(WHOLE[d] if o == whole else NAMES[d] for o, d in enumerate(dtypes))
        from .machine import code_of  # not before there is something to compile: LLVM takes a while to load

        self.code = code_of(program, self.types, kind)  # which must live for as long as it is run
        self.kernels = self.code.passes
        self.pointers = np.zeros((program.operands + len(self.scales), count), np.int64)
        self.pointers[0] = self.param_pointers
        for k, pointers in enumerate(self.slot_pointers):
            self.pointers[2 + k] = pointers
        for k, scales in enumerate(self.scales, program.operands):
            self.pointers[k] = list(map(torch.Tensor.data_ptr, scales))
        self.scalars = np.zeros((count, len(program.scalars)))
        self.pack = partial(struct.Struct(f"{len(program.scalars)}d").pack_into, self.scalars.data, 0)
        self.table = np.zeros((program.table_rows, count))
        self.adopt_reduced(torch.from_numpy(self.table), groups)
        for k, name in enumerate(program.inputs):
            if name in OF_ITS_OWN:
                self.table[k] = self.own_numbers(name)
        self.counter = np.zeros(1, np.int64)
        self.strange = self.strange_grads()
        self.grads_at: list[int] = []
        self.stands_in: list[torch.Tensor] | None = None
        self.sort_rows()
        self.frames: list[Any] = []
        self.places = self.line_pointers = self.sum_pointers = np.zeros(0, np.int64)
        if program.by_lines:
            self.lay_rows()
        else:
            self.lay(chunk_table([e.numel for e in entries]))

    @staticmethod
    def may_leave_out(program: Program, first: Entry) -> bool:
        return program.elementwise and first.grad_look is not None and first.part is None

    def sort_rows(self) -> None:
        """Note which tensors share their numbers, none of which are in the table yet."""
        self.written: tuple[float, ...] | None = None
        """What the table holds where all tensors share their numbers."""
        self.row_of = np.zeros(len(self.entries), np.intp)
        for k, row in enumerate(self.rows):
            self.row_of[row.members] = k

    def take_up(self, groups: Sequence[Group]) -> bool:
        if not super().take_up(groups):
            return False
        self.sort_rows()
        self.adopt_reduced(torch.from_numpy(self.table), groups)
        return True

    def filled(self, grads: Sequence[Any]) -> Sequence[Any]:
        if not self.patient:
            return grads
        if self.stands_in is None:
            self.stands_in = [entry.stand_in() for entry in self.entries]
        return [other if g is None else g for g, other in zip(grads, self.stands_in, strict=True)]

    def wake(self) -> None:
        """Some will be updated and some not, from here on: whose numbers are the same is found out at each step."""
        if self.fresh is None:
            self.fresh = np.zeros(len(self.entries), bool)
            self.fresh[[i for row in self.rows if row.is_new for i in row.members]] = True
        if self.missed is None:
            self.missed = np.zeros(len(self.entries), np.int64)
        self.written, self.grads_at = None, []

    @property
    def source(self) -> str:
        """The LLVM IR, before LLVM has optimized it."""
        return assembly(self.program, self.types, NAMES[self.arithmetic])

    def lay(self, chunks: Any) -> None:
        """Take a chunk table and prepare the frames that point at all tables."""
        self.chunks = np.ascontiguousarray(chunks)
        count = len(self.chunks)
        self.elements = int(self.chunks[:, 3].sum())
        present, self.starts = np.unique(self.chunks[:, 0], return_index=True)
        tensors = self.pointers.shape[1]
        self.present = slice(None) if len(present) == tensors else present
        self.partials = [np.zeros((count, len(phase.reductions))) for phase in self.program.phases]
        self.batch = max(1, min(count // 32, 8))
        self.frames = []
        for partials in self.partials:
            tables = {
                "pointers": self.pointers,
                "chunks": self.chunks,
                "scalars": self.scalars,
                "partials": partials,
                "reduced": self.table,
                "counter": self.counter,
                "places": self.places,
                "lines": self.line_pointers,
                "sums": self.sum_pointers,
            }
            numbers = (tensors, count, self.batch)
            self.frames.append(np.asarray([*(tables[name].ctypes.data for name in TABLES), *numbers], np.int64))
        self.addresses = [frame.ctypes.data for frame in self.frames]

    def lay_rows(self) -> None:
        """Lay chunks of whole rows, and give each its place for what is known or reduced of rows and columns."""
        chunks, self.places, self.pieces = matrix_chunks(self.lines, LIMIT, ROWS)
        columns = [r.level is Level.COLUMN for r in self.program.sums]
        self.parts = [np.zeros(self.pieces.total if column else 0) for column in columns]
        own = zip(self.lines.sums, self.parts, columns, strict=True)
        self.sum_pointers = np.asarray([p.ctypes.data if c else s.data_ptr() for s, p, c in own], np.int64)
        self.line_pointers = np.asarray([line.data_ptr() for line in self.lines.read], np.int64)
        self.lay(chunks)

    def advance(self, groups: Any) -> None:
        super().advance(groups)
        rows = self.rows
        if len(rows) > 1:
            shape = len(rows), len(self.program.scalars)
            numbers = np.fromiter(chain.from_iterable([row.scalars for row in rows]), np.float64, math.prod(shape))
            self.send_numbers(numbers.reshape(shape)[self.row_of])
        else:
            shared = rows[0].scalars
            if shared != self.written or 0.0 in shared:  # which is -0.0 as well
                self.send_shared(shared)
                self.written = shared
        if self.program.inputs:
            for k, name in enumerate(self.program.inputs):
                if name not in OF_ITS_OWN:
                    self.table[k] = float(self.inputs[name])
        if self.sparse:
            self.take_rows()
            return
        pointers = self.grad_pointers(self.strange)
        if pointers != self.grads_at:
            if 0 in pointers:
                self.refuse_grads_without_memory()
            self.send_gradients(pointers)
            self.grads_at = pointers

    def send_numbers(self, table: Any) -> None:
        """Write the scalars of all tensors into their table."""
        self.scalars[:] = table

    def send_shared(self, numbers: tuple[float, ...]) -> None:
        """Write the scalars that all tensors share into their table."""
        self.pack(*numbers)  # a fourth of the time in which numpy makes an array of them
        if len(self.scalars) > 1:
            self.scalars[1:] = self.scalars[0]

    def send_gradients(self, pointers: list[int]) -> None:
        """Write where the gradients lie into the table of operands."""
        self.pointers[GRAD] = pointers

    def take_rows(self) -> None:
        """Lay chunks over the rows that sparse gradients hold."""
        tables = []
        values = []
        for i, p in enumerate(self.params):
            grad = self.grads[i].coalesce()
            depth = grad.sparse_dim()
            extents = p.shape[:depth]
            rows = np.zeros(grad._nnz(), np.int64)
            if depth and len(rows):
                rows = np.ravel_multi_index(tuple(grad.indices().numpy()), extents)
            width = real(p).numel() // max(int(np.prod(extents)), 1)
            tables.append(row_chunks(i, rows.astype(np.int64), width))
            if wrong := fault(grad.values(), written=False):
                raise RuntimeError(
                    f"the gradient of parameter {self.entries[i].name} {wrong}; replace it with a tensor "
                    "that has memory of its own"
                )
            values.append(materialized(grad.values()).contiguous())
        self.grads = values
        self.pointers[GRAD] = [v.data_ptr() for v in values]
        self.lay(np.concatenate(tables))

    def run(self, stage: int) -> None:
        if self.matrices.operands:
            for k, tensors in enumerate(self.temporaries):
                self.pointers[2 + len(self.slots) + k] = list(map(torch.Tensor.data_ptr, tensors))
        self.counter[0] = 0
        if self.elements < ALONE:
            self.kernels[stage](self.addresses[stage])
        else:
            run_on_threads(self.kernels[stage], self.addresses[stage], -(-len(self.chunks) // self.batch))
        if not self.reduces:
            return
        for k, (row, _) in enumerate(self.program.phases[stage].reductions):
            self.gather(row, self.partials[stage][:, k])
        for k, _ in self.program.phases[stage].sums:
            if len(self.parts[k]):
                self.pieces.join(self.program.sums[k].kind, self.parts[k], self.lines.sums[k].numpy())

    def gather(self, row: int, partials: Any) -> None:
        """Bring the chunks' parts of a reduction together, in the order of the chunks."""
        self.table[row] = 0.0
        if len(partials):
            kind = self.program.reductions[row - len(self.program.inputs)].kind
            join = np.maximum if kind == "max_abs" else np.add
            self.table[row, self.present] = join.reduceat(partials, self.starts)

    def total(self, row: int) -> Any:
        kind = self.program.reductions[row - len(self.program.inputs)].kind
        return float(self.table[row].max() if kind == "max_abs" else self.table[row].sum())

    def put(self, row: int, value: Any) -> None:
        self.table[row] = float(value)

    def put_each(self, row: int, values: torch.Tensor) -> None:
        self.table[row] = values.numpy()

    def reduced(self, row: int) -> Any:
        return torch.from_numpy(self.table[row].copy())

    def column(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.scalars[:, index])
