"""The operations of the language as LLVM IR."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from typing import Any

from steprule.rule.program import WORDS, Operation
from steprule.storage import CORRECTIONS, FLOAT16_AT_RANDOM, Formula

__all__ = [
    "Emitter",
    "accumulate",
    "compute",
    "computed",
    "in_parts",
    "integer",
    "literal",
    "load_code",
    "load_element",
    "load_whole",
    "rounded",
    "short",
    "store",
    "store_code",
    "store_part",
    "to_width",
]

# No fast-math flags: contract and arcp would round otherwise than the eager reference, nsz lose the sign of zero, nnan
# and ninf what NaN and Inf are, and reassoc what a rule keeps that compensates its rounding errors.
INFIX = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
INTRINSIC = {"abs": "fabs", "pow": "pow"} | {
    name: name for name in ("sqrt", "exp", "log", "tanh", "sin", "cos", "floor", "ceil")
}
INTRINSIC["round"] = "roundeven"
LIBRARY = ("erf", "atan2")
"""What LLVM has no intrinsic for: the functions of the C library."""
COMPARE = {"lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge", "eq": "oeq", "ne": "une"}


class Emitter:
    """Lines of IR, and names for the values they define."""

    def __init__(self, count: int = 0) -> None:
        self.lines: list[str] = []
        self.count = count
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


def load_element(out: Emitter, pointer: str, stored: str, kind: str) -> str:
    """Load an element and widen (or narrow) it to the arithmetic's type."""
    if stored == "bfloat":
        bits = out.let(f"load i16, ptr {pointer}, align 1")
        bits = out.let(f"shl i32 {out.let(f'zext i16 {bits} to i32')}, 16")
        value, stored = out.let(f"bitcast i32 {bits} to float"), "float"
    else:
        value = out.let(f"load {stored}, ptr {pointer}, align 1")
    return to_width(out, value, stored, kind)


def to_width(out: Emitter, value: str, source: str, target: str) -> str:
    order = ["half", "float", "double"]
    if source == target:
        return value
    if (source, target) == ("double", "half"):
        # by way of float, as torch does; few processors know a shorter one
        value, source = to_width(out, value, "double", "float"), "float"
    cast = "fpext" if order.index(source) < order.index(target) else "fptrunc"
    return out.let(f"{cast} {source} {value} to {target}")


def store(out: Emitter, value: str, pointer: str, stored: str, kind: str, tame: bool, noise: str | None = None) -> None:
    """Round to nearest even, or by random bits, and store.

    ``tame`` says that no NaN has low bits that rounding could carry into the sign. So it is when every operand is
    bfloat16: their NaNs have low bits of zero, which arithmetic hands on, and those that the machine makes have too.
    """
    if stored == "half" and noise is not None:
        given = [(to_width(out, value, kind, "float"), "float"), (noise, "i32")]
        value, kind = on_bits(out, FLOAT16_AT_RANDOM, given)
    if stored != "bfloat":
        out.do(f"store {stored} {to_width(out, value, kind, stored)}, ptr {pointer}, align 1")
        return
    out.do(f"store i16 {short(out, value, kind, tame, noise)}, ptr {pointer}, align 1")


def short(out: Emitter, value: str, kind: str, tame: bool, noise: str | None = None) -> str:
    """The bits of a bfloat16; with random bits, the upper half of those carries into the upper half of the value's."""
    value = to_width(out, value, kind, "float")
    bits = out.let(f"bitcast float {value} to i32")
    if noise is not None:
        rounded = out.let(f"add i32 {bits}, {out.let(f'lshr i32 {noise}, 16')}")
    else:
        odd = out.let(f"and i32 {out.let(f'lshr i32 {bits}, 16')}, 1")
        rounded = out.let(f"add i32 {out.let(f'add i32 {bits}, 32767')}, {odd}")
    if not tame:
        isnan = out.let(f"fcmp uno float {value}, 0.0")
        rounded = out.let(f"select i1 {isnan}, i32 2143289344, i32 {rounded}")
    return out.let(f"trunc i32 {out.let(f'lshr i32 {rounded}, 16')} to i16")


def computed(out: Emitter, formula: Formula, given: Sequence[str]) -> str:
    """The result of a formula in float."""

    def operation(op: str, args: list[tuple[str, str]], detail: Any) -> tuple[str, str]:
        return (literal(float(detail), "float"), "float") if op == "constant" else compute(out, op, args, "float")

    name: str = formula.compute([(number, "float") for number in given], operation)[0]
    return name


def load_code(out: Emitter, pointer: str, signed: bool) -> str:
    """Load a code of 8 bits as a float."""
    byte = out.let(f"load i8, ptr {pointer}, align 1")
    whole = out.let(f"{'sext' if signed else 'zext'} i8 {byte} to i32")
    return out.let(f"sitofp i32 {whole} to float")


def store_code(out: Emitter, code: str, pointer: str) -> None:
    """Store a float that is a code."""
    whole = out.let(f"fptosi float {code} to i32")
    out.do(f"store i8 {out.let(f'trunc i32 {whole} to i8')}, ptr {pointer}, align 1")


def load_whole(out: Emitter, pointer: str, stored: str) -> str:
    """Load a whole number with its sign."""
    return out.let(f"sext {stored} {out.let(f'load {stored}, ptr {pointer}, align 1')} to i32")


def store_part(out: Emitter, value: tuple[str, str], pointer: str, stored: str) -> None:
    """Store either part of a weight: of a float, the lower half of whose bits is zero, the upper; or the low bits of a
    whole number."""
    name, kind = value
    if kind == "float":
        name = out.let(f"lshr i32 {out.let(f'bitcast float {name} to i32')}, 16")
    out.do(f"store {stored} {out.let(f'trunc i32 {name} to {stored}')}, ptr {pointer}, align 1")


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
        return out.let(f"{INFIX[op]} {kind} {names[0]}, {names[1]}"), kind
    if op in COMPARE:
        return out.let(f"fcmp {COMPARE[op]} {kind} {names[0]}, {names[1]}"), "i1"
    if op in INTRINSIC:
        suffix = "f64" if kind == "double" else "f32"
        function = f"@llvm.{INTRINSIC[op]}.{suffix}"
        out.declared.add(f"declare {kind} {function}({', '.join([kind] * len(names))})")
        return out.let(f"call {kind} {function}({', '.join(f'{kind} {n}' for n in names)})"), kind
    if op in LIBRARY:
        function = f"@{op}" if kind == "double" else f"@{op}f"
        out.declared.add(
            f"declare {kind} {function}({', '.join([kind] * len(names))}) memory(none) nounwind willreturn"
        )
        return out.let(f"call {kind} {function}({', '.join(f'{kind} {n}' for n in names)})"), kind
    if op == "mod":
        floor = compute(out, "floor", [compute(out, "div", [(n, kind) for n in names], kind)], kind)
        return compute(out, "sub", [(names[0], kind), compute(out, "mul", [(names[1], kind), floor], kind)], kind)
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


def in_parts(out: Emitter, o: Operation, args: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """A bfloat16 and its correction made one float, or either of them made of it; the correction a whole number."""
    return on_bits(out, CORRECTIONS[o.detail].formula(o.op, len(args)), args)


def on_bits(out: Emitter, formula: Formula, given: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """A formula of floats and whole numbers."""

    def operation(op: str, args: list[tuple[str, str]], detail: Any) -> tuple[str, str]:
        if op == "constant":
            return literal(float(detail), "float"), "float"
        if op == "number":
            return out.let(f"bitcast i32 {args[0][0]} to float"), "float"
        if op == "drawn":
            return out.let(f"uitofp i32 {out.let(f'lshr i32 {args[0][0]}, {detail}')} to float"), "float"
        if op in WORDS:
            return integer(out, op, detail, [name for name, _ in args], "float")
        return compute(out, op, args, "float")

    found: tuple[str, str] = formula.compute(given, operation)
    return found


def integer(out: Emitter, op: str, detail: Any, names: Sequence[str], wide: str = "double") -> tuple[str, str]:
    """One operation on whole numbers of 32 bits, which wrap around."""
    if op == "word":
        number = out.let(f"fptoui {wide} {names[0]} to i64")
        return half(out, number, detail), "i32"
    if op == "index":
        if detail == "low":  # in 32 bits from the start, and by what counts the loop, for the sake of its vectors
            before = out.let(f"add i64 {out.let('add i64 %first, %start')}, {out.let(f'zext i32 {names[0]} to i64')}")
            before, c = out.let(f"trunc i64 {before} to i32"), out.let("trunc i64 %c to i32")
            return out.let(f"add i32 {before}, {c}"), "i32"
        origin = out.let(f"or i64 {out.let(f'zext i32 {names[0]} to i64')}, {shifted(out, names[1])}")
        place = out.let(f"add i64 {out.let('add i64 %first, %i')}, {origin}")
        return half(out, place, detail), "i32"
    if op == "whole":
        return str(detail), "i32"
    if op == "bits":
        return out.let(f"bitcast float {names[0]} to i32"), "i32"
    if op == "iwhere":
        return out.let(f"select i1 {names[0]}, i32 {names[1]}, i32 {names[2]}"), "i32"
    if op == "imul":
        return out.let(f"mul i32 {names[0]}, {detail}"), "i32"
    if op == "ishr":
        return out.let(f"lshr i32 {names[0]}, {detail}"), "i32"
    return out.let(f"{op[1:]} i32 {names[0]}, {names[1]}"), "i32"


def half(out: Emitter, number: str, which: str) -> str:
    number = out.let(f"lshr i64 {number}, 32") if which == "high" else number
    return out.let(f"trunc i64 {number} to i32")


def shifted(out: Emitter, word: str) -> str:
    return out.let(f"shl i64 {out.let(f'zext i32 {word} to i64')}, 32")


def rounded(out: Emitter, value: str, stored: str, kind: str) -> str:
    """A number as it will be read again once it was stored."""
    if stored != "bfloat":
        return to_width(out, to_width(out, value, kind, stored), stored, kind)
    bits = out.let(f"shl i32 {out.let(f'zext i16 {short(out, value, kind, False)} to i32')}, 16")
    return to_width(out, out.let(f"bitcast i32 {bits} to float"), "float", kind)


def accumulate(out: Emitter, reduction: str, value: str, kind: str, total: str) -> str:
    """Add an element to a running total, in double precision; LLVM may regroup this sum."""
    wide = to_width(out, value, kind, "double")
    if reduction == "max_abs":
        size, _ = compute(out, "abs", [(wide, "double")], "double")
        out.declared.add("declare double @llvm.maximum.f64(double, double)")
        return out.let(f"call nsz double @llvm.maximum.f64(double {total}, double {size})")
    if reduction == "sum_of_squares":
        wide = out.let(f"fmul double {wide}, {wide}")
    return out.let(f"fadd reassoc contract double {total}, {wide}")
