"""A Program as Triton kernels: one for each pass, over every tensor of a launch at once."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from steprule.kernels.coding import CODES
from steprule.kernels.entry import Entry, Group
from steprule.kernels.launch import Launch
from steprule.kernels.layout import materialized, real
from steprule.kernels.shared_numbers import size_along
from steprule.kernels.slots import computed_in
from steprule.kernels.tables import chunk_table
from steprule.kernels.upload import capturing, upload
from steprule.portability.torch_private import raw_stream
from steprule.rule.expression import Level
from steprule.rule.host import evaluate
from steprule.rule.program import FIRST_SLOT, GRAD, OF_ITS_OWN, Matrix, Program, Store

from . import row_tiles
from .bound import Bound
from .device_scalars import DeviceScalars, lookup
from .device_table import DeviceTable, device_row_chunks, flat_rows, keep_alive
from .rows import join_source, rows_source
from .source import NAMES, WHOLE, compiled, exact, hyper_paths, interpreting, pass_source
from .tune import DEFAULT, Block, fastest, narrow_block

__all__ = ["TritonLaunch", "unavailable"]

CHUNK = 4096
"""Elements of a chunk at most: small, so that the last round of programs leaves few of a GPU's processors idle."""
GATHER = 1024
"""Parts of a reduction that are joined at a time."""
WORTH_TUNING = 2**23
"""With fewer elements a launch takes the default block: it is done before the host has launched the next one."""
TILE, SPAN = row_tiles.ELEMENTS, row_tiles.SPAN
"""Elements of a tile of rows and columns, and of a chunk that has several."""
HERE: AbstractContextManager[Any] = nullcontext()
PARTS, LINES = 64, 64
"""How many parts of how many rows or columns are joined at a time."""
ROWS, NUMBERS = 4, 48
"""How many rows of scalars, and how many numbers in all, kernels are given by value, so that nothing is uploaded."""
SCRATCH = 2**24
"""Elements of each operand in the measurement at most: together more than a GPU's cache holds, 268 MB of AdamW's."""


@lru_cache(maxsize=1)
def installed() -> bool:
    return find_spec("triton") is not None


@lru_cache(maxsize=1)
def without_compiler() -> bool:
    """Whether Triton can't build what launches its kernels."""
    import triton

    named = os.environ.get("CC") or triton.knobs.build.impl
    return not (named or shutil.which("gcc") or shutil.which("clang"))


def unavailable(device: torch.device) -> str | None:
    """Why Triton can't serve tensors on a device, or None if it can."""
    if device.type not in ("cpu", "cuda"):
        return f"the parameter is on {device}, for which there is no compiled kernel"
    if not installed():
        return f"the parameter is on {device}, and Triton is not installed (pip install triton)"
    if device.type == "cpu":
        return None if interpreting() else "Triton runs on the CPU only with TRITON_INTERPRET=1 in the environment"
    if interpreting():
        return f"Triton's interpreter (TRITON_INTERPRET=1) can't follow pointers to the memory of {device}"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (7, 0):
        return f"Triton needs a GPU of compute capability 7.0 or more, and {device} has less"
    if without_compiler():
        return "Triton needs a C compiler, and there is neither gcc nor clang nor one that CC names"
    return None


def whole_blocks(elements: int) -> int:
    """At least so many elements, of which none shares a scale with what lies behind."""
    block = max(codes.block for codes in CODES.values())
    return -(-elements // block) * block


def on_gpu(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == "cuda"


class TritonLaunch(Launch):
    """Runs all tensors with one kernel for each pass, on the current stream, and waits for nothing.

    Step counts and scalars are the host's, until something asks for them on the device: ``capturable=True``, a
    hyperparameter that is a tensor there, a state from such a run, or GradScaler's flag.
    """

    backend = "triton"
    asynchronous = True

    def __init__(self, program: Program, entries: Sequence[Entry], groups: Sequence[Group], reason: str) -> None:
        self.device = entries[0].param.device
        self.found_on_device = False
        if capturing(self.device):
            raise RuntimeError(
                f"the first step over parameter {entries[0].name} can't be captured in a CUDA graph, since it makes "
                "state and compiles kernels: take a few steps before, with the same parameters and gradients"
            )
        super().__init__(program, entries, groups, reason)
        self.arithmetic = computed_in(self.params[0].dtype)
        temporaries = [getattr(torch, name) if name else self.arithmetic for name in program.temporary_dtypes]
        self.dtypes = [
            self.params[0].dtype,
            entries[0].grad.dtype,
            *(slot[0].dtype for slot in self.slots),
            *temporaries,
        ]
        self.by_value = 0
        """How many rows of scalars kernels are given by value; 0 where they are read from a table."""
        few = len(self.rows) <= ROWS and len(self.rows) * len(program.scalars) <= NUMBERS
        if few and not program.uses_size:  # or kernels would be compiled for each number of shapes
            self.by_value = len(self.rows) if program.scalars else 1
        self.write_kernels()
        self.make_tables(groups)
        self.sent: tuple[Any, ...] = (self.scalars.tensor,)
        """The scalars as kernels are given them."""
        self.strange = self.strange_grads()
        self.used = sorted({e.group for e in entries})
        self.paths = hyper_paths(program)
        self.found_inf: torch.Tensor | None = None
        self.live: DeviceScalars | None = None
        self.on_cpu, self.interpreted = self.device.type == "cpu", interpreting()
        self.stream: Any = None if self.on_cpu else torch.cuda.current_stream(self.device)
        self.raw_stream: int | None = getattr(self.stream, "cuda_stream", None)
        self.known_stream = self.raw_stream
        self.recording = False
        """Whether the step is captured in a CUDA graph."""
        lengths = [0 if self.sparse else e.numel for e in entries]
        self.line_tables: list[torch.Tensor] = []
        if program.by_lines:
            self.lay_rows()
        else:
            chunk = whole_blocks(CHUNK) if self.coded else CHUNK
            self.lay(upload(chunk_table(lengths, chunk), self.device), [-(-n // chunk) for n in lengths])
        self.block = self.choose_block(sum(lengths))

    def make_tables(self, groups: Sequence[Group]) -> None:
        """Lay out on the device what kernels read of all tensors: addresses, scalars, and what is reduced."""
        program, count = self.program, len(self.entries)
        pointers = np.zeros((program.operands + len(self.scales) + 1, count), np.int64)
        pointers[0] = self.param_pointers
        for k, line in enumerate(self.slot_pointers):
            pointers[FIRST_SLOT + k] = line
        for k, scales in enumerate(self.scales, program.operands):
            pointers[k] = list(map(torch.Tensor.data_ptr, scales))
        for k, row in enumerate(self.rows):
            pointers[-1, row.members] = k
        self.pointers = DeviceTable(pointers, self.device)
        self.written: list[list[int]] | None = None
        """The lines of that table which may differ from step to step, as they were sent."""
        scalars = np.zeros((0 if self.by_value else len(self.rows), len(program.scalars)))
        self.scalars = DeviceTable(scalars, self.device)
        self.table = torch.zeros(program.table_rows, count, dtype=torch.float64, device=self.device)
        self.adopt_reduced(self.table, groups)
        for k, name in enumerate(program.inputs):
            if name in OF_ITS_OWN:
                self.table[k] = upload(np.asarray(self.own_numbers(name)), self.device)

    @property
    def source(self) -> str:
        """The Triton source of all kernels."""
        return "\n\n\n".join([*self.sources, *([self.live.source] if self.live else [])])

    def write_kernels(self) -> None:
        """Make the kernels of all passes."""
        write = rows_source if self.program.by_lines else pass_source
        whole = self.whole_operand
        names = [NAMES[d] + (WHOLE if o == whole else "") for o, d in enumerate(self.dtypes)]
        kind = NAMES[self.arithmetic]
        stages = range(len(self.program.phases))
        self.sources = [write(self.program, stage, names, kind, self.by_value) for stage in stages]
        self.kernels = [compiled(source) for source in self.sources]
        self.bound: dict[Any, Bound] = {}

    # -- numbers -------------------------------------------------------------------------------------------------

    def take_up(self, groups: Sequence[Group]) -> bool:
        return False  # its numbers may live on the device

    def number(self, value: Any) -> float:
        if not on_gpu(value):
            return float(value)
        self.found_on_device = True  # where it will be used as it is
        return 0.0

    def asked_for(self, groups: Sequence[Group]) -> bool:
        """Whether something asks for numbers on the device."""
        if self.found_on_device or self.found_inf is not None:
            return True
        for i in self.used:
            group = groups[i]
            if group["capturable"]:
                return True
            for path in self.paths:
                value: Any = group
                for key in path:
                    value = value[key]
                if value.__class__ is not float and on_gpu(value):
                    return True
        return False

    def move_numbers(self) -> DeviceScalars:
        """Let step counts, scalar slots and scalars live on the device from now on."""
        table = upload(self.numbers, self.device)
        self.counter_views = [
            [self.counter(entry, name, view) for entry, view in zip(self.entries, line, strict=True)]
            for name, line in zip(self.counted, table, strict=True)
        ]
        live = DeviceScalars(self.program, self.entries, self.rows, self.counter_views, self.device)
        self.rows, self.numbers = [], np.zeros((len(self.counted), 0), self.numbers.dtype)
        self.expected = self.numbers.tobytes()
        self.pointers.host[-1], self.written = np.arange(len(self.params)), None
        if self.by_value:
            self.by_value = 0
            self.write_kernels()
        self.installed = False
        return live

    def counter(self, entry: Entry, name: str, new: torch.Tensor) -> torch.Tensor:
        """The tensor to count with: the one in the state, if it can be, since a CUDA graph may count with it too."""
        known = entry.state.get(name)
        if known is None:
            return self.started(entry, name, new)
        if not isinstance(known, torch.Tensor):
            return new
        if known.device == new.device and known.dtype == new.dtype and known.numel() == 1:
            return known
        return new.copy_(known) if on_gpu(known) else new

    def started(self, entry: Entry, name: str, new: torch.Tensor) -> torch.Tensor:
        """A new counter; what only the device knows of its first value is copied there."""
        initial = next((s.initial for s in self.program.scalar_slots if s.name == name), 0.0)
        value: Any = self.groups[entry.group][initial] if isinstance(initial, str) else initial
        return new.copy_(value.detach().reshape(()), non_blocking=True) if on_gpu(value) else new

    def tell(self) -> None:
        super().tell()
        if self.live is not None and not capturing(self.device):  # a state may be there whose updates were all skipped
            for entry, new in zip(self.entries, self.live.fresh.tolist(), strict=True):
                entry.is_new = True if new else None

    def matrix_numbers(self, step: Matrix) -> dict[int, tuple[float, ...]]:
        if self.live is None:
            return super().matrix_numbers(step)
        return {i: tuple(self.known(n, i) for n in step.numbers) for i in range(len(self.params))}

    def known(self, column: int, i: int) -> float:
        """A scalar of a tensor that is handed to a matrix function, as far as the host can know it.

        Raises:
            RuntimeError: if it depends on what only the device knows.
        """

        def leaf(e: Any) -> float:
            if e.op == "size":
                return size_along(self.entries[i].shape, self.params[i].dtype, e.detail)
            value = lookup(self.groups[self.entries[i].group], e.detail) if e.op == "hyper" else None
            if value is None or on_gpu(value):
                raise RuntimeError(
                    f"{self.program.name} hands ({self.program.scalars[column]}) to a matrix function, but with "
                    "capturable=True, GradScaler or a hyperparameter on the GPU only the device knows it"
                )
            return float(value)

        return float(evaluate(self.program.scalars[column], leaf))

    # -- every step ----------------------------------------------------------------------------------------------

    def lay(self, chunks: torch.Tensor, counts: Sequence[int]) -> None:
        """Take a chunk table, with so many chunks of each tensor."""
        self.chunks, self.chunk_count = chunks, len(chunks)
        self.spans = upload(np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64))]), self.device)
        self.partials = [
            torch.empty(len(chunks), len(phase.reductions), dtype=torch.float64, device=self.device)
            for phase in self.program.phases
        ]

    def lay_rows(self) -> None:
        """Cut matrices into tiles, and give each its place for what is known or reduced of rows and columns."""
        tiling = row_tiles.Tiling(self.lines.shapes.tolist(), TILE, SPAN)
        self.tiles = {tile: upload(numbers, self.device) for tile, numbers in tiling.tiles.items()}
        joins = {Level.ROW: tiling.row_sums, Level.COLUMN: tiling.column_sums}
        self.in_parts = {level: upload(own.table, self.device) for level, own in joins.items()}
        self.sums = []
        for k, reduction in enumerate(self.program.sums):
            own = joins[reduction.level]
            self.sums.append(torch.zeros(own.size, dtype=torch.float64, device=self.device))
            self.lines.sums[k] = self.sums[k][: own.total]
        addresses = [[line.data_ptr() for line in tables] for tables in (self.lines.read, self.sums)]
        self.line_tables = [
            upload(tiling.places, self.device),
            *(upload(np.asarray(line, np.int64), self.device) for line in addresses),
        ]
        self.joins = compiled(join_source())
        self.lay(upload(tiling.chunks, self.device), tiling.counts)

    def join(self, k: int) -> None:
        """Launch what joins the parts of sums over each row, or over columns."""
        reduction = self.program.sums[k]
        joins = self.in_parts[reduction.level]
        name, count = "join_max_abs" if reduction.kind == "max_abs" else "join_sum", len(joins)
        if count:
            kernel = self.bind(name, self.joins[name], dict(PARTS=PARTS, LINES=LINES), {})
            kernel(-(-count // LINES), (self.sums[k], joins, count), self.raw_stream, False)

    def bind(self, key: Any, function: Any, constants: dict[str, Any], options: dict[str, Any]) -> Bound:
        """A kernel with its constants, the same one for a key."""
        bound = self.bound.get(key)
        if bound is None:
            bound = self.bound[key] = Bound(function, constants, options)
        return bound

    def advance(self, groups: Sequence[Group]) -> None:
        self.groups = groups
        found = self.inputs.get("found_inf")
        self.found_inf = None if found is None else found.to(self.device, torch.float32, non_blocking=True)
        if self.live is None and self.asked_for(groups):
            self.live = self.move_numbers()
        self.recording = capturing(self.device)
        self.follow_stream()
        if self.live is not None:
            for phase in self.program.phases:
                list(map(self.matrix_numbers, phase.matrices))  # which may refuse, while nothing has changed
            with self.context():
                self.live.advance(groups, self.found_inf)
            self.sent = (self.live.table,)
        else:
            super().advance(groups)
            if self.by_value:
                self.sent = tuple([float(number) for row in self.rows for number in row.scalars])
            else:
                for k, row in enumerate(self.rows):
                    self.scalars.host[k] = row.scalars
                self.sent = (self.scalars.send(),)
        for k, name in enumerate(self.program.inputs):
            if name not in OF_ITS_OWN:
                self.put(k, self.inputs[name])
        self.grads_at = self.take_rows() if self.sparse else self.grad_pointers(self.strange)
        if 0 in self.grads_at:
            self.refuse_grads_without_memory()

    def follow_stream(self) -> None:
        """Tell torch's allocator when the tables, made on one stream, are used on another."""
        if self.recording:
            keep_alive(*self.tables())
        if self.on_cpu:
            return
        raw = raw_stream(self.device.index)
        if raw != self.known_stream and not self.recording:  # to ask for the number is a tenth of the time
            stream = torch.cuda.current_stream(self.device)
            stream.wait_stream(self.stream)  # where the tables were filled
            for table in self.tables():
                table.record_stream(stream)
            self.stream, self.known_stream = stream, raw
        self.raw_stream = raw

    def addresses(self) -> torch.Tensor:
        """Where everything lies, as a table on the device; sent if anything lies elsewhere than in the step before."""
        lines = [self.grads_at]
        if self.matrices.operands:
            lines += [list(map(torch.Tensor.data_ptr, tensors)) for tensors in self.temporaries]
        if lines == self.written and not self.recording:
            return self.pointers.tensor
        self.pointers.host[GRAD], *matrices = lines
        for k, line in enumerate(matrices, FIRST_SLOT + len(self.slots)):
            self.pointers.host[k] = line
        self.written = None if self.recording else lines  # a graph has a table of its own
        return self.pointers.send()

    def tables(self) -> list[torch.Tensor]:
        tables = [self.pointers.tensor, self.scalars.tensor, self.chunks, self.spans, self.table, *self.partials]
        if self.line_tables:
            tables += [*self.line_tables, *self.tiles.values(), *self.in_parts.values(), *self.sums]
            tables += self.lines.tensors()
        return [*tables, *(self.live.tables() if self.live else [])]

    def take_rows(self) -> list[int]:
        """Lay chunks over the rows that sparse gradients hold; gives where their values lie."""
        if capturing(self.device):
            raise RuntimeError(
                f"the sparse gradient of parameter {self.entries[0].name} can't be captured in a CUDA graph: how "
                "many rows it has differs from step to step"
            )
        tables, values, widths = [], [], []
        for i, p in enumerate(self.params):
            grad = self.grads[i].coalesce()
            values.append(materialized(grad.values()).contiguous())
            extents = p.shape[: grad.sparse_dim()]
            widths.append(real(p).numel() // max(math.prod(extents), 1))
            tables.append(device_row_chunks(i, flat_rows(grad.indices(), extents), widths[-1], CHUNK))
        self.grads = values
        self.lay(torch.cat(tables), list(map(len, tables)))
        self.block = narrow_block(max(widths))
        return list(map(torch.Tensor.data_ptr, values))

    def run(self, stage: int) -> None:
        count = len(self.params)
        tables = (
            *(self.addresses(), self.chunks, *self.sent),
            *(self.table, self.partials[stage], self.found_inf, count),
        )
        with self.context():
            if self.chunk_count:
                self.start(stage, tables, self.chunk_count, self.block)
            if self.program.phases[stage].reductions:
                self.gather(stage)
            for k, _ in self.program.phases[stage].sums:
                self.join(k)

    def start(self, stage: int, tables: tuple[Any, ...], chunks: int, block: Block) -> None:
        """Launch one pass over so many chunks."""
        name, flagged, functions = f"pass{stage}", tables[-2] is not None, self.kernels[stage]
        if not self.program.by_lines:
            key = stage, block.size, block.warps
            kernel = self.bound.get(key) or self.bind(
                key, functions[name], dict(BLOCK=block.size), dict(num_warps=block.warps, **exact())
            )
            kernel(chunks, tables, self.raw_stream, flagged)
            return
        for tile, numbers in self.tiles.items():
            kernel = self.bind(
                (stage, tile), functions[name], dict(MANY=tile.many, ROWS=tile.rows, COLUMNS=tile.columns), exact()
            )
            given = (*tables[:2], numbers, *self.line_tables, *tables[2:])
            kernel(len(numbers), given, self.raw_stream, flagged)

    def gather(self, stage: int) -> None:
        """Launch what joins the parts of a pass's reductions."""
        name, count = f"gather{stage}", len(self.params)
        kernel = self.bind(name, self.kernels[stage][name], dict(BLOCK=GATHER), {})
        kernel(count, (self.partials[stage], self.spans, self.table, count), self.raw_stream, False)

    def choose_block(self, elements: int) -> Block:
        """The block size: measured, but where it would change the order in which reductions add up."""
        reduces = self.program.reductions or self.program.by_lines
        if self.coded:
            return replace(DEFAULT, size=max(DEFAULT.size, 2 * whole_blocks(1)))
        if self.device.type == "cpu" or reduces or elements < WORTH_TUNING:
            return DEFAULT
        size = min(2 ** (elements.bit_length() - 1), SCRATCH)
        code = hashlib.sha256(self.sources[-1].encode()).hexdigest()[:16]
        card = torch.cuda.get_device_name(self.device)
        key = f"{card}: {self.program.name} {self.dtypes[0]} of {size} {code}"
        return fastest(key, lambda: self.trial(len(self.sources) - 1, size), self.device)

    def trial(self, stage: int, elements: int) -> Callable[[Block], None]:
        """What runs a pass over one tensor of so many elements, in memory of its own."""
        # not zeros, of which roots and quotients may take longer; torch's generators stay as they are
        random = torch.Generator(self.device).manual_seed(0)
        operands = [torch.zeros(elements, dtype=getattr(torch, NAMES[d]), device=self.device) for d in self.dtypes]
        for operand in operands:
            if operand.is_floating_point():
                operand.uniform_(0.25, 1.0, generator=random)
        pointers = np.asarray([*(o.data_ptr() for o in operands), 0], np.int64).reshape(-1, 1)
        tables = (
            upload(pointers, self.device),
            upload(chunk_table([elements], CHUNK), self.device),
            *self.trial_numbers(),
            torch.zeros(len(self.table), 1, dtype=torch.float64, device=self.device),
            self.partials[stage],
            None,
            1,
        )

        def run(block: Block, operands: Any = operands) -> None:  # which live as long as this function
            with self.context():
                self.start(stage, tables, len(tables[1]), block)

        return run

    def trial_numbers(self) -> list[Any]:
        """Scalars for a trial, as kernels are given them."""
        count = len(self.program.scalars)
        if self.by_value:
            return [0.5] * (self.by_value * count)
        return [torch.full((1, count), 0.5, dtype=torch.float64, device=self.device)]

    def context(self) -> AbstractContextManager[Any]:
        """Where kernels are launched: on this device; in the interpreter with numpy's warnings off."""
        if self.on_cpu:
            return np.errstate(all="ignore") if self.interpreted else HERE
        return HERE if torch.cuda.current_device() == self.device.index else torch.cuda.device(self.device)

    def total(self, row: int) -> torch.Tensor:
        kind = self.program.reductions[row - len(self.program.inputs)].kind
        return self.table[row].max() if kind == "max_abs" else self.table[row].sum()

    def put(self, row: int, value: Any) -> None:
        self.table[row].copy_(torch.as_tensor(value), non_blocking=True)

    def put_each(self, row: int, values: torch.Tensor) -> None:
        self.table[row].copy_(values)

    def reduced(self, row: int) -> torch.Tensor:
        return self.table[row].clone()

    def column(self, index: int) -> torch.Tensor:
        row = self.pointers.tensor[-1]
        if not self.by_value:
            table: torch.Tensor = self.sent[0]
            return table[:, index] if self.live is not None else table[row, index]
        first, *others = self.sent[index :: len(self.program.scalars)]
        column = torch.full((len(self.params),), first, dtype=torch.float64, device=self.device)
        for k, value in enumerate(others, 1):
            column.masked_fill_(row == k, value)
        return column

    def keep(self, stores: Sequence[tuple[Store, Any]]) -> None:
        if self.found_inf is not None:
            skipped = self.found_inf != 0
            stores = [(s, torch.where(skipped, self.place_of(s), value)) for s, value in stores]
        super().keep(stores)
