"""Scalar expressions on the host: in double precision, as ordinary Python."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .expression import Expression

__all__ = ["OPERATIONS", "compile_reader", "compile_scalars", "evaluate"]


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


def _div(a: float, b: float) -> float:
    try:
        return a / b
    except ZeroDivisionError:
        return math.nan if a == 0 or a != a else math.copysign(math.inf, a) * math.copysign(1.0, b)


def _minimum(a: float, b: float) -> float:
    return a if a != a or a < b else b


def _maximum(a: float, b: float) -> float:
    return a if a != a or a > b else b


OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": _div,
    "pow": _guarded(lambda a, b: a**b, zero=math.inf),
    "neg": lambda a: -a,
    "abs": abs,
    "sqrt": _guarded(math.sqrt),
    "exp": _guarded(math.exp),
    "log": _guarded(math.log, zero=-math.inf),
    "tanh": math.tanh,
    "sin": _guarded(math.sin),
    "cos": _guarded(math.cos),
    "floor": lambda a: float(math.floor(a)) if math.isfinite(a) else a,
    "ceil": lambda a: float(math.ceil(a)) if math.isfinite(a) else a,
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
}

INFIX = {"add": "+", "sub": "-", "mul": "*", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}


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
    if expression.op == "constant":
        return expression.detail
    if expression.op not in operations:
        return leaf(expression)
    return operations[expression.op](*(evaluate(a, leaf, operations) for a in expression.args))


def compile_reader(paths: Sequence[tuple[Any, ...]]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    """A function that reads hyperparameters out of a parameter group.

    Args:
        paths: ``("lr",)`` for ``group["lr"]``, ``("betas", 0)`` for ``group["betas"][0]``.
    """
    reads = ["g" + "".join(f"[{key!r}]" for key in path) for path in paths]
    reader: Callable[[Mapping[str, Any]], tuple[Any, ...]] = eval(f"lambda g: ({''.join(r + ',' for r in reads)})")
    return reader


def compile_scalars(
    roots: Sequence[Expression], paths: Sequence[tuple[Any, ...]], slots: Sequence[str]
) -> Callable[..., tuple[float, ...]]:
    """A function ``(hyper, step, is_new, slots, size) -> values of roots`` with every subexpression computed once.

    Args:
        roots: scalar expressions.
        paths: the hyperparameters in the order in which the function gets their values.
        slots: the names of the scalar slots in the order in which the function gets their values.
    """
    names: dict[int, str] = {}
    lines: list[str] = []
    namespace: dict[str, Any] = {f"_{op}": function for op, function in OPERATIONS.items()}
    namespace |= {"inf": math.inf, "nan": math.nan}

    def name(e: Expression) -> str:
        if id(e) not in names:
            names[id(e)] = emit(e)
        return names[id(e)]

    def emit(e: Expression) -> str:
        if e.op == "constant":
            return f"({e.detail!r})"
        if e.op == "hyper":
            return f"h{paths.index(e.detail)}"  # type: ignore[arg-type]
        if e.op in ("step", "is_new"):
            return e.op
        if e.op == "slot":
            return f"slots[{slots.index(str(e.detail))}]"
        if e.op == "size":
            return f"size({e.detail!r})"
        args = [name(a) for a in e.args]
        value = f"{args[0]} {INFIX[e.op]} {args[1]}" if e.op in INFIX else f"_{e.op}({', '.join(args)})"
        lines.append(f"t{len(lines)} = {value}")
        return f"t{len(lines) - 1}"

    result = "".join(f"{name(root)}, " for root in roots)
    unpack = [f"({''.join(f'h{i}, ' for i in range(len(paths)))}) = hyper"] if paths else []
    body = "\n    ".join([*unpack, *lines, f"return ({result})"])
    exec(f"def scalars(hyper, step, is_new, slots, size):\n    {body}", namespace)
    function: Callable[..., tuple[float, ...]] = namespace["scalars"]
    return function
