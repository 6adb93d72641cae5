"""A Program as LLVM IR: a function for each pass, which takes chunks until none is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steprule.kernels.row_tables import PLACE
from steprule.rule.expression import Level
from steprule.rule.program import GRAD, IN_PARTS, WORDS, Operation, Program
from steprule.storage import FORMATS, Codes

from .operations import (
    Emitter,
    accumulate,
    compute,
    computed,
    in_parts,
    integer,
    literal,
    load_code,
    load_element,
    load_whole,
    rounded,
    short,
    store,
    store_code,
    store_part,
    to_width,
)

__all__ = ["TABLES", "assembly"]

CODES: dict[str, Codes] = {
    f"i8 {codes.dtype}": codes for f in FORMATS.values() for codes in (f.signed, f.positive) if codes is not None
}
"""What operands are that hold codes, by the names of their types here."""

OPAQUE = {"float": "float", "double": "double", "half": "half", "bfloat": "i16"}
OPAQUE |= dict.fromkeys(CODES, "i8")
OPAQUE |= {f"{whole} whole": whole for whole in ("i8", "i16")}


class Elements:
    """The code of one pass: ``head`` once for a chunk, ``row`` once for a row of it, ``body`` for each element.

    The body's element has the number ``%i`` in the chunk and ``%c`` in its row, which begins at ``%start``.

    Attributes:
        totals: the running totals of the phase's reductions, and then of those over each row.
    """

    def __init__(self, program: Program, index: int, operands: Sequence[str], kind: str) -> None:
        self.phase = program.phases[index]
        self.touched = sorted({*self.phase.reads, *self.phase.writes})
        self.operands, self.kind = operands, kind
        self.head, self.row, self.body = Emitter(), Emitter(10000), Emitter(20000)
        self.values: list[tuple[str, str]] = []
        self.loaded: dict[int, str] = {}
        self.scaled: dict[int, str] = {}
        self.coded = [o for o in self.touched if operands[o] in CODES]
        wide: dict[int, tuple[str, str]] = {}
        for index, o in enumerate(self.phase.operations):
            self.values.append(self.value(program, index, o, wide))
        lines = any(o.op == "line" for o in self.phase.operations)
        tame = not lines and all(operands[o] == "bfloat" for o in self.touched)
        self.totals = []
        for row, value in self.phase.reductions:
            reduction = program.reductions[row - len(program.inputs)]
            self.totals.append(self.accumulate(reduction.kind, value))
        self.row_sums = [s for s in self.phase.sums if program.sums[s[0]].level is Level.ROW]
        for index, value in self.row_sums:
            self.totals.append(self.accumulate(program.sums[index].kind, value))
        for index, value in self.phase.sums:
            if program.sums[index].level is Level.COLUMN:
                self.add_to_column(index, program.sums[index].kind, value)
        self.encoded: list[tuple[int, bool]] = []
        """The operands that get codes, each with whether they are rounded at random."""
        for operand, value in self.phase.stores:
            if operands[operand] in CODES:
                self.keep_for_encoding(operand, value)
                continue
            o = self.phase.operations[value]
            noise = self.values[o.args[1]][0] if o.op == "noisy" else None
            if o.op in ("upper", "lower"):
                store_part(self.body, self.values[value], self.place(operand), OPAQUE[operands[operand]])
                continue
            store(self.body, self.number(value), self.place(operand), operands[operand], kind, tame, noise)

    @property
    def declared(self) -> set[str]:
        return self.head.declared | self.row.declared | self.body.declared

    def place(self, operand: int) -> str:
        if operand not in self.loaded:
            element = OPAQUE[self.operands[operand]]
            self.loaded[operand] = self.body.let(f"getelementptr inbounds {element}, ptr %o{operand}, i64 %i")
        return self.loaded[operand]

    def keep_for_encoding(self, operand: int, value: int) -> None:
        """Keep the root of a value, and the bits by which it is rounded, until the largest of its block is known."""
        o = self.phase.operations[value]
        self.encoded.append((operand, o.op == "noisy"))
        name = computed(self.body, CODES[self.operands[operand]].root, [self.number(value)])
        place = self.body.let(f"getelementptr inbounds float, ptr %roots{operand}, i64 %c")
        self.body.do(f"store float {name}, ptr {place}, align 4")
        if o.op == "noisy":
            place = self.body.let(f"getelementptr inbounds i32, ptr %noise{operand}, i64 %c")
            self.body.do(f"store i32 {self.values[o.args[1]][0]}, ptr {place}, align 4")
        bits = self.body.let(f"bitcast float {name} to i32")
        size = self.body.let(f"and i32 {bits}, 2147483647")
        self.body.declared.add("declare i32 @llvm.umax.i32(i32, i32)")
        self.body.do(f"%larger{operand} = call i32 @llvm.umax.i32(i32 %largest{operand}, i32 {size})")

    def read_codes(self, operand: int) -> str:
        """What a code stands for; its block's scale is loaded where the block begins."""
        if operand not in self.scaled:
            place = self.row.let(f"getelementptr inbounds i16, ptr %s{operand}, i64 %block")
            self.scaled[operand] = load_element(self.row, place, "bfloat", "float")
        codes = CODES[self.operands[operand]]
        code = load_code(self.body, self.place(operand), codes.dtype == "int8")
        return computed(self.body, codes.decode, [code, self.scaled[operand]])

    def number(self, value: int) -> str:
        name, t = self.values[value]
        return name if t != "i1" else self.body.let(f"uitofp i1 {name} to {self.kind}")

    def in_arithmetic(self, value: tuple[str, str]) -> tuple[str, str]:
        return value if value[1] != "double" else (to_width(self.head, value[0], "double", self.kind), self.kind)

    def value(self, program: Program, index: int, o: Operation, wide: dict[int, tuple[str, str]]) -> tuple[str, str]:
        if o.op == "line":
            return self.line(o.detail, o.level), self.kind
        if o.op == "read" and self.operands[o.detail] in CODES:
            return self.read_codes(o.detail), self.kind
        if o.level is Level.ARRAY:
            return array_operation(self.body, o, self.values, self.place, self.operands, self.kind)
        if o.op == "constant":
            wide[index] = (literal(float(o.detail), "double"), "double")
            return literal(float(o.detail), self.kind), self.kind
        if o.op == "scalar":
            pointer = self.head.let(f"getelementptr inbounds double, ptr %scalars, i64 {o.detail}")
            wide[index] = (self.head.let(f"load double, ptr {pointer}"), "double")
        else:
            wide[index] = reduced_operation(self.head, o, wide)
        return self.in_arithmetic(wide[index])

    def line(self, index: int, level: Level) -> str:
        """One number of each row, or one of each column."""
        if level is Level.ROW:
            out, first, place = self.row, f"%line{index}", "%rowline"
        else:
            out, place = self.body, "%c"
            first = self.row.let(f"getelementptr inbounds {self.kind}, ptr %line{index}, i64 %columnline")
        pointer = out.let(f"getelementptr inbounds {self.kind}, ptr {first}, i64 {place}")
        return out.let(f"load {self.kind}, ptr {pointer}")

    def accumulate(self, reduction: str, value: int) -> str:
        return accumulate(self.body, reduction, self.number(value), self.kind, f"%acc{len(self.totals)}")

    def add_to_column(self, index: int, reduction: str, value: int) -> None:
        first = self.row.let(f"getelementptr inbounds double, ptr %sum{index}, i64 %piece")
        pointer = self.body.let(f"getelementptr inbounds double, ptr {first}, i64 %c")
        known = self.body.let(f"load double, ptr {pointer}")
        total = accumulate(self.body, reduction, self.number(value), self.kind, known)
        self.body.do(f"store double {total}, ptr {pointer}")


ARGUMENTS = (
    "i64 %n",
    "i64 %first",
    "ptr noalias nocapture readonly %scalars",
    "ptr noalias nocapture readonly %reduced",
    "i64 %tensors",
    "ptr noalias nocapture %partials",
)


def chunk_function(program: Program, index: int, operands: Sequence[str], kind: str) -> tuple[str, set[str]]:
    """The IR of one pass over one chunk: ``(operand pointers, count, scalars, reduced, tensors, partials)``, and of one
    that knows rows from columns also ``(lines, sums, PLACE)``."""
    code = Elements(program, index, operands, kind)
    arguments = [*(f"ptr noalias nocapture %o{o}" for o in code.touched), *ARGUMENTS]
    if program.phases[index].by_lines:
        arguments += [f"ptr noalias nocapture readonly %line{k}" for k in range(len(program.lines))]
        arguments += [f"ptr noalias nocapture %sum{k}" for k, _ in code.phase.sums]
        arguments += [f"i64 %{name}" for name in PLACE]
        loop = loop_over_rows(program, code)
    elif code.coded:
        arguments += [f"ptr noalias nocapture %s{o}" for o in code.coded]
        loop = loop_over_blocks(code)
    else:
        loop = loop_over_elements(code)
    lines = [
        f"define internal void @chunk{index}({', '.join(arguments)}) #0 {{",
        "entry:",
        *code.head.lines,
        *loop,
        "  ret void",
        "}",
    ]
    return "\n".join(lines), code.declared


def stored_partials(totals: Sequence[str]) -> list[str]:
    lines = []
    for k, total in enumerate(totals):
        lines += [
            f"  %partial{k} = getelementptr inbounds double, ptr %partials, i64 {k}",
            f"  store double {total}, ptr %partial{k}",
        ]
    return lines


def vectors(code: Elements) -> str:
    """A hint for loops that add up in double what they compute in float: left to itself, LLVM chooses the width by the
    doubles, and the roots and quotients of half a vector take as long as those of a whole one."""
    return ", !llvm.loop !0" if code.kind == "float" and (code.totals or code.phase.sums) else ""


def loop_over_elements(code: Elements) -> list[str]:
    return [
        "  %start = add i64 0, 0",
        "  br label %loop",
        "loop:",
        "  %c = phi i64 [ 0, %entry ], [ %next, %loop ]",
        *(f"  %acc{k} = phi double [ 0.0, %entry ], [ {total}, %loop ]" for k, total in enumerate(code.totals)),
        "  %i = add nuw nsw i64 %start, %c",
        *code.body.lines,
        "  %next = add nuw nsw i64 %c, 1",
        "  %last = icmp eq i64 %next, %n",
        f"  br i1 %last, label %done, label %loop{vectors(code)}",
        "done:",
        *stored_partials(code.totals),
    ]


def loop_over_blocks(code: Elements) -> list[str]:
    """The loop over the blocks of a chunk: over the elements of one, then over each of its slots to encode it."""
    sizes = {CODES[code.operands[o]].block for o in code.coded}
    size = min(sizes)
    assert len(sizes) == 1, "the formats of a launch share their blocks"
    buffers = [(f"%roots{o}", "float") for o, _ in code.encoded]
    buffers += [(f"%noise{o}", "i32") for o, noisy in code.encoded if noisy]
    lines = [f"  {name} = alloca [{size} x {kind}], align 64" for name, kind in buffers]
    lines += [
        "  br label %blocks",
        "blocks:",
        "  %start = phi i64 [ 0, %entry ], [ %end, %ended ]",
        "  %block = phi i64 [ 0, %entry ], [ %nextblock, %ended ]",
        *(f"  %before{k} = phi double [ 0.0, %entry ], [ {total}, %ended ]" for k, total in enumerate(code.totals)),
        "  %left = sub i64 %n, %start",
        f"  %part = icmp slt i64 %left, {size}",
        f"  %width = select i1 %part, i64 %left, i64 {size}",
        *code.row.lines,
        "  br label %loop",
        "loop:",
        "  %c = phi i64 [ 0, %blocks ], [ %next, %loop ]",
        *(f"  %acc{k} = phi double [ %before{k}, %blocks ], [ {total}, %loop ]" for k, total in enumerate(code.totals)),
        *(f"  %largest{o} = phi i32 [ 0, %blocks ], [ %larger{o}, %loop ]" for o, _ in code.encoded),
        "  %i = add nuw nsw i64 %start, %c",
        *code.body.lines,
        "  %next = add nuw nsw i64 %c, 1",
        "  %last = icmp eq i64 %next, %width",
        f"  br i1 %last, label %encode, label %loop{vectors(code)}",
        "encode:",
    ]
    out = Emitter(40000)
    inverses = {o: written_scale(out, o, CODES[code.operands[o]]) for o, _ in code.encoded}
    if code.encoded:
        encode_blocks(out, code, inverses)
    else:
        out.do("br label %ended")
    code.body.declared |= out.declared
    return [
        *lines,
        *out.lines,
        "ended:",
        "  %end = add nuw nsw i64 %start, %width",
        "  %nextblock = add nuw nsw i64 %block, 1",
        "  %over = icmp eq i64 %end, %n",
        "  br i1 %over, label %done, label %blocks",
        "done:",
        *stored_partials(code.totals),
    ]


def written_scale(out: Emitter, operand: int, codes: Codes) -> str:
    """Store the scale of a block, whose largest root is known by its bits; what numbers are multiplied by."""
    largest = out.let(f"bitcast i32 %larger{operand} to float")
    held = short(out, computed(out, codes.scale, [largest]), "float", False)
    place = out.let(f"getelementptr inbounds i16, ptr %s{operand}, i64 %block")
    out.do(f"store i16 {held}, ptr {place}, align 1")
    bits = out.let(f"shl i32 {out.let(f'zext i16 {held} to i32')}, 16")
    return computed(out, codes.inverse, [out.let(f"bitcast i32 {bits} to float")])


def encode_blocks(out: Emitter, code: Elements, inverses: Mapping[int, str]) -> None:
    """The loop that encodes the roots of a block, of every slot."""
    out.do("br label %codes")
    out.label("codes")
    out.do("%e = phi i64 [ 0, %encode ], [ %nexte, %codes ]")
    at = out.let("add nuw nsw i64 %start, %e")
    for o, noisy in code.encoded:
        codes = CODES[code.operands[o]]
        place = out.let(f"getelementptr inbounds float, ptr %roots{o}, i64 %e")
        given = [out.let(f"load float, ptr {place}, align 4"), inverses[o]]
        formula = codes.encode
        if noisy and codes.at_random is not None:
            place = out.let(f"getelementptr inbounds i32, ptr %noise{o}, i64 %e")
            upper = out.let(f"lshr i32 {out.let(f'load i32, ptr {place}, align 4')}, 16")
            given.append(out.let(f"sitofp i32 {upper} to float"))
            formula = codes.at_random
        store_code(out, computed(out, formula, given), out.let(f"getelementptr inbounds i8, ptr %o{o}, i64 {at}"))
    out.do("%nexte = add nuw nsw i64 %e, 1")
    out.do("%laste = icmp eq i64 %nexte, %width")
    out.do("br i1 %laste, label %ended, label %codes")


def loop_over_rows(program: Program, code: Elements) -> list[str]:
    """The loop over the rows of a chunk, and inside of it the one over a row; matrices may end on the way."""
    count = len(code.phase.reductions)
    whole = range(count)
    lines = []
    for k, _ in code.phase.sums:
        if program.sums[k].level is Level.COLUMN:
            code.body.declared.add("declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)")
            lines += [
                f"  %cells{k} = mul i64 %matrices, %width",
                f"  %bytes{k} = mul i64 %cells{k}, 8",
                f"  %begin{k} = getelementptr inbounds double, ptr %sum{k}, i64 %firstpiece",
                f"  call void @llvm.memset.p0.i64(ptr %begin{k}, i8 0, i64 %bytes{k}, i1 false)",
            ]
    lines += [
        "  br label %rows",
        "rows:",
        "  %start = phi i64 [ 0, %entry ], [ %end, %ended ]",
        "  %rowline = phi i64 [ %firstrow, %entry ], [ %nextrow, %ended ]",
        "  %inside = phi i64 [ %firstinside, %entry ], [ %nextinside, %ended ]",
        "  %columnline = phi i64 [ %firstcolumn, %entry ], [ %nextcolumn, %ended ]",
        "  %piece = phi i64 [ %firstpiece, %entry ], [ %nextpiece, %ended ]",
        *(f"  %before{k} = phi double [ 0.0, %entry ], [ {code.totals[k]}, %ended ]" for k in whole),
        *code.row.lines,
        "  br label %loop",
        "loop:",
        "  %c = phi i64 [ 0, %rows ], [ %next, %loop ]",
        *(f"  %acc{k} = phi double [ %before{k}, %rows ], [ {code.totals[k]}, %loop ]" for k in whole),
        *(
            f"  %acc{count + k} = phi double [ 0.0, %rows ], [ {code.totals[count + k]}, %loop ]"
            for k in range(len(code.row_sums))
        ),
        "  %i = add nuw nsw i64 %start, %c",
        *code.body.lines,
        "  %next = add nuw nsw i64 %c, 1",
        "  %last = icmp eq i64 %next, %width",
        f"  br i1 %last, label %ended, label %loop{vectors(code)}",
        "ended:",
    ]
    for k, (index, _) in enumerate(code.row_sums):
        lines += [
            f"  %row{k} = getelementptr inbounds double, ptr %sum{index}, i64 %rowline",
            f"  store double {code.totals[count + k]}, ptr %row{k}",
        ]
    return [
        *lines,
        "  %end = add nuw nsw i64 %start, %width",
        "  %nextrow = add nuw nsw i64 %rowline, 1",
        "  %below = add nuw nsw i64 %inside, 1",
        "  %new = icmp eq i64 %below, %height",
        "  %nextinside = select i1 %new, i64 0, i64 %below",
        "  %shift = select i1 %new, i64 %width, i64 0",
        "  %nextcolumn = add nuw nsw i64 %columnline, %shift",
        "  %nextpiece = add nuw nsw i64 %piece, %shift",
        "  %over = icmp eq i64 %end, %n",
        "  br i1 %over, label %done, label %rows",
        "done:",
        *stored_partials(code.totals[:count]),
    ]


def array_operation(
    out: Emitter, o: Operation, values: list[tuple[str, str]], place: Any, operands: Sequence[str], kind: str
) -> tuple[str, str]:
    if o.op == "read":
        operand: int = o.detail
        if operands[operand].endswith("whole"):
            return load_whole(out, place(operand), OPAQUE[operands[operand]]), "i32"
        return load_element(out, place(operand), operands[operand], kind), kind
    if o.op == "constant":
        return literal(float(o.detail), kind), kind
    if o.op in WORDS:
        return integer(out, o.op, o.detail, [values[a][0] for a in o.args])
    if o.op == "drawn":
        whole, _ = integer(out, "ishr", o.detail, [values[o.args[0]][0]])
        return out.let(f"uitofp i32 {whole} to {kind}"), kind
    if o.op == "noisy":
        return values[o.args[0]]
    if o.op in IN_PARTS:
        return in_parts(out, o, [values[a] for a in o.args])
    if o.op == "stored":
        name, t = values[o.args[0]]
        name = name if t != "i1" else out.let(f"uitofp i1 {name} to {kind}")
        return rounded(out, name, operands[o.detail], kind), kind
    return compute(out, o.op, [values[a] for a in o.args], kind)


def reduced_operation(out: Emitter, o: Operation, wide: dict[int, tuple[str, str]]) -> tuple[str, str]:
    """What is one number for each tensor is computed in double precision before the loop."""
    if o.op == "reduced":
        offset = out.let(f"mul i64 %tensors, {o.detail}")
        pointer = out.let(f"getelementptr inbounds double, ptr %reduced, i64 {offset}")
        return out.let(f"load double, ptr {pointer}"), "double"
    if o.op in WORDS:
        return integer(out, o.op, o.detail, [wide[a][0] for a in o.args])
    return compute(out, o.op, [wide[a] for a in o.args], "double")


TABLES = ("pointers", "chunks", "scalars", "partials", "reduced", "counter", "places", "lines", "sums")
FRAME = (*TABLES, "tensors", "count", "batch")
"""What a kernel finds in its frame, an int64 each."""


def pass_function(program: Program, index: int, operands: Sequence[str]) -> str:
    """The IR that takes chunks, a batch at a time, until none is left."""
    phase = program.phases[index]
    out = Emitter()
    frame: dict[str, str] = {}
    for i, name in enumerate(FRAME):
        pointer = out.let(f"getelementptr inbounds i64, ptr %frame, i64 {i}")
        frame[name] = out.let(f"load {'ptr' if name in TABLES else 'i64'}, ptr {pointer}")
    lines = []
    if phase.by_lines:
        lines = [entry(out, frame["lines"], str(k), "ptr") for k in range(len(program.lines))]
        lines += [entry(out, frame["sums"], str(k), "ptr") for k, _ in phase.sums]
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
    arguments = chunk_arguments(out, program, index, operands, frame, lines)
    out.do(f"call void @chunk{index}({', '.join(arguments)})")
    out.do("%following = add nsw i64 %c, 1")
    out.do(f"%more = icmp slt i64 %following, {stop}")
    out.do("br i1 %more, label %each, label %take")
    out.label("end")
    out.do("ret void")
    return "\n".join([f"define void @NAME{index}(ptr %frame) #1 {{", "entry:", *out.lines, "}"])


def chunk_arguments(
    out: Emitter,
    program: Program,
    index: int,
    operands: Sequence[str],
    frame: Mapping[str, str],
    lines: Sequence[str],
) -> list[str]:
    """What the function of a chunk is called with, for the chunk ``%c`` of the table.

    Args:
        out: takes the code that finds it.
        program: the Program.
        index: the number of the pass.
        operands: the types of all operands.
        frame: the registers of what the frame holds, by name.
        lines: the registers of the tables of rows and columns.
    """
    phase = program.phases[index]
    touched = sorted({*phase.reads, *phase.writes})
    tensor, offset, grad_offset, count = table_row(out, frame["chunks"], 4)
    arguments = []
    for o in touched:
        line = out.let(f"mul i64 {frame['tensors']}, {o}")
        at = out.let(f"add i64 {line}, {tensor}")
        pointer = out.let(f"getelementptr inbounds ptr, ptr {frame['pointers']}, i64 {at}")
        base = out.let(f"load ptr, ptr {pointer}")
        element = OPAQUE[operands[o]]
        shift = grad_offset if o == GRAD else offset
        arguments.append("ptr " + out.let(f"getelementptr inbounds {element}, ptr {base}, i64 {shift}"))
    at = out.let(f"mul i64 {tensor}, {len(program.scalars)}")
    scalars = out.let(f"getelementptr inbounds double, ptr {frame['scalars']}, i64 {at}")
    reduced = out.let(f"getelementptr inbounds double, ptr {frame['reduced']}, i64 {tensor}")
    at = out.let(f"mul i64 %c, {len(phase.reductions)}")
    partials = out.let(f"getelementptr inbounds double, ptr {frame['partials']}, i64 {at}")
    arguments += [
        f"i64 {count}",
        f"i64 {offset}",
        f"ptr {scalars}",
        f"ptr {reduced}",
        f"i64 {frame['tensors']}",
        f"ptr {partials}",
    ]
    if phase.by_lines:
        arguments += [f"ptr {line}" for line in lines]
        arguments += [f"i64 {column}" for column in table_row(out, frame["places"], len(PLACE))]
    coded = [o for o, kind in enumerate(operands) if kind in CODES]
    for k, o in enumerate(coded):
        if o in touched:
            line = out.let(f"mul i64 {frame['tensors']}, {program.operands + k}")
            pointer = out.let(
                f"getelementptr inbounds ptr, ptr {frame['pointers']}, i64 {out.let(f'add i64 {line}, {tensor}')}"
            )
            base = out.let(f"load ptr, ptr {pointer}")
            block = out.let(f"udiv i64 {offset}, {CODES[operands[o]].block}")
            arguments.append("ptr " + out.let(f"getelementptr inbounds i16, ptr {base}, i64 {block}"))
    return arguments


def entry(out: Emitter, table: str, at: str, kind: str = "i64") -> str:
    """An entry of a table of words."""
    pointer = out.let(f"getelementptr inbounds i64, ptr {table}, i64 {at}")
    return out.let(f"load {kind}, ptr {pointer}")


def table_row(out: Emitter, table: str, width: int) -> list[str]:
    """The entries of a table of words that belong to the chunk ``%c``."""
    first = out.let(f"mul i64 %c, {width}")
    return [entry(out, table, out.let(f"add i64 {first}, {column}")) for column in range(width)]


def assembly(program: Program, operands: Sequence[str], kind: str, name: str = "pass") -> str:
    """The LLVM IR of a Program.

    Args:
        program: what to compile.
        operands: the LLVM type of each operand: float, double, bfloat or half; of whole numbers ``"i16 whole"`` and
            ``"i8 whole"``, of codes ``"i8"`` and their dtype.
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
            "!0 = distinct !{!0, !1}",
            '!1 = !{!"llvm.loop.vectorize.width", i32 8}',
        ]
    )
