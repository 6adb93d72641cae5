"""What tracing a rule gives: a printable value that says all a kernel has to know."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from typing import Any, Literal

from .expression import Expression, Level, ordered, signed
from .host import Guard, compile_guards, compile_scalars
from .master import Master
from .mathematics import show
from .slot import Slot

__all__ = [
    "IN_PARTS",
    "OF_ITS_OWN",
    "WORDS",
    "Matrix",
    "Operation",
    "Phase",
    "Program",
    "Reduction",
    "Shared",
    "Source",
    "Store",
]


@dataclass(frozen=True)
class Operation:
    """One assignment of a phase: value number ``i`` of the phase is what its operation ``i`` computes.

    Attributes:
        op: ``"read"`` (detail: operand), ``"scalar"`` (detail: index among the Program's scalars), ``"reduced"``
            (detail: row of the reduced table), ``"line"`` (detail: index among the Program's lines), ``"constant"``
            (detail: its value), or an elementwise operation. Between phases also ``"sums"`` (detail: index among the
            reductions over a dimension), ``"kept"`` (detail: index among the slots of rows and columns) and
            ``"reduce"`` (detail: the kind), which reduces one number for each row
            to one for each matrix or channel, and ``"rows"``, which gives each row what its matrix or channel has.
        args: numbers of earlier values.
        level: ARRAY values stand inside the loop over elements, those of rows and columns where a row begins, the
            others before it.
    """

    op: str
    args: tuple[int, ...]
    detail: Any = field(compare=False)
    level: Level
    what: Any = field(init=False, repr=False)
    """The detail as it is compared."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "what", signed(self.detail))


@dataclass(frozen=True)
class Reduction:
    """An array value reduced to one float64 for each tensor, for all tensors together, or for each row or column."""

    kind: Literal["sum", "sum_of_squares", "max_abs"]
    scope: Literal["tensor", "all", -1, -2]

    @property
    def level(self) -> Level:
        """How often it has a value."""
        lines: dict[str | int, Level] = {-1: Level.ROW, -2: Level.COLUMN}
        return lines.get(self.scope, Level.REDUCED)


@dataclass(frozen=True)
class Source:
    """What a matrix function is given or returns.

    Attributes:
        kind: ``"array"``, ``"slot"`` (a table as it stands in the state) or ``"made"`` (a table that one returned).
        index: which: an operand, or one of the tables, or of those that were made.
        slot: the table whose shape it has.
        written: whether an array is written by the phase before.
    """

    kind: Literal["array", "slot", "made"]
    index: int
    slot: int = 0
    written: bool = False


@dataclass(frozen=True)
class Matrix:
    """A function of whole matrices that runs after a phase.

    Attributes:
        function: the function.
        numbers: what it is given beside stacks: indices among the Program's scalars.
        inputs: the stacks that it is given.
        results: what becomes of those that it returns.
        dtype: that of the stacks; None for that of the arithmetic.
        due: whether the last number says if it is called in a step, and is not given to it.
        block: the largest extent of a block into which matrices are cut.
    """

    function: Callable[..., Any]
    numbers: tuple[int, ...]
    inputs: tuple[Source, ...]
    results: tuple[Source, ...]
    dtype: str | None
    due: bool
    block: int | None

    @property
    def in_place(self) -> bool:
        """Whether it replaces one array by another, which stands in its place."""
        return self.inputs == self.results

    @property
    def operand(self) -> int:
        """The array that it replaces."""
        return self.results[0].index


@dataclass(frozen=True)
class Phase:
    """One pass over memory."""

    operations: tuple[Operation, ...]
    stores: tuple[tuple[int, int], ...]
    """(operand, value) pairs."""
    reductions: tuple[tuple[int, int], ...]
    """(row of the reduced table, value) pairs."""
    sums: tuple[tuple[int, int], ...]
    """(index among the reductions over a dimension, value) pairs."""
    matrices: tuple[Matrix, ...]

    @property
    def by_lines(self) -> bool:
        """Whether it has to know rows from columns."""
        return bool(self.sums) or any(o.op == "line" for o in self.operations)

    @property
    def reads(self) -> tuple[int, ...]:
        """The operands read, in ascending order."""
        return tuple(sorted({o.detail for o in self.operations if o.op == "read"}))

    @property
    def writes(self) -> tuple[int, ...]:
        """The operands written, in ascending order."""
        return tuple(sorted(operand for operand, _ in self.stores))


@dataclass(frozen=True)
class Store:
    """What becomes of a value that is computed between phases.

    Attributes:
        table: ``"reduced"``, whose rows have one number for each tensor; ``"line"``, what later phases read of rows
            and columns; or ``"kept"``, the slots of rows and columns.
        index: which of the table.
        value: the number of the operation.
    """

    table: Literal["reduced", "line", "kept"]
    index: int
    value: int


@dataclass(frozen=True)
class Shared:
    """The new value of a number that the whole optimizer has one of, computed between phases for the first parameter.

    Attributes:
        name: that of the slot.
        stage: before which phase.
        row: where in the reduced table every parameter finds it.
        value: the number of the operation.
    """

    name: str
    stage: int
    row: int
    value: int


OF_ITS_OWN = ("key", "origin")
"""What each parameter has of its own for random numbers: a number below 2**32, and the place of its first element in
the whole of it."""
WORDS = frozenset({"word", "index", "whole", "bits", "iadd", "iand", "ior", "ixor", "imul", "ishr", "iwhere"})
"""The operations whose results are whole numbers of 32 bits; ``"drawn"`` (detail: how many low bits are left out) makes
one of them a number to compute with, ``"number"`` the float32 of these bits, whose ``"bits"`` they are. Of ``"word"``
and ``"index"`` the detail says which half, of ``"whole"`` which number, of ``"imul"`` the factor, of ``"ishr"`` by how
many bits. Slots of whole numbers are read as such."""
IN_PARTS = frozenset({"joined", "upper", "lower"})
"""The operations on weights that are held in parts, the detail of which says how: a weight of its parts, and either
part of a weight; see :mod:`steprule.storage.correction`."""

PARAM, GRAD, FIRST_SLOT = 0, 1, 2


@dataclass(frozen=True)
class Program:
    """A traced rule.

    Operands are numbered: 0 the parameter, 1 the gradient, then the array slots, then the operands of matrix steps.

    Attributes:
        name: that of the rule's class.
        slots: the array slots, in operand order.
        scalar_slots: the slots with one number for each tensor that the host knows.
        reduced_slots: those that reductions give, or that the whole optimizer has one of; the last rows of the reduced
            table.
        line_slots: the slots with one number for each row, column or channel.
        scalars: what the host computes for each (group, step); the columns of the scalar table.
        updates: new values of scalar slots, aligned with ``scalar_slots``; None where a slot is only read.
        inputs: names of the numbers that come from outside the rule (``"grad_scale"``), and of those that tell each
            parameter from others (:data:`OF_ITS_OWN`): the first rows of the reduced table.
        reductions: the rows of the reduced table after the inputs.
        sums: the reductions over a dimension.
        lines: what phases read that has one number for each row (ROW) or column (COLUMN).
        tracked: names of reductions that are reported to the user, with their row.
        phases: the passes over memory, in order.
        small: what is computed of numbers for each tensor, row or column, in torch operations over all tensors.
        between: which of these values are stored before each phase, and after the last.
        shared: which of them all parameters take from the first; the rows of the reduced table after the reductions.
        temporary_dtypes: the dtypes of the arrays that matrix functions are given and return.
        given: the arrays that a step is given by name, and the operands that they are.
        tables: the slots for matrix functions.
        kept_tables: which of them is given what of the tables that such functions returned.
        guards: the questions it was specialised on.
    """

    name: str
    slots: tuple[Slot, ...]
    scalar_slots: tuple[Slot, ...]
    reduced_slots: tuple[Slot, ...]
    line_slots: tuple[Slot, ...]
    scalars: tuple[Expression, ...] = field(compare=False)
    updates: tuple[Expression | None, ...] = field(compare=False)
    inputs: tuple[str, ...]
    reductions: tuple[Reduction, ...]
    sums: tuple[Reduction, ...]
    lines: tuple[Level, ...]
    tracked: tuple[tuple[str, int], ...]
    phases: tuple[Phase, ...]
    small: tuple[Operation, ...]
    between: tuple[tuple[Store, ...], ...]
    shared: tuple[Shared, ...]
    temporary_dtypes: tuple[str | None, ...]
    given: tuple[tuple[str, int], ...]
    tables: tuple[Slot, ...]
    kept_tables: tuple[tuple[int, int], ...]
    guards: tuple[Guard, ...] = field(compare=False)
    source: tuple[Any, ...] = field(compare=False, repr=False)
    """The expressions behind ``phases``, for printing."""
    counted: bool = False
    """Whether ``step`` is kept though the rule does not compute with it."""
    ndim: int | None = field(default=None, compare=False)
    """The number of dimensions for which it was traced, if the rule asked."""
    modifiers: tuple[str, ...] = field(default=(), compare=False)
    """What goes around the rule, in the order in which it acts."""
    master: Master | None = None
    """What stands beside the parameter; None where nothing does."""
    assignments: tuple[tuple[Any, ...], ...] = field(init=False, repr=False)
    """What the host computes, one operation each: two Programs are equal only if they have these in common too."""

    def __post_init__(self) -> None:
        numbers: dict[int, int] = {}
        operations = []
        for e in self.host_expressions():
            operations.append((e.op, signed(e.detail), *(numbers[id(a)] for a in e.args)))
            numbers[id(e)] = len(operations) - 1
        results = ("results", *(numbers[id(e)] if e is not None else None for e in (*self.scalars, *self.updates)))
        object.__setattr__(self, "assignments", (*operations, results))

    @property
    def temporaries(self) -> int:
        """How many operands of matrix functions there are."""
        return len(self.temporary_dtypes)

    @property
    def operands(self) -> int:
        """How many pointers a tensor brings."""
        return FIRST_SLOT + len(self.slots) + self.temporaries

    @property
    def table_rows(self) -> int:
        """How many numbers a tensor has in the reduced table."""
        return len(self.inputs) + len(self.reductions) + len(self.shared) + len(self.reduced_slots)

    @cached_property
    def by_lines(self) -> bool:
        """Whether it has to know rows from columns."""
        return bool(self.sums or self.lines or self.line_slots)

    @cached_property
    def elementwise(self) -> bool:
        """Whether it is one pass that computes each element by itself, and nothing stands before or after it."""
        alone = not (self.reductions or self.given or self.by_lines or self.tables or self.reduced_slots or self.shared)
        return len(self.phases) == 1 and alone and not (self.phases[0].matrices or any(self.between))

    def level_of(self, store: Store) -> Level:
        """How often what a store keeps has a value."""
        if store.table == "reduced":
            return Level.REDUCED
        return self.lines[store.index] if store.table == "line" else self.line_slots[store.index].level

    @property
    def state(self) -> tuple[Slot, ...]:
        """Every slot but ``step``."""
        return (*self.slots, *self.line_slots, *self.tables, *self.scalar_slots, *self.reduced_slots)

    @cached_property
    def uses_step(self) -> bool:
        """Whether the state has torch's entry ``step``."""
        asked = {e.op for e in self.host_expressions()}
        # a rule without slots has nothing else to know a first update by
        unknown = "is_new" in asked and not self.state
        return self.counted or "step" in asked or unknown

    @cached_property
    def uses_size(self) -> bool:
        """Whether scalars depend on the parameter's shape."""
        return any(e.op == "size" for e in self.host_expressions())

    @cached_property
    def serves(self) -> Callable[[Mapping[str, Any]], bool]:
        """Whether a parameter group answers every guard as the Program was specialised."""
        return compile_guards(self.guards)

    @cached_property
    def host(self) -> Callable[..., tuple[float, ...]]:
        """``(group, step, is_new, slots, size, stored)`` to scalars, then the updates of written scalar slots."""
        updates = [u for u in self.updates if u is not None]
        return compile_scalars([*self.scalars, *updates], [s.name for s in self.scalar_slots])

    def host_expressions(self) -> Iterator[Expression]:
        """Every subexpression that the host evaluates, operands before what uses them, once each."""
        yield from ordered((*self.scalars, *(u for u in self.updates if u is not None)))

    def bytes_per_element(self, sizes: Mapping[int, float]) -> float:
        """Bytes of memory traffic for each element of a parameter.

        Args:
            sizes: bytes of an element of each operand.
        """
        return sum(sizes[o] for phase in self.phases for o in (*phase.reads, *phase.writes))

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"

    def __str__(self) -> str:
        return show(self)
