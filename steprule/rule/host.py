"""Scalar expressions on the host: in double precision, as ordinary Python."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from .expression import Expression, ordered

__all__ = ["NUMBER", "OPERATIONS", "Guard", "as_float", "asked", "compile_guards", "compile_scalars", "evaluate"]


NUMBER: Any = object()
"""The answer of a hyperparameter that is a number, whichever it is."""


@dataclass(frozen=True)
class Guard:
    """A question a rule asked of its hyperparameters. The Program serves while the answer stays."""

    expression: Expression | None
    """The expression that was asked to be nonzero; None when a hyperparameter was read."""
    path: tuple[Any, ...]
    answer: Any
    """What the expression said, or the flag's value; :data:`NUMBER` if it was none."""

    def __str__(self) -> str:
        if self.expression is None:
            return f"{'.'.join(map(str, self.path))} is {self.answer!r}"
        return f"{self.expression} {'≠' if self.answer else '='} 0"


def as_float(value: Any) -> float:
    """A hyperparameter as a float; a tensor that is in an autograd graph warns when it is read in place."""
    if type(value) is float:
        return value
    return float(value.detach() if hasattr(value, "detach") else value)


def asked(value: Any) -> float:
    """A hyperparameter that is asked to be nonzero; one on a GPU, for which nobody waits, is taken to be."""
    return 1.0 if getattr(value, "is_cuda", False) else as_float(value)


def _guarded(function: Callable[..., float], *, zero: float = math.nan) -> Callable[..., float]:
    """``function`` with IEEE's answers where Python's math raises."""

    def call(*args: float) -> float:
        try:
            return function(*args)
        except OverflowError:
            return math.inf
        except (ValueError, ZeroDivisionError):
            return zero if args[0] == 0 else math.nan

    return call


def _pow(a: float, b: float) -> float:
    try:
        return math.pow(a, b)
    except OverflowError:
        return math.inf if a > 0 or b % 2 == 0 else -math.inf
    except ValueError:
        # zero to a negative power, or a negative number to one that is not whole
        if a:
            return math.nan
        return math.copysign(math.inf, a) if b % 2 == 1 else math.inf


def _div(a: float, b: float) -> float:
    try:
        return a / b
    except ZeroDivisionError:
        return math.nan if a == 0 or a != a else math.copysign(math.inf, a) * math.copysign(1.0, b)


def _to_whole(function: Callable[[float], int]) -> Callable[[float], float]:
    """A function to whole numbers, with the sign of zero as torch has it."""
    return lambda a: math.copysign(float(function(a)), a) if math.isfinite(a) else a


_floor = _to_whole(math.floor)


def _mod(a: float, b: float) -> float:
    return a - b * _floor(_div(a, b))


def _minimum(a: float, b: float) -> float:
    return a if a != a or a < b else b


def _maximum(a: float, b: float) -> float:
    return a if a != a or a > b else b


OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": _div,
    "mod": _mod,
    "pow": _pow,
    "neg": lambda a: -a,
    "abs": abs,
    "sqrt": _guarded(math.sqrt),
    "exp": _guarded(math.exp),
    "log": _guarded(math.log, zero=-math.inf),
    "tanh": math.tanh,
    "sin": _guarded(math.sin),
    "cos": _guarded(math.cos),
    "atan2": math.atan2,
    "erf": math.erf,
    "floor": _floor,
    "ceil": _to_whole(math.ceil),
    "round": _to_whole(round),
    "sign": lambda a: float((a > 0) - (a < 0)),
    "minimum": _minimum,
    "maximum": _maximum,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "and": lambda a, b: bool(a) and bool(b),
    "or": lambda a, b: bool(a) or bool(b),
    "not": lambda a: not a,
    "isnan": lambda a: a != a,
    "where": lambda c, a, b: a if c else b,
    "stored": lambda a: a,
}

INFIX = {"add": "+", "sub": "-", "mul": "*", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}

COMMON = {op: f"{{0}} {symbol} {{1}}" for op, symbol in INFIX.items()} | {
    "div": "{0} / {1} if {1} else _div({0}, {1})",
    "pow": "{0} ** {1} if 0.0 < {0} <= 1.0 <= {1} else _pow({0}, {1})",
    "sqrt": "sqrt({0}) if {0} >= 0.0 else nan",
}
"""Operations written out where they are used, which saves a call: nearly all of a step's numbers are such."""


def evaluate(
    expression: Expression,
    leaf: Callable[[Expression], Any],
    operations: Mapping[str, Callable[..., Any]] = OPERATIONS,
) -> Any:
    """The value of an expression, given those of its leaves.

    Args:
        expression: what to evaluate.
        leaf: the value of a subexpression without operands that is not a constant.
        operations: what the operators mean; plain floats by default.
    """
    known: dict[int, Any] = {}

    for e in ordered([expression], lambda e: e.args if e.op in operations else ()):
        if e.op == "constant":
            known[id(e)] = e.detail
        else:
            known[id(e)] = operations[e.op](*(known[id(a)] for a in e.args)) if e.op in operations else leaf(e)
    return known[id(expression)]


class _Source:
    """Python source for scalar expressions, every subexpression computed once."""

    def __init__(self, slots: Sequence[str] = ()) -> None:
        self.slots = slots
        self.names: dict[int, str] = {}
        self.lines: list[str] = []

    def name(self, e: Expression) -> str:
        for x in ordered([e], lambda x: () if id(x) in self.names else x.args):
            if id(x) not in self.names:
                self.names[id(x)] = self.emit(x)
        return self.names[id(e)]

    def emit(self, e: Expression) -> str:
        if e.op == "constant":
            return f"({e.detail!r})"
        if e.op == "hyper":
            return self.assign(
                f"x if type(x := {subscript(e.detail)}) is float else _as_float(x)"
            )  # which saves a call
        if e.op in ("step", "is_new"):
            return e.op
        if e.op == "slot":
            return f"slots[{self.slots.index(str(e.detail))}]"
        if e.op == "size":
            return self.assign(f"size({e.detail!r})")
        args = [self.name(a) for a in e.args]
        return self.assign(COMMON.get(e.op, f"_{e.op}({', '.join(['{}'] * len(args))})").format(*args))

    def assign(self, value: str) -> str:
        self.lines.append(f"t{len(self.lines)} = {value}")
        return f"t{len(self.lines) - 1}"

    def function(self, arguments: str, result: str) -> Callable[..., Any]:
        namespace: dict[str, Any] = {f"_{op}": function for op, function in OPERATIONS.items()}
        namespace |= {"inf": math.inf, "nan": math.nan, "sqrt": math.sqrt, "_as_float": as_float, "_asked": asked}
        body = "\n    ".join([*self.lines, f"return {result}"])
        exec(f"def host({arguments}):\n    {body}", namespace)
        function: Callable[..., Any] = namespace["host"]
        return function


def subscript(path: Any) -> str:
    return "group" + "".join(f"[{key!r}]" for key in path)


def compile_scalars(roots: Sequence[Expression], slots: Sequence[str]) -> Callable[..., tuple[float, ...]]:
    """A function ``(group, step, is_new, slots, size, stored) -> values of roots``.

    Args:
        roots: scalar expressions.
        slots: the names of the scalar slots, in the order in which the function gets their values.
    """
    source = _Source(slots)
    result = "".join(f"{source.name(root)}, " for root in roots)
    return source.function("group, step, is_new, slots, size, _stored", f"({result})")


def question(source: _Source, guard: Guard) -> str:
    """What a guard's answer is compared with."""
    if guard.expression is None:
        return subscript(guard.path)
    if guard.expression.op == "hyper":
        return f"(_asked({subscript(guard.expression.detail)}) != 0)"
    return f"({source.name(guard.expression)} != 0)"


def compile_guards(guards: Sequence[Guard]) -> Callable[[Mapping[str, Any]], bool]:
    """A function that says whether a parameter group still gives every guard the answer it was traced with."""
    source = _Source()
    numbers = [f"{subscript(g.path)} is None" for g in guards if g.answer is NUMBER]
    others = [g for g in guards if g.answer is not NUMBER]
    asked = [question(source, g) for g in others]
    source.lines[:0] = [f"if {' or '.join(numbers)}: return False"] if numbers else []
    answers = tuple(g.answer for g in others)
    check = source.function("group, *, answers", f"({''.join(a + ', ' for a in asked)}) == answers")
    return partial(check, answers=answers)
