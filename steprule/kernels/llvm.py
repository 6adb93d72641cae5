"""A Program as machine code: LLVM IR for each pass, compiled once for each combination of dtypes."""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import torch

from ..rule.expression import Level
from ..rule.program import GRAD, Operation, Phase, Program
from .launch import Entry, Group, Launch, arithmetic, real
from .pool import ALONE, run_on_threads
from .tables import chunk_table, plain, row_chunks

__all__ = ["LLVMLaunch", "assembly"]

NAMES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.bfloat16: "bfloat",
    torch.float16: "half",
    torch.complex64: "float",
    torch.complex128: "double",
}
BYTES = {"float": 4, "double": 8, "bfloat": 2, "half": 2}

# contract stays out so that roundings are those of torch and of the eager reference; nnan, ninf and reassoc, so that
# NaN and Inf are what they are and a rule that compensates its rounding errors keeps them.
FAST = "nsz arcp"
INFIX = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
INTRINSIC = {"abs": "fabs", "pow": "pow"} | {
    name: name for name in ("sqrt", "exp", "log", "tanh", "sin", "cos", "floor", "ceil")
}
COMPARE = {"lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge", "eq": "oeq", "ne": "une"}


class Emitter:
    """Lines of IR, and names for the values they define."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.count = 0
        self.declared: set[str] = set()

    def let(self, value: str) -> str:
        self.count += 1
        self.lines.append(f"  %v{self.count} = {value}")
        return f"%v{self.count}"

    def do(self, line: str) -> None:
        self.lines.append(f"  {line}")

    def label(self, name: str) -> None:
        self.lines.append(f"{name}:")


def literal(value: float, kind: str) -> str:
    if kind == "float":
        value = ctypes.c_float(value).value
    return f"0x{struct.unpack('>Q', struct.pack('>d', value))[0]:016X}"


def load(out: Emitter, pointer: str, stored: str, kind: str) -> str:
    """Load an element and widen (or narrow) it to the arithmetic's type."""
    if stored == "bfloat":
        bits = out.let(f"load i16, ptr {pointer}, align 1")
        bits = out.let(f"shl i32 {out.let(f'zext i16 {bits} to i32')}, 16")
        value, stored = out.let(f"bitcast i32 {bits} to float"), "float"
    else:
        value = out.let(f"load {stored}, ptr {pointer}, align 1")
    return convert(out, value, stored, kind)


def convert(out: Emitter, value: str, source: str, target: str) -> str:
    order = ["half", "float", "double"]
    if source == target:
        return value
    if (source, target) == ("double", "half"):
        # by way of float, as torch does; few processors know a shorter one
        value, source = convert(out, value, "double", "float"), "float"
    cast = "fpext" if order.index(source) < order.index(target) else "fptrunc"
    return out.let(f"{cast} {source} {value} to {target}")


def store(out: Emitter, value: str, pointer: str, stored: str, kind: str, tame: bool) -> None:
    """Round to nearest even and store.

    ``tame`` says that no NaN has low bits that rounding could carry into the sign. So it is when every operand is
    bfloat16: their NaNs have low bits of zero, which arithmetic hands on, and those that the machine makes have too.
    """
    if stored != "bfloat":
        out.do(f"store {stored} {convert(out, value, kind, stored)}, ptr {pointer}, align 1")
        return
    value = convert(out, value, kind, "float")
    bits = out.let(f"bitcast float {value} to i32")
    odd = out.let(f"and i32 {out.let(f'lshr i32 {bits}, 16')}, 1")
    rounded = out.let(f"add i32 {out.let(f'add i32 {bits}, 32767')}, {odd}")
    if not tame:
        isnan = out.let(f"fcmp uno float {value}, 0.0")
        rounded = out.let(f"select i1 {isnan}, i32 2143289344, i32 {rounded}")
    short = out.let(f"trunc i32 {out.let(f'lshr i32 {rounded}, 16')} to i16")
    out.do(f"store i16 {short}, ptr {pointer}, align 1")


def truth(out: Emitter, value: tuple[str, str]) -> str:
    name, kind = value
    return name if kind == "i1" else out.let(f"fcmp une {kind} {name}, 0.0")


def compute(out: Emitter, op: str, args: Sequence[tuple[str, str]], kind: str) -> tuple[str, str]:
    """One elementwise operation; values are (name, type) with type ``kind`` or ``i1``."""
    names = (
        [name if t != "i1" else out.let(f"uitofp i1 {name} to {kind}") for name, t in args]
        if op not in ("where", "and", "or", "not")
        else [name for name, _ in args]
    )
    if op in INFIX:
        return out.let(f"{INFIX[op]} {FAST} {kind} {names[0]}, {names[1]}"), kind
    if op in COMPARE:
        return out.let(f"fcmp {COMPARE[op]} {kind} {names[0]}, {names[1]}"), "i1"
    if op in INTRINSIC:
        suffix = "f64" if kind == "double" else "f32"
        function = f"@llvm.{INTRINSIC[op]}.{suffix}"
        out.declared.add(f"declare {kind} {function}({', '.join([kind] * len(names))})")
        return out.let(f"call {kind} {function}({', '.join(f'{kind} {n}' for n in names)})"), kind
    if op == "neg":
        return out.let(f"fneg {kind} {names[0]}"), kind
    if op == "sign":
        positive = out.let(f"uitofp i1 {out.let(f'fcmp ogt {kind} {names[0]}, 0.0')} to {kind}")
        negative = out.let(f"uitofp i1 {out.let(f'fcmp olt {kind} {names[0]}, 0.0')} to {kind}")
        return out.let(f"fsub {kind} {positive}, {negative}"), kind
    if op in ("minimum", "maximum"):
        # unordered-or: the first operand if it is NaN; the comparison with a NaN second operand takes that one
        isnan = out.let(f"fcmp uno {kind} {names[0]}, 0.0")
        first = out.let(f"fcmp {'olt' if op == 'minimum' else 'ogt'} {kind} {names[0]}, {names[1]}")
        taken = out.let(f"or i1 {isnan}, {first}")
        return out.let(f"select i1 {taken}, {kind} {names[0]}, {kind} {names[1]}"), kind
    if op == "isnan":
        return out.let(f"fcmp uno {kind} {names[0]}, 0.0"), "i1"
    if op in ("and", "or"):
        return out.let(f"{op} i1 {truth(out, args[0])}, {truth(out, args[1])}"), "i1"
    if op == "not":
        return out.let(f"xor i1 {truth(out, args[0])}, true"), "i1"
    if op == "where":
        condition = truth(out, args[0])
        a, b = (n if t != "i1" else out.let(f"uitofp i1 {n} to {kind}") for n, t in args[1:])
        return out.let(f"select i1 {condition}, {kind} {a}, {kind} {b}"), kind
    raise NotImplementedError(op)


def chunk_function(program: Program, index: int, operands: Sequence[str], kind: str) -> tuple[str, set[str]]:
    """The IR of one pass over one chunk: ``(operand pointers, count, scalars, reduced, tensors, partials)``."""
    phase = program.phases[index]
    touched = sorted({*phase.reads, *phase.writes})
    head, body = Emitter(), Emitter()
    body.count = 10000
    values: list[tuple[str, str]] = []
    loaded: dict[int, str] = {}

    def place(operand: int) -> str:
        if operand not in loaded:
            loaded[operand] = body.let(f"getelementptr inbounds {OPAQUE[operands[operand]]}, ptr %o{operand}, i64 %i")
        return loaded[operand]

    def in_arithmetic(value: tuple[str, str], out: Emitter, source: str) -> tuple[str, str]:
        return value if value[1] == "i1" else (convert(out, value[0], source, kind), kind)

    wide: dict[int, tuple[str, str]] = {}
    for number, o in enumerate(phase.operations):
        if o.level is Level.ARRAY:
            values.append(array_operation(body, o, values, place, operands, kind))
        elif o.op == "reduced" or (o.level is Level.REDUCED):
            wide[number] = reduced_operation(head, o, wide, phase, program, kind)
            values.append(in_arithmetic(wide[number], head, "double"))
        elif o.op == "scalar":
            pointer = head.let(f"getelementptr inbounds double, ptr %scalars, i64 {o.detail}")
            wide[number] = (head.let(f"load double, ptr {pointer}"), "double")
            values.append(in_arithmetic(wide[number], head, "double"))
        else:
            values.append((literal(float(o.detail), kind), kind))
            wide[number] = (literal(float(o.detail), "double"), "double")

    def number_of(value: int) -> str:
        name, t = values[value]
        return name if t != "i1" else body.let(f"uitofp i1 {name} to {kind}")

    tame = all(operands[o] == "bfloat" for o in touched)
    sums = []
    for k, (row, value) in enumerate(phase.reductions):
        reduction = program.reductions[row - len(program.inputs)]
        sums.append(accumulate(body, reduction.kind, number_of(value), kind, k))
    for operand, value in phase.stores:
        store(body, number_of(value), place(operand), operands[operand], kind, tame)

    arguments = ", ".join(f"ptr noalias nocapture %o{o}" for o in touched)
    lines = [
        f"define internal void @chunk{index}({arguments}, i64 %n, ptr noalias nocapture readonly %scalars, "
        "ptr noalias nocapture readonly %reduced, i64 %tensors, ptr noalias nocapture %partials) #0 {",
        "entry:",
        *head.lines,
        "  br label %loop",
        "loop:",
        "  %i = phi i64 [ 0, %entry ], [ %next, %loop ]",
        *(f"  %acc{k} = phi double [ 0.0, %entry ], [ {total}, %loop ]" for k, total in enumerate(sums)),
        *body.lines,
        "  %next = add nuw nsw i64 %i, 1",
        "  %last = icmp eq i64 %next, %n",
        "  br i1 %last, label %done, label %loop",
        "done:",
    ]
    for k, total in enumerate(sums):
        lines += [
            f"  %partial{k} = getelementptr inbounds double, ptr %partials, i64 {k}",
            f"  store double {total}, ptr %partial{k}",
        ]
    return "\n".join([*lines, "  ret void", "}"]), head.declared | body.declared


OPAQUE = {"float": "float", "double": "double", "half": "half", "bfloat": "i16"}


def array_operation(
    out: Emitter, o: Operation, values: list[tuple[str, str]], place: Any, operands: Sequence[str], kind: str
) -> tuple[str, str]:
    if o.op == "read":
        operand: int = o.detail
        return load(out, place(operand), operands[operand], kind), kind
    if o.op == "constant":
        return literal(float(o.detail), kind), kind
    return compute(out, o.op, [values[a] for a in o.args], kind)


def reduced_operation(
    out: Emitter, o: Operation, wide: dict[int, tuple[str, str]], phase: Phase, program: Program, kind: str
) -> tuple[str, str]:
    """What is one number for each tensor is computed in double precision before the loop."""
    if o.op == "reduced":
        offset = out.let(f"mul i64 %tensors, {o.detail}")
        pointer = out.let(f"getelementptr inbounds double, ptr %reduced, i64 {offset}")
        return out.let(f"load double, ptr {pointer}"), "double"
    return compute(out, o.op, [wide[a] for a in o.args], "double")


def accumulate(out: Emitter, reduction: str, value: str, kind: str, k: int) -> str:
    """Add an element to the running total of its chunk, in double precision; LLVM may regroup this sum."""
    wide = convert(out, value, kind, "double")
    if reduction == "max_abs":
        size, _ = compute(out, "abs", [(wide, "double")], "double")
        out.declared.add("declare double @llvm.maximum.f64(double, double)")
        return out.let(f"call nsz double @llvm.maximum.f64(double %acc{k}, double {size})")
    if reduction == "sum_of_squares":
        wide = out.let(f"fmul double {wide}, {wide}")
    return out.let(f"fadd reassoc contract double %acc{k}, {wide}")


FRAME = ("pointers", "tensors", "chunks", "count", "scalars", "partials", "reduced", "counter", "batch")
"""What a kernel finds in its frame, an int64 each."""


def pass_function(program: Program, index: int, operands: Sequence[str]) -> str:
    """The IR that takes chunks, a batch at a time, until none is left."""
    phase = program.phases[index]
    touched = sorted({*phase.reads, *phase.writes})
    out = Emitter()
    frame: dict[str, str] = {}
    for i, name in enumerate(FRAME):
        pointer = out.let(f"getelementptr inbounds i64, ptr %frame, i64 {i}")
        kind_of = "i64" if name in ("tensors", "count", "batch") else "ptr"
        frame[name] = out.let(f"load {kind_of}, ptr {pointer}")
    columns, width = len(program.scalars), len(phase.reductions)
    out.do("br label %take")
    out.label("take")
    begin = out.let(f"atomicrmw add ptr {frame['counter']}, i64 {frame['batch']} monotonic")
    rest = out.let(f"icmp slt i64 {begin}, {frame['count']}")
    out.do(f"br i1 {rest}, label %work, label %end")
    out.label("work")
    stop = out.let(f"add i64 {begin}, {frame['batch']}")
    within = out.let(f"icmp slt i64 {stop}, {frame['count']}")
    stop = out.let(f"select i1 {within}, i64 {stop}, i64 {frame['count']}")
    out.do("br label %each")
    out.label("each")
    out.lines.append(f"  %c = phi i64 [ {begin}, %work ], [ %following, %each ]")
    row = out.let("mul i64 %c, 4")
    entries = []
    for column in range(4):
        at = out.let(f"add i64 {row}, {column}")
        pointer = out.let(f"getelementptr inbounds i64, ptr {frame['chunks']}, i64 {at}")
        entries.append(out.let(f"load i64, ptr {pointer}"))
    tensor, offset, grad_offset, count = entries
    arguments = []
    for o in touched:
        line = out.let(f"mul i64 {frame['tensors']}, {o}")
        at = out.let(f"add i64 {line}, {tensor}")
        pointer = out.let(f"getelementptr inbounds ptr, ptr {frame['pointers']}, i64 {at}")
        base = out.let(f"load ptr, ptr {pointer}")
        element = OPAQUE[operands[o]]
        shift = grad_offset if o == GRAD else offset
        arguments.append("ptr " + out.let(f"getelementptr inbounds {element}, ptr {base}, i64 {shift}"))
    at = out.let(f"mul i64 {tensor}, {columns}")
    scalars = out.let(f"getelementptr inbounds double, ptr {frame['scalars']}, i64 {at}")
    reduced = out.let(f"getelementptr inbounds double, ptr {frame['reduced']}, i64 {tensor}")
    at = out.let(f"mul i64 %c, {width}")
    partials = out.let(f"getelementptr inbounds double, ptr {frame['partials']}, i64 {at}")
    out.do(
        f"call void @chunk{index}({', '.join(arguments)}, i64 {count}, ptr {scalars}, ptr {reduced}, "
        f"i64 {frame['tensors']}, ptr {partials})"
    )
    out.do("%following = add nsw i64 %c, 1")
    out.do(f"%more = icmp slt i64 %following, {stop}")
    out.do("br i1 %more, label %each, label %take")
    out.label("end")
    out.do("ret void")
    return "\n".join([f"define void @NAME{index}(ptr %frame) #1 {{", "entry:", *out.lines, "}"])


def assembly(program: Program, operands: Sequence[str], kind: str, name: str = "pass") -> str:
    """The LLVM IR of a Program.

    Args:
        program: what to compile.
        operands: the LLVM type of each operand: float, double, bfloat or half.
        kind: the type of the arithmetic: float or double.
        name: what its functions are called, followed by the number of the pass.
    """
    parts, declared = [], set()
    for index in range(len(program.phases)):
        text, declarations = chunk_function(program, index, operands, kind)
        parts += [text, pass_function(program, index, operands).replace("@NAME", f"@{name}")]
        declared |= declarations
    attributes = '"reciprocal-estimates"="none" "no-trapping-math"="true"'
    return "\n\n".join(
        [
            *parts,
            *sorted(declared),
            f"attributes #0 = {{ noinline nounwind {attributes} }}",
            f"attributes #1 = {{ nounwind {attributes} }}",
        ]
    )


COMPILING = threading.Lock()
# a child that is forked by another thread meanwhile would find the compiler half way through something
os.register_at_fork(before=COMPILING.acquire, after_in_parent=COMPILING.release, after_in_child=COMPILING.release)


class Machine:
    """The one engine that owns all machine code of the process. Its owner holds :data:`COMPILING`."""

    def __init__(self) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        self.target = self.target_machine()
        backing = llvm.parse_assembly("")
        self.engine = llvm.create_mcjit_compiler(backing, self.target_machine())
        self.count = 0

    @staticmethod
    def target_machine() -> Any:
        target = llvm.Target.from_default_triple()
        features = llvm.get_host_cpu_features().flatten()
        return target.create_target_machine(cpu=llvm.get_host_cpu_name(), features=features, opt=3, jit=True)

    def compile(self, program: Program, operands: Sequence[str], kind: str) -> list[Any]:
        """Callable addresses, one for each pass."""
        self.count += 1
        name = f"steprule{self.count}_"
        module = llvm.parse_assembly(assembly(program, operands, kind, name))
        module.triple = llvm.get_process_triple()
        module.data_layout = str(self.target.target_data)
        module.verify()
        options = llvm.create_pipeline_tuning_options(speed_level=3)
        options.loop_vectorization = True
        options.loop_interleaving = True
        builder = llvm.create_pass_builder(self.target, options)
        builder.getModulePassManager().run(module, builder)
        self.engine.add_module(module)
        self.engine.finalize_object()
        prototype = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
        return [prototype(self.engine.get_function_address(f"{name}{index}")) for index in range(len(program.phases))]


@lru_cache(maxsize=1)
def machine() -> Machine:
    return Machine()


@lru_cache(maxsize=256)
def compiled(program: Program, operands: tuple[str, ...], kind: str) -> list[Any]:
    with COMPILING:
        return machine().compile(program, operands, kind)


class LLVMLaunch(Launch):
    """Runs all tensors with machine code, a chunk at a time, on as many threads as torch uses."""

    backend = "llvm"

    def __init__(self, program: Program, entries: Sequence[Entry], groups: Sequence[Group], reason: str) -> None:
        super().__init__(program, entries, groups, reason)
        count = len(entries)
        self.arithmetic = arithmetic(self.params[0].dtype)
        kind = NAMES[self.arithmetic]
        temporaries = [getattr(torch, m.dtype) if m.dtype else self.arithmetic for m in program.matrices]
        dtypes = [
            self.params[0].dtype,
            entries[0].grad.dtype,
            *(slot[0].dtype for slot in self.slots),
            *temporaries,
        ]
        self.types = tuple(NAMES[d] for d in dtypes)
        self.kernels = compiled(program, self.types, kind)
        self.pointers = np.zeros((program.operands, count), np.int64)
        self.pointers[0] = self.param_pointers
        for k, pointers in enumerate(self.slot_pointers):
            self.pointers[2 + k] = pointers
        self.scalars = np.zeros((count, len(program.scalars)))
        self.table = np.zeros((program.table_rows, count))
        self.adopt_reduced(torch.from_numpy(self.table), groups)
        self.counter = np.zeros(1, np.int64)
        self.strange = self.strange_grads()
        self.grads_at: list[int] = []
        self.written: list[tuple[float, ...]] = [()] * len(self.rows)
        self.every = [slice(None) if len(self.rows) == 1 else np.asarray(row.members) for row in self.rows]
        self.frames: list[Any] = []
        self.lay(chunk_table([e.numel for e in entries]))

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
        self.present = slice(None) if len(present) == len(self.params) else present
        self.partials = [np.zeros((count, len(phase.reductions))) for phase in self.program.phases]
        self.batch = max(1, min(count // 32, 8))
        self.frames = []
        for partials in self.partials:
            tables = (
                self.pointers,
                None,
                self.chunks,
                None,
                self.scalars,
                partials,
                self.table,
                self.counter,
                None,
            )
            numbers = (0, len(self.params), 0, count, 0, 0, 0, 0, self.batch)
            words = [n if t is None else t.ctypes.data for t, n in zip(tables, numbers, strict=True)]
            self.frames.append(np.asarray(words, np.int64))
        self.addresses = [frame.ctypes.data for frame in self.frames]

    def advance(self, groups: Any) -> None:
        super().advance(groups)
        for k, row in enumerate(self.rows):
            if row.scalars != self.written[k]:
                self.scalars[self.every[k]] = row.scalars
                self.written[k] = row.scalars
        for k, name in enumerate(self.program.inputs):
            self.table[k] = float(self.inputs[name])
        if self.sparse:
            self.take_rows()
            return
        pointers = self.grad_pointers(self.strange)
        if pointers != self.grads_at:
            self.pointers[GRAD] = self.grads_at = pointers

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
            values.append(plain(grad.values()).contiguous())
        self.grads = values
        self.pointers[GRAD] = [v.data_ptr() for v in values]
        self.lay(np.concatenate(tables))

    def run(self, stage: int) -> None:
        if self.temporaries:
            for k, tensors in enumerate(self.temporaries):
                self.pointers[2 + len(self.slots) + k] = list(map(torch.Tensor.data_ptr, tensors))
        self.counter[0] = 0
        if self.elements < ALONE:
            self.kernels[stage](self.addresses[stage])
        else:
            run_on_threads(self.kernels[stage], self.addresses[stage], -(-len(self.chunks) // self.batch))
        for k, (row, _) in enumerate(self.program.phases[stage].reductions):
            self.gather(row, self.partials[stage][:, k])

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

    def reduced(self, row: int) -> Any:
        return torch.from_numpy(self.table[row].copy())

    def column(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.scalars[:, index])
