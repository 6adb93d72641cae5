"""Lays out as phases what a rule said: which pass computes what, in which order."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any

from .expression import LINES, Expression, Level, ordered, signed
from .functions import Call
from .program import FIRST_SLOT, GRAD, PARAM, Matrix, Operation, Phase, Program, Reduction, Shared, Source, Store
from .slot import Slot
from .symbols import Hyper, State

__all__ = ["Phases"]


class Phases:
    """Expressions to phases: which pass computes what, in which order."""

    def __init__(self, name: str, state: State, hyper: Hyper, reduced: Container[str]) -> None:
        self.name = name
        self.counted = "step" in state._declared or "counted" in state._asked
        self.guards = tuple(hyper._guards.values())
        self.writes: dict[str, Expression] = state._writes
        every = state._slots()
        self.slots = tuple(s for s in every.values() if s.kind == "array")
        self.line_slots = tuple(s for s in every.values() if s.level in LINES)
        self.scalar_slots = tuple(s for s in every.values() if s.kind == "scalar" and s.name not in reduced)
        self.reduced_slots = tuple(s for s in every.values() if s.kind == "scalar" and s.name in reduced)
        self.tables = tuple(s for s in every.values() if s.level is Level.TABLE)
        self.operand = {s.name: FIRST_SLOT + i for i, s in enumerate(self.slots)}
        self.canonical: dict[Any, Expression] = {}
        self.replaced: dict[int, Expression] = {}
        self.depths: dict[int, int] = {}
        self.collected: set[int] = set()
        self.slots_read: dict[int, frozenset[int]] = {}
        self.scalars: list[Expression] = []
        self.inputs: list[str] = []
        self.reduces: list[Expression] = []
        self.sums: list[Expression] = []
        self.lines: list[Expression] = []
        self.spread: dict[int, Expression] = {}
        self.matrices: list[Expression] = []
        self.temporaries: list[str | None] = []
        self.sources: dict[tuple[Any, ...], Source] = {}
        self.made = 0
        self.given: dict[str, int] = {}
        self.shared: list[Expression] = []

    def program(self, new: Expression, tracks: Mapping[str, Expression], left: Mapping[int, Expression]) -> Program:
        tracked = {key: self.unique(e) for key, e in tracks.items()}
        outputs = {PARAM: self.unique(new)}
        outputs |= {self.operand[s.name]: self.unique(self.writes[s.name]) for s in self.slots if s.name in self.writes}
        outputs |= {operand: self.unique(e) for operand, e in left.items()}
        updates = tuple(self.unique(self.writes[s.name]) if s.name in self.writes else None for s in self.scalar_slots)
        finished = self.written((*self.line_slots, *self.reduced_slots))
        tables = self.written(self.tables)
        for root in (*tracked.values(), *outputs.values(), *finished.values(), *tables.values()):
            self.collect(root)
        for call in self.matrices:
            self.give_places(call)
        stage = self.stages(outputs, tracked)
        phases = tuple(
            self.phase(i, [(o, outputs[o]) for o in outputs if stage[o] == i]) for i in range(stage[PARAM] + 1)
        )
        small, between, shared = self.small_work(len(phases), finished)
        names = {PARAM: "p", GRAD: "g"} | {o: n for n, o in self.operand.items()}
        return Program(
            self.name,
            self.slots,
            self.scalar_slots,
            self.reduced_slots,
            self.line_slots,
            tuple(self.scalars),
            updates,
            tuple(self.inputs),
            tuple(Reduction(*r.detail) for r in self.reduces),
            tuple(Reduction(*r.detail) for r in self.sums),
            tuple(e.level for e in self.lines),
            tuple((key, self.row(e.args[0])) for key, e in tracked.items()),
            phases,
            small,
            between,
            shared,
            tuple(self.temporaries),
            tuple(self.given.items()),
            self.tables,
            tuple((i, self.table(tables[s.name]).index) for i, s in enumerate(self.tables) if s.name in tables),
            self.guards,
            (
                [(names[o], e, stage[o]) for o, e in outputs.items()],
                [(f"r{self.row(r)}", r, self.depth(r.args[0])) for r in self.reduces]
                + [(f"l{i}", r, self.depth(r.args[0])) for i, r in enumerate(self.sums)]
                + [(f"m{i}", m, self.depth(m) - 1) for i, m in enumerate(self.matrices)],
                [*finished.items(), *tables.items()],
            ),
            self.counted,
        )

    def written(self, slots: Iterable[Slot]) -> dict[str, Expression]:
        """What is written to those slots that are written."""
        return {s.name: self.unique(self.writes[s.name]) for s in slots if s.name in self.writes}

    def stages(self, outputs: Mapping[int, Expression], tracked: Mapping[str, Expression]) -> dict[int, int]:
        """The pass in which each operand is written: the parameter in the last."""
        # a step that may still be left writes nothing before it is known
        begin = self.depth(tracked["awaited"]) if "awaited" in tracked else 0
        last = max(map(self.depth, (*outputs.values(), *(r.args[0] for r in (*self.reduces, *self.sums)))), default=0)
        # the parameter is written after all that may fail
        last = max([last, begin, *map(self.depth, self.matrices)])
        stage = dict.fromkeys(outputs, last)
        for operand, expression in outputs.items():
            # a slot is written once nothing can be raised any more, as a person's function of matrices may
            if operand != PARAM and not self.matrices:
                stage[operand] = self.earliest(operand, max(begin, self.depth(expression)), last, outputs, stage)
        return stage

    def unique(self, e: Expression) -> Expression:
        """The one expression that stands for all equal ones."""
        for x in ordered([e], lambda x: () if id(x) in self.replaced else x.args):
            if id(x) in self.replaced:
                continue
            args = tuple(self.replaced[id(a)] for a in x.args)
            key = (x.op, tuple(map(id, args)), signed(x.detail), x.level)
            same = self.canonical.get(key)
            if same is None:
                same = x if args == () else Expression(x.op, args, x.detail, x.level)
                self.canonical[key] = same
            self.replaced[id(x)] = same
            self.replaced[id(same)] = same
        return self.replaced[id(e)]

    def collect(self, e: Expression) -> None:
        """Number the reductions, inputs and matrix steps, what they depend on first."""
        for x in ordered([e], lambda x: () if id(x) in self.collected else x.args):
            if id(x) not in self.collected:
                self.collected.add(id(x))
                self.note(x)

    def note(self, e: Expression) -> None:
        """Give what is more than an operation its place among its like."""
        if e.op == "reduce" and e.args[0].level is Level.ARRAY:
            (self.reduces if e.level is Level.REDUCED else self.sums).append(e)
        if e.op == "matrix":
            self.matrices.append(e)
        if e.op == "input" and str(e.detail) not in self.inputs:
            self.inputs.append(str(e.detail))
        if e.op == "shared":
            self.shared.append(e)
        if e.op == "given":
            self.given[str(e.detail)] = self.temporary(None)

    def give_places(self, call: Expression) -> None:
        """Give what a matrix function is given and returns its place."""
        detail: Call = call.detail
        for k, a in enumerate(call.args[: detail.matrices]):
            if a.level is not Level.TABLE and a.op != "part":
                self.sources[id(call), k] = Source("array", self.temporary(detail.dtype), written=True)
        in_place = detail.matrices == 1 and detail.results == (None,) and detail.block is None
        for k, slot in enumerate(detail.results):
            if slot is None:
                known = self.sources.get((id(call), 0)) if in_place else None
                self.sources[id(call), "result", k] = known or Source("array", self.temporary(detail.dtype))
            else:
                self.sources[id(call), "result", k] = Source("made", self.made, self.table_slot(slot))
                self.made += 1

    def temporary(self, dtype: str | None) -> int:
        self.temporaries.append(dtype)
        return FIRST_SLOT + len(self.slots) + len(self.temporaries) - 1

    def table_slot(self, name: str) -> int:
        return [s.name for s in self.tables].index(name)

    def table(self, e: Expression) -> Source:
        """A table, or an array that a matrix function returned."""
        if e.op == "slot":
            slot = self.table_slot(str(e.detail))
            return Source("slot", slot, slot)
        return self.sources[id(e.args[0]), "result", e.detail[0]]

    def inputs_of(self, call: Expression) -> list[Source]:
        """The stacks that a matrix function is given."""
        given = enumerate(call.args[: call.detail.matrices])
        return [self.sources.get((id(call), k)) or self.table(a) for k, a in given]

    def written_by(self, call: Expression) -> list[tuple[int, Expression]]:
        """The operands that the pass before a matrix function writes for it, with what they are."""
        found = [(self.sources.get((id(call), k)), a) for k, a in enumerate(call.args[: call.detail.matrices])]
        return [(source.index, a) for source, a in found if source is not None]

    def row(self, reduce: Expression) -> int:
        return len(self.inputs) + next(i for i, r in enumerate(self.reduces) if r is reduce)

    def kept_row(self, name: str) -> int:
        """The row of a slot that holds a reduction."""
        before = len(self.inputs) + len(self.reduces) + len(self.shared)
        return before + [s.name for s in self.reduced_slots].index(name)

    def shared_row(self, e: Expression) -> int:
        """The row of what all parameters take from the first."""
        return len(self.inputs) + len(self.reduces) + index_of(self.shared, e)

    def depth(self, e: Expression) -> int:
        """The first pass that can compute an expression: reductions and matrix steps are ready one pass later."""
        for x in ordered([e], lambda x: () if id(x) in self.depths else x.args):
            if id(x) not in self.depths:
                args = [self.depths[id(a)] - (x.op == "matrix" and a.op == "part") for a in x.args]
                ends_pass = x.op == "matrix" or (x.op == "reduce" and x.args[0].level is Level.ARRAY)
                self.depths[id(x)] = max(args, default=0) + ends_pass
        return self.depths[id(e)]

    def earliest(
        self, operand: int, ready: int, last: int, outputs: Mapping[int, Expression], stage: Mapping[int, int]
    ) -> int:
        """The first pass that may store a slot, or the gradient: none after it reads what stood there before."""
        later = [(stage[o], e) for o, e in outputs.items() if o != operand]
        later += [(self.depth(x.args[0]), x.args[0]) for x in (*self.reduces, *self.sums)]
        later += [(self.depth(call) - 1, e) for call in self.matrices for _, e in self.written_by(call)]
        readers = [index for index, e in later if operand in self.read_by(e)]
        return min(last, max([ready, *readers]))

    def read_by(self, e: Expression) -> frozenset[int]:
        """What may be stored to of what the pass reads that computes an expression: slots, and the gradient."""

        def operands(x: Expression) -> tuple[Expression, ...]:
            return () if x.op in ("reduce", "part") or id(x) in self.slots_read else x.args

        for x in ordered([e], operands):
            if id(x) in self.slots_read:
                continue
            if x.op == "grad":
                found = frozenset({GRAD})
            elif x.op == "slot" and x.level is Level.ARRAY:
                found = frozenset({self.operand[str(x.detail)]})
            else:
                found = frozenset[int]().union(*(self.slots_read[id(a)] for a in operands(x)))
            self.slots_read[id(x)] = found
        return self.slots_read[id(e)]

    def phase(self, index: int, outputs: list[tuple[int, Expression]]) -> Phase:
        operations: list[Operation] = []
        values: dict[int, int] = {}

        def operands(e: Expression) -> tuple[Expression, ...]:
            computed = id(e) not in values and self.leaf(e)[0] == e.op and e.op not in ("constant", "input")
            return tuple(map(self.by_rows, e.args)) if computed else ()

        def value(e: Expression) -> int:
            e = self.by_rows(e)
            for x in ordered([e], operands):
                if id(x) not in values:
                    args = tuple(values[id(a)] for a in operands(x))
                    op, detail = self.leaf(x)
                    operations.append(Operation(op, args, detail, x.level))
                    values[id(x)] = len(operations) - 1
            return values[id(e)]

        reduces = [r for r in self.reduces if self.depth(r.args[0]) == index]
        calls = [call for call in self.matrices if self.depth(call) - 1 == index]
        written = [place for call in calls for place in self.written_by(call)]
        stores = [(o, value(e)) for o, e in (*outputs, *written)]
        reductions = [(self.row(r), value(r.args[0])) for r in reduces]
        sums = [(i, value(r.args[0])) for i, r in enumerate(self.sums) if self.depth(r.args[0]) == index]
        return Phase(tuple(operations), tuple(stores), tuple(reductions), tuple(sums), tuple(map(self.matrix, calls)))

    def matrix(self, call: Expression) -> Matrix:
        """A call of a matrix function."""
        detail: Call = call.detail
        numbers = tuple(map(self.column, call.args[detail.matrices :]))
        results = [self.sources[id(call), "result", k] for k in range(len(detail.results))]
        inputs = tuple(self.inputs_of(call))
        return Matrix(detail.function, numbers, inputs, tuple(results), detail.dtype, detail.due, detail.block)

    def small_work(
        self, phases: int, finished: Mapping[str, Expression]
    ) -> tuple[tuple[Operation, ...], tuple[tuple[Store, ...], ...], tuple[Shared, ...]]:
        """What is computed between phases: the lines that they read, before the first that may; at the end slots."""
        operations: list[Operation] = []
        values: dict[int, int] = {}

        def operands(e: Expression) -> tuple[Expression, ...]:
            return e.args if id(e) not in values and self.small_leaf(e)[0] == e.op and e.op != "constant" else ()

        def value(e: Expression) -> int:
            for x in ordered([e], operands):
                if id(x) not in values:
                    args = tuple(values[id(a)] for a in operands(x))
                    op, detail = self.small_leaf(x)
                    operations.append(Operation(op, args, detail, x.level))
                    values[id(x)] = len(operations) - 1
            return values[id(e)]

        shared = tuple(Shared(e.detail, self.depth(e), self.shared_row(e), value(e.args[0])) for e in self.shared)
        between: list[list[Store]] = [[] for _ in range(phases + 1)]
        for index, e in enumerate(self.lines):
            between[self.depth(e)].append(Store("line", index, value(e)))
        kept = {s.name: i for i, s in enumerate(self.line_slots)}
        for name, e in finished.items():
            place = ("kept", kept[name]) if name in kept else ("reduced", self.kept_row(name))
            between[-1].append(Store(*place, value(e)))  # type: ignore[arg-type]
        return tuple(operations), tuple(map(tuple, between)), shared

    def small_leaf(self, e: Expression) -> tuple[str, Any]:
        """How an expression is come by between phases."""
        if e.op == "slot" and e.level in LINES:
            return "kept", [s.name for s in self.line_slots].index(str(e.detail))
        if e.op == "reduce" and e.level in LINES:
            found = [i for i, r in enumerate(self.sums) if r is e]
            return ("sums", found[0]) if found else ("reduce", e.detail[0])
        return (e.op, e.detail) if e.level in LINES and e.op != "constant" else self.leaf(e)

    def leaf(self, e: Expression) -> tuple[str, Any]:
        """How a phase comes by an expression: by reading something, or (op unchanged) by computing it."""
        if e.op == "constant":
            return "constant", e.detail
        if e.level is Level.SCALAR:
            return "scalar", self.column(e)
        if e.level in LINES:
            return "line", self.line(e)
        if e.op == "reduce":
            return "reduced", self.row(e)
        if e.op == "shared":
            return "reduced", self.shared_row(e)
        if e.op == "stored":
            return "stored", PARAM if e.detail is None else self.operand[str(e.detail)]
        if e.op == "input":
            return "reduced", self.inputs.index(str(e.detail))
        if e.op == "param":
            return "read", PARAM
        if e.op == "grad":
            return "read", GRAD
        if e.op == "slot" and e.level is Level.REDUCED:
            return "reduced", self.kept_row(str(e.detail))
        if e.op == "slot":
            return "read", self.operand[str(e.detail)]
        if e.op == "part":
            return "read", self.table(e).index
        if e.op == "given":
            return "read", self.given[str(e.detail)]
        return e.op, e.detail

    def by_rows(self, e: Expression) -> Expression:
        """An expression as passes read it: what a matrix or a channel has one of, each of its rows has."""
        if e.level not in (Level.MATRIX, Level.CHANNEL):
            return e
        return self.spread.setdefault(id(e), Expression("rows", (e,), level=Level.ROW))

    def line(self, e: Expression) -> int:
        return index_of(self.lines, e)

    def column(self, e: Expression) -> int:
        return index_of(self.scalars, e)


def index_of(known: list[Expression], e: Expression) -> int:
    """Where an expression stands among others; at their end, if it did not yet."""
    for index, other in enumerate(known):
        if other is e:
            return index
    known.append(e)
    return len(known) - 1
