"""A Program as Triton source text: one kernel for each pass, one that joins reductions, one for the scalars."""

from __future__ import annotations

import hashlib
import linecache
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from steprule.kernels.coding import CODES
from steprule.rule.expression import Expression, Level
from steprule.rule.program import GRAD, IN_PARTS, WORDS, Operation, Phase, Program
from steprule.storage import CORRECTIONS, FLOAT16_AT_RANDOM, Formula

__all__ = [
    "NAMES",
    "WHOLE",
    "compiled",
    "exact",
    "extents",
    "hyper_paths",
    "interpreting",
    "pass_source",
    "plain",
    "scalar_source",
]

NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.complex64: "float32",
    torch.complex128: "float64",
    torch.int16: "int16",
    **{dtype: str(dtype).removeprefix("torch.") for dtype in CODES},
}
CODED = {NAMES[dtype]: codes for dtype, codes in CODES.items()}
"""What operands are that hold codes, by the names of their dtypes."""
WHOLE = " whole"
"""Behind the dtype of an operand that holds whole numbers, not codes."""
BITWISE = {"iadd": "+", "iand": "&", "ior": "|", "ixor": "^"}
INFIX = {"add": "+", "sub": "-", "mul": "*"}
COMPARE = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
LIBRARY = {name: name for name in ("pow", "exp", "log", "tanh", "sin", "cos", "erf", "atan2")} | {"round": "nearbyint"}
PLAIN = ("abs", "floor", "ceil")

Value = tuple[str, bool]
"""A name, and whether it is a condition rather than a number."""


class Text:
    """Lines of source, and names for the values they define."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.lines: list[str] = []

    def let(self, value: str) -> str:
        name = f"{self.prefix}{len(self.lines)}"
        self.lines.append(f"{name} = {value}")
        return name

    def number(self, value: Value, kind: str) -> str:
        name, condition = value
        return self.let(f"{name}.to(tl.{kind})") if condition else name

    def truth(self, value: Value) -> str:
        name, condition = value
        return name if condition else self.condition(f"{name} != 0.0")[0]

    def condition(self, text: str) -> Value:
        return self.let(condition(text)), True

    def compute(self, op: str, args: Sequence[Value], kind: str, guarded: bool = False) -> Value:
        """One operation in the arithmetic ``kind``.

        Args:
            op: the operation.
            args: its operands.
            kind: the name of the arithmetic's dtype.
            guarded: let zeros have the result without the machine's long way to it; the bits are the same.
        """
        if op in ("and", "or"):
            a, b = map(self.truth, args)
            return self.condition(f"{a} {'&' if op == 'and' else '|'} {b}")
        if op == "not":
            return self.condition(f"~{self.truth(args[0])}")
        if op == "where":
            which = self.truth(args[0])
            a, b = (self.number(x, kind) for x in args[1:])
            return self.let(f"tl.where({which}, {a}, {b})"), False
        names = [self.number(x, kind) for x in args]
        if op in COMPARE:
            return self.condition(f"{names[0]} {COMPARE[op]} {names[1]}")
        if op == "isnan":
            return self.condition(f"{names[0]} != {names[0]}")
        if guarded and op in ("sqrt", "div"):
            return self.guarded(op, names, kind), False
        return self.let(self.formula(op, names, kind)), False

    def guarded(self, op: str, names: Sequence[str], kind: str) -> str:
        """The root of zero and the quotient of zero by a finite number that is not zero.

        On NVIDIA both leave the short way of machine code for subroutines of 20 and 118 instructions, as all elements
        do that never had a gradient: rows of an embedding that no token touched.
        """
        a, b = names[0], names[-1]
        tests = [f"{a} == 0.0"] if op == "sqrt" else [f"{a} == 0.0", f"{b} != 0.0", f"tl.abs({b}) < float('inf')"]
        instead, result = ("1.0", a) if op == "sqrt" else (b, f"{a} * {b}")
        zero = self.condition(" & ".join(self.condition(test)[0] for test in tests))[0]
        other = self.let(f"tl.where({zero}, {instead}, {a})")
        return self.let(f"tl.where({zero}, {result}, {self.formula(op, [other, *names[1:]], kind)})")

    def integer(self, op: str, detail: Any, args: Sequence[Value]) -> Value:
        """One operation on whole numbers of 32 bits, which wrap around."""
        if op == "whole":
            return self.let(f"tl.full((), {detail}, tl.uint32)"), False
        a, b = args[0][0], args[-1][0]
        if op == "bits":
            return self.let(f"{a}.to(tl.float32).to(tl.uint32, bitcast=True)"), False
        if op == "iwhere":
            return self.let(f"tl.where({a}, {args[1][0]}, {b})"), False
        if op == "word":
            shift = " >> 32" if detail == "high" else ""
            return self.let(f"({a}.to(tl.int64){shift}).to(tl.uint32)"), False
        if op == "index":
            place = f"(({b}.to(tl.int64) << 32) + {a}.to(tl.int64) + offset + lanes)"
            return self.let(f"({place}{' >> 32' if detail == 'high' else ''}).to(tl.uint32)"), False
        if op in ("imul", "ishr"):
            return self.let(f"{a} {'*' if op == 'imul' else '>>'} tl.full((), {detail}, tl.uint32)"), False
        return self.let(f"{a} {BITWISE[op]} {b}"), False

    @staticmethod
    def formula(op: str, names: Sequence[str], kind: str) -> str:
        a, b = names[0], names[-1]
        if op in INFIX:
            return f"{a} {INFIX[op]} {b}"
        if op in ("div", "mod"):
            # the plain operators are approximations in float32
            quotient = f"tl.div_rn({a}, {b})" if kind == "float32" else f"{a} / {b}"
            return quotient if op == "div" else f"{a} - {b} * tl.floor({quotient})"
        if op == "sqrt":
            return f"tl.sqrt_rn({a})" if kind == "float32" else f"tl.sqrt({a})"
        if op in LIBRARY:
            return f"libdevice.{LIBRARY[op]}({', '.join(names)})"
        if op in PLAIN:
            return f"tl.{op}({a})"
        if op == "neg":
            return f"{a} * -1.0"  # Triton's own minus is 0 - x, which loses the sign of zero
        if op == "sign":
            return f"({a} > 0.0).to(tl.{kind}) - ({a} < 0.0).to(tl.{kind})"
        if op in ("minimum", "maximum"):
            return f"tl.where({a} != {a}, {a}, tl.where({a} {'<' if op == 'minimum' else '>'} {b}, {a}, {b}))"
        raise NotImplementedError(op)


def literal(value: Any, kind: str) -> str:
    number = float(value)
    if number == 0.0 and math.copysign(1.0, number) < 0:
        return f"(tl.full((), 0.0, tl.{kind}) * -1.0)"  # Triton makes 0.0 of -0.0
    shown = repr(number) if math.isfinite(number) else f'float("{number}")'
    return f"tl.full((), {shown}, tl.{kind})"


def widened(value: str, stored: str, kind: str) -> str:
    if stored == "bfloat16" and interpreting():
        return f"interpreted.widen({value}).to(tl.{kind})"
    return value if stored == kind else f"{value}.to(tl.{kind})"


def narrowed(value: str, kind: str, stored: str) -> str:
    """Rounded to nearest even, which is Triton's default."""
    if stored == "bfloat16" and interpreting():
        return f"interpreted.narrow({value}.to(tl.float32))"
    return value if stored == kind else f"{value}.to(tl.{stored})"


def pass_source(program: Program, index: int, operands: Sequence[str], kind: str, rows: int = 0) -> str:
    """The source of one pass: a function of a block of elements, and the kernel that calls it for each of a chunk.

    Vectors of 16 bytes are loaded and stored where all operands of the chunk are aligned to them, and elsewhere, as in
    the rest of a chunk, single elements; the order of arithmetic is the same.

    Args:
        program: what to run.
        index: which of its passes.
        operands: the name of each operand's dtype in ``triton.language``.
        kind: the name of the arithmetic's dtype.
        rows: how many rows of scalars are given by value; 0 for a table of any number.
    """
    phase = program.phases[index]
    touched = sorted({*phase.reads, *phase.writes})
    head, given = numbers_before(program, phase, kind, rows)
    scales = [f"s{o}" for o in touched if operands[o] in CODED]
    elements = elements_function(program, index, touched, operands, kind, [*given, *scales])
    totals = [f"total{k}" for k in range(len(phase.reductions))]
    call = ", ".join(
        [
            *(f"a{o}" for o in touched),
            *("at", "count", "keep", "offset"),
            *(*given, *scales, *totals),
            *("{block}", "MASKED={masked}"),
        ]
    )
    call = f"{', '.join(totals)} = elements{index}({call})" if totals else f"elements{index}({call})"
    kinds = [program.reductions[row - len(program.inputs)].kind for row, _ in phase.reductions]
    # elements one by one take more registers than vectors; totals have a place for each element of a whole block
    part = "BLOCK" if totals else "BLOCK // 2"
    addresses = " | ".join(f"a{o}" for o in touched)
    body = [
        *chunk_lines(program, touched, operands),
        "count = count.to(tl.int32)",
        *head,
        *(f"total{k} = tl.zeros((BLOCK,), tl.{accumulator(x)})" for k, x in enumerate(kinds)),
        f"aligned = {condition(f'({addresses}) & 15 == 0')}",
        "vectors = tl.where(aligned, count // BLOCK * BLOCK, 0)",
        f"for at in {loop()}(0, vectors, BLOCK):",
        f"    {call.format(block='BLOCK', masked=False)}",
        f"for at in {loop()}(vectors, count, {part}):",
        f"    {call.format(block=part, masked=True)}",
        *(f"tl.store(partials + {len(kinds)} * chunk + {k}, {combined(x, f'total{k}')})" for k, x in enumerate(kinds)),
    ]
    kernel = define(
        f"pass{index}",
        f"pointers, chunks, {scalar_arguments(program, rows)}"
        "reduced, partials, found_inf, tensors, BLOCK: tl.constexpr",
        body,
    )
    parts = [elements, KERNEL + kernel]
    return "\n\n\n".join([*parts, KERNEL + gather_function(program, index, kinds)] if kinds else parts)


def chunk_lines(
    program: Program, touched: Sequence[int], operands: Sequence[str], chunk: str = "tl.program_id(0).to(tl.int64)"
) -> list[str]:
    """What a program of the grid reads of its chunk: which elements of which tensor they are, and where they lie."""
    sizes = ((o, getattr(torch, plain(operands[o])).itemsize) for o in touched)
    return [
        f"chunk = {chunk}",
        "tensor = tl.load(chunks + 4 * chunk)",
        "offset = tl.load(chunks + 4 * chunk + 1)",
        "grad_offset = tl.load(chunks + 4 * chunk + 2)",
        "count = tl.load(chunks + 4 * chunk + 3)",
        f"keep = None if found_inf is None else {finite()}",
        *(
            f"a{o} = tl.load(pointers + {o} * tensors + tensor) + {'grad_offset' if o == GRAD else 'offset'} * {size}"
            for o, size in sizes
        ),
        *scale_lines(program, touched, operands),
        f"row = tl.load(pointers + {program.operands + len(coded(operands))} * tensors + tensor)",
    ]


def coded(operands: Sequence[str]) -> list[int]:
    """The operands that hold codes, whose scales lie where the table says behind all operands, in their order."""
    return [o for o, name in enumerate(operands) if name in CODED]


def scale_lines(program: Program, touched: Sequence[int], operands: Sequence[str]) -> list[str]:
    """Where the scales of a chunk's codes lie; chunks begin where blocks do."""
    return [
        f"s{o} = tl.load(pointers + {program.operands + k} * tensors + tensor).to(tl.pointer_type(tl.bfloat16))"
        f" + offset // {CODED[operands[o]].block}"
        for k, o in enumerate(coded(operands))
        if o in touched
    ]


KERNEL = '@triton.jit(do_not_specialize=["tensors"], do_not_specialize_on_alignment=["found_inf"])\n'


def plain(operand: str) -> str:
    """The dtype of an operand in ``triton.language``."""
    return operand.removesuffix(WHOLE)


def define(name: str, arguments: str, body: Sequence[str]) -> str:
    return "\n    ".join([f"def {name}({arguments}):", *body])


def scalar_arguments(program: Program, rows: int) -> str:
    """How a kernel is given the scalars: as a table, or so many rows of numbers by value."""
    if not rows:
        return "scalars, "
    return "".join(f"x{row}_{k}: tl.float64, " for row in range(rows) for k in range(len(program.scalars)))


def scalar_value(program: Program, column: int, rows: int) -> str:
    """A scalar of a kernel's own tensor, in float64."""
    if not rows:
        return f"tl.load(scalars + {len(program.scalars)} * row + {column})"
    of_rows = [f"tl.full((), x{row}_{column}, tl.float64)" for row in range(rows)]
    value = of_rows[0]
    for row, own in enumerate(of_rows[1:], 1):
        value = f"tl.where({condition(f'row == {row}')}, {own}, {value})"
    return value


def numbers_before(program: Program, phase: Phase, kind: str, rows: int) -> tuple[list[str], list[str]]:
    """What is one number for each tensor: lines that compute it, in float64, and the names that elements are given."""
    before = {index: o for index, o in enumerate(phase.operations) if o.level <= Level.REDUCED}
    needed = {a for o in phase.operations if o.level is Level.ARRAY for a in o.args}
    needed |= {value for _, value in (*phase.stores, *phase.reductions, *phase.sums)}
    text, given = Text("w"), [f"n{index}" for index in before if index in needed]
    wide: dict[int, Value] = {}

    def widen(index: int) -> Value:
        if index not in wide:
            o = before[index]
            if o.op in WORDS:
                wide[index] = text.integer(o.op, o.detail, list(map(widen, o.args)))
                return wide[index]
            computed = text.compute(o.op, list(map(widen, o.args)), "float64") if o.args else None
            wide[index] = computed or (text.let(leaf(o, "float64")), False)
        return wide[index]

    def leaf(o: Operation, target: str) -> str:
        if o.op == "constant":
            return literal(o.detail, target)
        if o.op == "scalar":
            return widened(scalar_value(program, o.detail, rows), "float64", target)
        return widened(f"tl.load(reduced + {o.detail} * tensors + tensor)", "float64", target)

    for name in given:
        o = before[int(name[1:])]
        if o.op in WORDS:
            text.lines.append(f"{name} = {widen(int(name[1:]))[0]}")
        elif o.op in ("scalar", "constant"):
            text.lines.append(f"{name} = {leaf(o, kind)}")
        else:
            value = text.number(widen(int(name[1:])), "float64")
            text.lines.append(f"{name} = {widened(value, 'float64', kind)}")
    return text.lines, given


def elements_function(
    program: Program, index: int, touched: Sequence[int], operands: Sequence[str], kind: str, given: Sequence[str]
) -> str:
    """The function of one block of elements; it returns the running totals of the reductions.

    A block that is not masked is whole, and aligned to 16 bytes in every operand.
    """
    phase = program.phases[index]
    text = Text("v")
    known = {int(name[1:]): (name, False) for name in given if name.startswith("n")}
    values = element_values(text, phase, known, operands, kind)
    for k, (row, value) in enumerate(phase.reductions):
        reduction = program.reductions[row - len(program.inputs)].kind
        wide = text.let(f"{text.number(values[value], kind)}.to(tl.float64)")
        text.lines += ["if MASKED:", f"    {wide} = tl.where(mask, {wide}, 0.0).reshape(BLOCK)"]
        text.lines.append(f"total{k} = {accumulated(reduction, f'total{k}', wide)}")
    text.lines += stores(program, phase, text, values, operands, kind)
    totals = [f"total{k}" for k in range(len(phase.reductions))]
    arguments = [*(f"a{o}" for o in touched), "at", "count", "keep", "offset", *given, *totals]
    body = [
        "lanes = at + tl.arange(0, BLOCK)",
        # Triton lays out blocks of one shape for the widest vectors among them, which scatters single elements
        "lanes = lanes[None, :] if MASKED else lanes",
        "mask = lanes < count if MASKED else None",
        "kept = mask if keep is None else (mask & keep if MASKED else keep)",
        *(f"o{o} = a{o}.to(tl.pointer_type(tl.{plain(operands[o])}))" for o in touched),
        "if not MASKED:",
        *(f"    o{o} = tl.multiple_of(o{o}, 16)" for o in touched),
        *text.lines,
        *([f"return {', '.join(totals)}"] if totals else []),
    ]
    name = ", ".join([*arguments, "BLOCK: tl.constexpr", "MASKED: tl.constexpr"])
    return "@triton.jit\n" + define(f"elements{index}", name, body)


def element_values(
    text: Text, phase: Phase, values: dict[int, Value], operands: Sequence[str], kind: str
) -> dict[int, Value]:
    """The operations of a pass on each element, whose operands lie at ``lanes``.

    Args:
        text: where the lines go.
        phase: the pass.
        values: what is known before.
        operands: the name of each operand's dtype.
        kind: the name of the arithmetic's dtype.
    """
    for index, o in enumerate(phase.operations):
        if o.level is not Level.ARRAY:
            continue
        if o.op == "read" and operands[o.detail].endswith(WHOLE):
            loaded = f"tl.load(o{o.detail} + lanes, mask=mask).to(tl.int32)"
            values[index] = text.let(f"{loaded}.to(tl.uint32, bitcast=True)"), False
        elif o.op == "read":
            loaded = widened(f"tl.load(o{o.detail} + lanes, mask=mask)", operands[o.detail], kind)
            values[index] = text.let(loaded), False
            if codes := CODED.get(operands[o.detail]):
                scale = f"tl.load(s{o.detail} + lanes // {codes.block}, mask=mask)"
                given = [values[index], (text.let(widened(scale, "bfloat16", kind)), False)]
                values[index] = computed(text, codes.decode, given, kind)
        elif o.op == "constant":
            values[index] = text.let(literal(o.detail, kind)), False
        elif o.op in WORDS:
            values[index] = text.integer(o.op, o.detail, [values[a] for a in o.args])
        elif o.op in IN_PARTS:
            values[index] = in_parts(text, o, [values[a] for a in o.args], kind)
        elif o.op == "drawn":
            shifted = f"({values[o.args[0]][0]} >> tl.full((), {o.detail}, tl.uint32))"
            values[index] = text.let(f"{shifted}.to(tl.{kind})"), False
        elif o.op == "noisy":
            values[index] = values[o.args[0]]
        elif o.op == "stored":
            held = operands[o.detail]
            short = text.let(narrowed(text.number(values[o.args[0]], kind), kind, held))
            values[index] = text.let(widened(short, held, kind)), False
        else:
            first = phase.operations[o.args[0]]
            of_elements = first.level is Level.ARRAY and first.op != "constant"
            values[index] = text.compute(o.op, [values[a] for a in o.args], kind, of_elements)
    return values


def accumulator(reduction: str) -> str:
    # the bits of float64 that are not negative are ordered as they are, with NaN above everything
    return "int64" if reduction == "max_abs" else "float64"


def accumulated(reduction: str, total: str, wide: str) -> str:
    if reduction == "max_abs":
        return f"tl.maximum({total}, tl.abs({wide}).to(tl.int64, bitcast=True))"
    return f"{total} + {wide} * {wide}" if reduction == "sum_of_squares" else f"{total} + {wide}"


def combined(reduction: str, total: str) -> str:
    if reduction == "max_abs":
        return f"tl.max({total}, axis=0).to(tl.float64, bitcast=True)"
    return f"tl.sum({total}, axis=0)"


def stores(
    program: Program, phase: Phase, text: Text, values: dict[int, Value], operands: Sequence[str], kind: str
) -> list[str]:
    """The lines that store a pass's results at ``lanes``; those of a step that is skipped only in between."""
    lines = []
    for operand, value in phase.stores:
        persistent = operand < program.operands - program.temporaries
        number, o = text.number(values[value], kind), phase.operations[value]
        if operands[operand] in CODED:
            lines += encoded(text, operand, operands[operand], number, o, values, kind)
            continue
        if o.op in ("upper", "lower"):
            short = stored_part(number, plain(operands[operand]))
            lines.append(f"tl.store(o{operand} + lanes, {short}, mask={'kept' if persistent else 'mask'})")
            continue
        if o.op == "noisy" and operands[operand] == "bfloat16":
            number = carried(text, number, values[o.args[1]][0], kind)
        if o.op == "noisy" and operands[operand] == "float16":
            number = on_bits(text, FLOAT16_AT_RANDOM, [(number, False), values[o.args[1]]], kind)[0]
        stored = narrowed(number, kind, operands[operand])
        lines.append(f"tl.store(o{operand} + lanes, {stored}, mask={'kept' if persistent else 'mask'})")
    return lines


def stored_part(name: str, stored: str) -> str:
    """Either part of a weight as it is stored: of a number, whose bits have a lower half of zero, the upper; of a whole
    number the low bits."""
    if stored != "bfloat16":
        return f"{name}.to(tl.{stored})"
    upper = f"({name}.to(tl.float32).to(tl.uint32, bitcast=True) >> tl.full((), 16, tl.uint32))"
    return f"{upper}.to(tl.uint16).to(tl.bfloat16, bitcast=True)"


def in_parts(text: Text, o: Operation, args: Sequence[Value], kind: str) -> Value:
    """A bfloat16 and its correction made one number, or either of them made of it; the correction a whole number."""
    return on_bits(text, CORRECTIONS[o.detail].formula(o.op, len(args)), args, kind)


def on_bits(text: Text, formula: Formula, given: Sequence[Value], kind: str) -> Value:
    """A formula of numbers and whole numbers."""

    def operation(op: str, args: list[Value], detail: Any) -> Value:
        if op == "constant":
            return text.let(literal(detail, kind)), False
        if op == "number":
            return text.let(f"{args[0][0]}.to(tl.float32, bitcast=True)"), False
        if op == "drawn":
            return text.let(f"({args[0][0]} >> tl.full((), {detail}, tl.uint32)).to(tl.{kind})"), False
        return text.integer(op, detail, args) if op in WORDS else text.compute(op, args, kind)

    found: Value = formula.compute(given, operation)
    return found


def computed(text: Text, formula: Formula, given: Sequence[Value], kind: str) -> Value:
    """A formula of a storage format, of some numbers."""

    def operation(op: str, args: list[Any], detail: Any) -> Value:
        if op == "constant":
            return text.let(literal(detail, kind)), False
        return text.compute(op, args, kind, op == "sqrt")

    result: Value = formula.compute(given, operation)
    return text.number(result, kind), False


def encoded(
    text: Text, operand: int, held: str, number: str, o: Operation, values: dict[int, Value], kind: str
) -> list[str]:
    """Encode numbers in blocks, each by its own largest; the lines that store codes and scales."""
    codes = CODED[held]
    root = computed(text, codes.root, [(number, False)], kind)[0]
    text.lines += ["if MASKED:", f"    {root} = tl.where(mask, {root}, 0.0).reshape(BLOCK)"]
    blocks = text.let(f"{root}.reshape(BLOCK // {codes.block}, {codes.block})")
    bits = text.let(f"tl.max(tl.abs({blocks}).to(tl.int32, bitcast=True), axis=1)")
    largest = text.let(f"{bits}.to(tl.float32, bitcast=True)"), False
    short = text.let(narrowed(computed(text, codes.scale, [largest], kind)[0], kind, "bfloat16"))
    inverse = computed(text, codes.inverse, [(text.let(widened(short, "bfloat16", kind)), False)], kind)[0]
    given, formula = [(blocks, False), (text.let(f"{inverse}[:, None]"), False)], codes.encode
    if o.op == "noisy" and codes.at_random is not None:
        noise = text.let(f"({values[o.args[1]][0]} >> tl.full((), 16, tl.uint32)).to(tl.{kind})")
        given.append((text.let(f"{noise}.reshape(BLOCK // {codes.block}, {codes.block})"), False))
        formula = codes.at_random
    code = computed(text, formula, given, kind)[0]

    shaped = text.let(f"{code}.to(tl.{held}).reshape(BLOCK)")
    text.lines += ["if MASKED:", f"    {shaped} = {shaped}[None, :]"]
    block = text.let(f"at // {codes.block} + tl.arange(0, BLOCK // {codes.block})")
    there = text.let(condition(f"{block} * {codes.block} < count"))
    kept = text.let(f"{there} if keep is None else {there} & keep")
    return [
        f"tl.store(o{operand} + lanes, {shaped}, mask=kept)",
        f"tl.store(s{operand} + {block}, {short}, mask={kept})",
    ]


def carried(text: Text, number: str, noise: str, kind: str) -> str:
    """A number of which the lower half of its bits is rounded away, up or down by random bits."""
    short = text.let(f"{number}.to(tl.float32)")
    half, high = (f"tl.full((), {number}, tl.uint32)" for number in (16, 0xFFFF0000))
    bits = text.let(f"({short}.to(tl.uint32, bitcast=True) + ({noise} >> {half})) & {high}")
    rounded = f"tl.where({short} != {short}, {short}, {bits}.to(tl.float32, bitcast=True))"
    return text.let(rounded if kind == "float32" else f"{rounded}.to(tl.{kind})")


def gather_function(program: Program, index: int, kinds: Sequence[str]) -> str:
    """The kernel that brings the chunks' parts of reductions together for each tensor, in the order of the chunks."""
    rows = [row for row, _ in program.phases[index].reductions]
    body = [
        "tensor = tl.program_id(0).to(tl.int64)",
        "first = tl.load(spans + tensor)",
        "stop = tl.load(spans + tensor + 1)",
    ]
    for k, (row, kind) in enumerate(zip(rows, kinds, strict=True)):
        part = f"tl.load(partials + {len(kinds)} * lanes + {k}, mask=lanes < stop, other=0.0)"
        step = f"tl.maximum(total, {part}.to(tl.int64, bitcast=True))" if kind == "max_abs" else f"total + {part}"
        body += [
            f"total = tl.zeros((BLOCK,), tl.{accumulator(kind)})",
            f"for at in {loop()}(first, stop, BLOCK):",
            "    lanes = at + tl.arange(0, BLOCK)",
            f"    total = {step}",
            f"tl.store(reduced + {row} * tensors + tensor, {combined(kind, 'total')})",
        ]
    return define(f"gather{index}", "partials, spans, reduced, tensors, BLOCK: tl.constexpr", body)


def hyper_paths(program: Program) -> list[tuple[Any, ...]]:
    """Where in a group the hyperparameters stand that the scalars depend on, in the order of the kernel's table."""
    return list(dict.fromkeys(e.detail for e in program.host_expressions() if e.op == "hyper"))


def extents(program: Program) -> list[Any]:
    """What the scalars depend on of a parameter: dimensions, None for the number of elements, or ``"eps"``."""
    return list(dict.fromkeys(e.detail for e in program.host_expressions() if e.op == "size"))


def scalar_source(program: Program, counter: str) -> str:
    """The source of the kernel that computes the scalars on the device and counts the step, a tensor in each lane.

    Args:
        program: what to run.
        counter: the name of the dtype of ``step`` and the scalar slots.
    """
    paths, shape = hyper_paths(program), extents(program)
    first = int(program.uses_step)
    lines = {s.name: first + k for k, s in enumerate(program.scalar_slots)}
    text = Text("w")
    values: dict[int, Value] = {}

    def table(name: str, line: int) -> str:
        return f"tl.load({name} + {line} * tensors + tensor, mask=mask, other=0)"

    def leaf(e: Expression) -> Value:
        if e.op == "constant":
            return text.let(literal(e.detail, "float64")), False
        if e.op == "hyper":
            place = f"hyper + {len(paths)} * group + {paths.index(e.detail)}"
            return text.let(f"tl.load({place}, mask=mask, other=0.0)"), False
        if e.op == "step":
            return "step", False
        if e.op == "is_new":
            return text.condition("tl.load(fresh + tensor, mask=mask, other=0) != 0")
        if e.op == "slot":
            return text.let(f"tl.load(c{lines[str(e.detail)]}, mask=mask, other=0.0).to(tl.float64)"), False
        if e.op == "size":
            return text.let(table("extents", shape.index(e.detail))), False
        if e.op == "stored":
            return text.let(f"{text.number(values[id(e.args[0])], 'float64')}.to(tl.{counter}).to(tl.float64)"), False
        return text.compute(e.op, [values[id(a)] for a in e.args], "float64")

    for e in program.host_expressions():
        values[id(e)] = leaf(e)
    results = [text.number(values[id(e)], "float64") for e in program.scalars]
    updates = {first + k: text.number(values[id(u)], "float64") for k, u in enumerate(program.updates) if u is not None}
    counters = range(first + len(lines))
    body = [
        "tensor = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)",
        "mask = tensor < tensors",
        f"kept = mask if found_inf is None else mask & ({finite()})",
        "group = tl.load(groups + tensor, mask=mask, other=0)",
        *(f"c{k} = {table('counters', k)}.to(tl.pointer_type(tl.{counter}))" for k in counters),
        *(["step = tl.load(c0, mask=mask, other=0.0).to(tl.float64) + 1.0"] if first else []),
        *text.lines,
        *(f"tl.store(scalars + {len(results)} * tensor + {k}, {value}, mask=mask)" for k, value in enumerate(results)),
        *([f"tl.store(c0, step.to(tl.{counter}), mask=kept)"] if first else []),
        *(f"tl.store(c{k}, {value}.to(tl.{counter}), mask=kept)" for k, value in updates.items()),
        "tl.store(fresh + tensor, 0, mask=kept)",
    ]
    arguments = "hyper, groups, counters, fresh, extents, scalars, found_inf, tensors, BLOCK: tl.constexpr"
    return KERNEL + define("advance", arguments, body)


def interpreting() -> bool:
    """Whether Triton's interpreter runs kernels, on the CPU (``TRITON_INTERPRET=1``)."""
    import triton

    return bool(triton.knobs.runtime.interpret)


def exact(amd: bool = torch.version.hip is not None) -> dict[str, bool]:
    """Options of a launch under which numbers round as those of torch's operations, one by one.

    Left to itself, Triton contracts products with sums, and on NVIDIA takes the functions of libdevice that flush
    subnormal numbers to zero: log(1e-45) would be -inf.
    """
    return {"enable_fp_fusion": False} if amd else {"enable_fp_fusion": False, "enable_reflect_ftz": False}


def loop() -> str:
    return "interpreted.range" if interpreting() else "range"


def finite() -> str:
    return condition("tl.load(found_inf) == 0.0")


def condition(text: str) -> str:
    return f"interpreted.condition({text})" if interpreting() else text


class Interpreted:
    """What the interpreter lacks: libdevice, loops to a loaded bound, conditions that are no blocks, and bfloat16
    rounded to nearest even."""

    @staticmethod
    def range(start: Any, stop: Any, step: int) -> range:
        first, last = (x if isinstance(x, int) else x.handle.data.item() for x in (start, stop))
        return range(first, last, step)

    @staticmethod
    def wrap(data: Any, like: Any, dtype: Any) -> Any:
        import triton.language as tl
        from triton.runtime.interpreter import TensorHandle

        kind = tl.block_type(dtype, like.shape) if like.type.is_block() else dtype
        return tl.tensor(TensorHandle(data, dtype), kind)

    @classmethod
    def condition(cls, x: Any) -> Any:
        import triton.language as tl

        return cls.wrap(x.handle.data.astype(bool), x, tl.int1)

    @classmethod
    def widen(cls, x: Any) -> Any:
        import triton.language as tl

        bits = x.handle.data.view(np.uint16).astype(np.uint32) << 16
        return cls.wrap(bits.view(np.float32), x, tl.float32)

    @classmethod
    def narrow(cls, x: Any) -> Any:
        import triton.language as tl

        rounded = torch.from_numpy(np.array(x.handle.data)).to(torch.bfloat16)
        return cls.wrap(rounded.view(torch.int16).numpy().view(np.uint16), x, tl.bfloat16)

    def __getattr__(self, name: str) -> Any:
        if name == "erf":
            return lambda x: self.wrap(torch.erf(torch.from_numpy(np.array(x.handle.data))).numpy(), x, x.dtype)
        function = getattr(np, {"pow": "power", "atan2": "arctan2", "nearbyint": "rint"}.get(name, name))
        return lambda *x: self.wrap(function(*(a.handle.data for a in x)), x[0], x[0].dtype)


@lru_cache(maxsize=256)
def compiled(source: str) -> dict[str, Any]:
    """The functions of generated source, by name.

    Triton reads the text of a function from where Python finds it, so it stands in ``linecache``.
    """
    import triton
    import triton.language as tl
    from triton.language.extra import libdevice

    name = f"<steprule {hashlib.sha256(source.encode()).hexdigest()[:16]}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    namespace: dict[str, Any] = {"__name__": "steprule.generated", "triton": triton, "tl": tl, "libdevice": libdevice}
    if interpreting():
        namespace |= {"libdevice": Interpreted(), "interpreted": Interpreted()}
    exec(compile(source, name, "exec"), namespace)
    return namespace
