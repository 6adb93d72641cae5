"""Slots, the named pieces of a parameter's state, and how a class declares them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from steprule.messages.spelling import nearest

from .expression import Level, RuleError

__all__ = ["Slot", "array", "channel", "column", "float_name", "fraction", "rank", "row", "scalar", "table"]


@dataclass(frozen=True)
class Extent:
    """How many rows or columns a table has, where that is part of the shorter side of the parameter's matrix.

    Attributes:
        value: so many, or the hyperparameter that says it.
        part: whether it is a fraction of the side.
    """

    value: float | str
    part: bool

    def of(self, shorter: int) -> int:
        if isinstance(self.value, str):
            raise RuleError(f"a table has as many rows or columns as h.{self.value} says, which is not known here")
        return min(shorter, max(1, math.ceil(self.value * shorter) if self.part else int(self.value)))


Side = int | Literal["rows", "columns", "shorter", "longer"] | Extent


@dataclass(frozen=True)
class Slot:
    """A named piece of a parameter's state, as :func:`array`, :func:`row`, :func:`column`, :func:`channel` or
    :func:`scalar` declares it."""

    kind: Literal["array", "row", "column", "channel", "table", "scalar"] = "array"
    initial: float | str = 0.0
    dtype: str | None = None
    name: str = ""
    scope: Literal["tensor", "all"] = "tensor"
    """Whether each parameter has a scalar of its own, or the whole optimizer one."""
    sides: tuple[Side, ...] = ()
    """Of a table: how many rows and columns it has."""
    block: int | str | None = None
    """Of a table: the largest extent of a block of the parameter's matrix, or the hyperparameter that says it."""
    most: int | str | None = None
    """Of a square table: how many rows it may have, or the hyperparameter that says it; of more it is the diagonal."""
    positive: bool = False
    """Whether it holds no negative number, ever."""
    exact: str | None = None
    """Why it must not be held in fewer bits, in words; None where it may be."""
    format: str | None = None
    """The format of :mod:`steprule.storage` that the group asks for."""
    beside: str | None = None
    """How it holds what the parameter's own bits lack, as ``master`` says; None for every other slot."""

    @property
    def level(self) -> Level:
        """How often it has a value."""
        return Level.REDUCED if self.scope == "all" else LEVELS[self.kind]

    def shape(self, param: Sequence[int]) -> tuple[int, ...]:
        """Its shape, of that of the parameter."""
        if self.kind == "row":
            return (*param[:-1], 1)
        if self.kind == "table":
            return self.table_shape(param[0], math.prod(param[1:]))
        if self.kind == "channel":
            return (*param[:1], *(1 for _ in param[1:]))
        if self.kind == "column":
            return (*param[:-2], 1, *param[-1:])
        return tuple(param) if self.kind == "array" else ()

    def table_shape(self, rows: int, columns: int) -> tuple[int, ...]:
        """Of a matrix of so many rows and columns; one table for each of its blocks, where there are several."""
        if self.block is None:
            return self.extents((rows, columns))
        assert isinstance(self.block, int)
        inside = self.extents((min(rows, self.block), min(columns, self.block)))
        count = -(-rows // self.block) * -(-columns // self.block)
        return inside if count <= 1 else (count, *inside)

    def extents(self, shape: tuple[int, int]) -> tuple[int, int]:
        """The rows and columns of a table, for a block of so many."""
        known: dict[Any, Any] = {"rows": shape[0], "columns": shape[1], "shorter": min(shape), "longer": max(shape)}
        first, second = (s.of(min(shape)) if isinstance(s, Extent) else int(known.get(s, s)) for s in self.sides)
        return first, 1 if self.is_diagonal(first) else second

    def is_diagonal(self, rows: int) -> bool:
        """Whether a square table of so many rows is its diagonal, a column."""
        return isinstance(self.most, int) and rows > self.most and self.sides[0] == self.sides[1]

    def settled(self, hyper: Mapping[str, Any]) -> Slot:
        """The slot with the numbers that hyperparameters say of its shape."""

        def number(value: Any) -> Any:
            return hyper[value] if isinstance(value, str) else value

        sides = tuple(replace(s, value=number(s.value)) if isinstance(s, Extent) else s for s in self.sides)
        block, most = (value if value is None else int(value) for value in map(number, (self.block, self.most)))
        return replace(self, sides=sides, block=block, most=most)

    @property
    def asks(self) -> list[str]:
        """The hyperparameters that its shape depends on."""
        values = [s.value for s in self.sides if isinstance(s, Extent)]
        return [value for value in (*values, self.block, self.most) if isinstance(value, str)]


FLOATS = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2")
"""What arrays of a rule may be kept in."""


def float_name(dtype: Any) -> str | None:
    """The name of a dtype, given as that or as torch has it.

    >>> float_name("float32")
    'float32'

    Raises:
        RuleError: for what holds no fractions, and for what is no dtype.
    """
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in FLOATS:
        known = f"it is one of {', '.join(FLOATS)}{nearest(name, FLOATS)}"
        raise RuleError(f"dtype={dtype!r:.60} holds no numbers of a rule; {known}")
    return name


LEVELS = {"array": Level.ARRAY, "row": Level.ROW, "column": Level.COLUMN, "channel": Level.CHANNEL}
LEVELS |= {"table": Level.TABLE, "scalar": Level.SCALAR}


def array(initial: float | str = 0.0, dtype: Any = None, *, positive: bool = False, exact: str | None = None) -> Slot:
    """A slot like the parameter.

    Args:
        initial: its first value: a number, the name of the hyperparameter that holds it, or ``"parameter"`` for a
            copy of the parameter.
        dtype: its dtype, such as ``"bfloat16"`` or ``torch.bfloat16``; None means the parameter's.
        positive: it never holds a negative number. What the rule writes says so by itself where it is a running mean
            of squares; ``state_dtype`` then spends no bit on a sign.
        exact: why ``state_dtype`` must not hold it in fewer bits, in words that end a sentence; None where it may.
    """
    return Slot("array", initial, float_name(dtype), positive=positive, exact=exact)


def row(initial: float | str = 0.0, dtype: Any = None) -> Slot:
    """A slot with one number for each row of the matrices that the last two dimensions are: of shape (..., n, 1).

    Args:
        initial: its first value: a number, or the name of the hyperparameter that holds it.
        dtype: its dtype, such as ``"float32"``; None means the parameter's.
    """
    return Slot("row", initial, float_name(dtype))


def column(initial: float | str = 0.0, dtype: Any = None) -> Slot:
    """A slot with one number for each column of the matrices that the last two dimensions are: of shape (..., 1, m).

    Args:
        initial: its first value: a number, or the name of the hyperparameter that holds it.
        dtype: its dtype, such as ``"float32"``; None means the parameter's.
    """
    return Slot("column", initial, float_name(dtype))


def channel(initial: float | str = 0.0, dtype: Any = None) -> Slot:
    """A slot with one number for each index of the first dimension: of shape (n, 1, ..., 1).

    Args:
        initial: its first value: a number, or the name of the hyperparameter that holds it.
        dtype: its dtype, such as ``"float32"``; None means the parameter's.
    """
    return Slot("channel", initial, float_name(dtype))


def rank(most: int | str) -> Extent:
    """As many rows or columns of a :func:`table`: a number, or the hyperparameter that holds it; at most as many as the
    shorter side of the parameter's matrix."""
    return Extent(most, False)


def fraction(of: float | str) -> Extent:
    """As many rows or columns of a :func:`table`: a fraction, rounded up, of the shorter side of the parameter's
    matrix, or the hyperparameter that holds the fraction."""
    return Extent(of, True)


def table(
    rows: Side,
    columns: Side,
    initial: float | Literal["identity"] = 0.0,
    dtype: Any = None,
    *,
    block: int | str | None = None,
    most: int | str | None = None,
) -> Slot:
    """A slot that is a matrix of another shape than the parameter's, for :func:`matrix`: ``table("rows", "rows")``.

    Args:
        rows: how many rows it has: a number, or as many as the parameter's matrix has ``"rows"`` or ``"columns"``, or
            as its ``"shorter"`` or ``"longer"`` side has; :func:`rank` or :func:`fraction`.
        columns: how many columns.
        initial: its first values: a number, or ``"identity"``.
        dtype: its dtype, ``"float32"`` or ``"float64"``; None means that of the arithmetic.
        block: the parameter's matrix is cut into blocks of at most so many rows and columns, each of which has a table.
        most: a square table of more rows is its diagonal alone, a column. This and ``block`` may be the name of the
            hyperparameter that says it.
    """
    for side in (rows, columns):
        known = side in ("rows", "columns", "shorter", "longer") or isinstance(side, Extent)
        if not known and not (isinstance(side, int) and side > 0):
            raise RuleError(
                "a table has as many rows and columns as the parameter's matrix has 'rows' or 'columns', as its "
                f"'shorter' or 'longer' side has, rank(), fraction() or a number, not {side!r}"
            )
    for name, value in (("block", block), ("most", most)):
        if value is not None and not isinstance(value, str) and not (isinstance(value, int) and value > 0):
            raise RuleError(f"{name}={value!r} is the largest number of rows and columns of a {name}, or None")
    return Slot("table", initial, float_name(dtype), sides=(rows, columns), block=block, most=most)


def scalar(initial: float | str = 0.0, *, scope: Literal["tensor", "all"] = "tensor") -> Slot:
    """A slot with one number for each parameter, kept as a 0-dim tensor.

    It is of float32 on the CPU (float64 where that is the default); if it is given what a reduction gives, it is of
    float64 and where the parameter is.

    Declared under the name ``step``, it keeps torch's state entry ``step`` for a rule that does not use ``s.step``.

    Args:
        initial: its first value: a number, or the name of the hyperparameter that holds it.
        scope: ``"all"`` makes it one number of the whole optimizer, of float64, whichever parameters have a gradient:
            it is given what is the same for all of them (reductions with ``scope="all"``, hyperparameters, others of
            its kind), with the hyperparameters of the first that has a gradient.
    """
    if scope not in ("tensor", "all"):
        raise RuleError(f"scope is 'tensor' (each parameter has its own) or 'all' (one for all), not {scope!r}")
    return Slot("scalar", initial, scope=scope)
