"""Runs an update rule once, on symbols, and lays out what it said as a Program."""

from __future__ import annotations

import difflib
import itertools
import pickle
import sys
from collections.abc import Callable, Container, Hashable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, NoReturn

from .chain import chained
from .expression import LINES, Expression, Level, RuleError, asking, joint, ordered, signed
from .functions import Call
from .host import NUMBER, Guard, asked, evaluate, number
from .modifier import Modifier, declared
from .program import FIRST_SLOT, GRAD, PARAM, Matrix, Operation, Phase, Program, Reduction, Shared, Slot, Source, Store

__all__ = ["Rule", "trace"]

Rule = Callable[["Expression", "Expression", "State", "Hyper"], Any]


def is_number(value: Any) -> bool:
    """Whether a hyperparameter travels as a number (a 0-dim tensor does) rather than as a flag."""
    return not isinstance(value, (bool, str, type(None))) and hasattr(value, "__float__")


def is_sequence(value: Any) -> bool:
    """Whether a hyperparameter has several parts: a tuple, a list of any kind, or an array of several numbers."""
    if isinstance(value, (str, bytes)):
        return False
    return isinstance(value, Sequence) or (getattr(value, "ndim", 0) == 1 and len(value) > 1)


class Hyper:
    """The hyperparameters of a group, as a rule sees them: numbers as scalar expressions, flags as they are."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._guards: dict[Any, Guard] = {}
        self._known: dict[tuple[Any, ...], Expression] = {}

    def __getattr__(self, name: str) -> Any:
        if name not in self._values:
            near = difflib.get_close_matches(name, self._values, 3) or sorted(self._values)
            raise RuleError(f"the rule reads h.{name}, but there is no hyperparameter of that name: {', '.join(near)}")
        return self._symbol((name,), self._values[name])

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            raise RuleError(f"h.{name} is what the group says; a rule only reads it, and keeps numbers of its own in s")
        super().__setattr__(name, value)

    def __getitem__(self, name: object) -> NoReturn:
        raise RuleError(f"write h.{name} in place of h[{name!r}]")

    def _symbol(self, path: tuple[Any, ...], value: Any) -> Any:
        if is_sequence(value):
            return tuple(self._symbol((*path, index), item) for index, item in enumerate(value))
        if is_number(value):
            self._guards.setdefault(path, Guard(None, path, NUMBER))
            return self._known.setdefault(path, Expression("hyper", detail=path))
        # what can be changed in place is compared with what it was
        self._guards.setdefault(path, Guard(None, path, value if isinstance(value, Hashable) else deepcopy(value)))
        return value

    def _settle(self, names: Container[str]) -> None:
        """Let the Program serve only while these stay as they are, read or not."""
        for name, value in self._values.items():
            if name in names:
                self._guards.setdefault((name,), Guard(None, (name,), value))

    def _refuse_ignored(self, own: Container[str]) -> None:
        """An option that the rule took over for itself must have an effect."""
        for name in ("maximize", "l1", "clip_norm"):
            if name in own and self._values.get(name) and (name,) not in self._guards:
                raise RuleError(
                    f"{name}={self._values[name]!r} stands among the rule's own hyperparameters, which makes it the "
                    f"rule's to apply, but it does not read h.{name}; leave {name} out of the defaults instead"
                )

    def _ask(self, expression: Expression) -> bool:
        def leaf(e: Expression) -> float:
            value: Any = self._values
            for key in e.detail:
                value = value[key]
            return asked(value) if expression is e else number(value)

        answer = bool(evaluate(expression, leaf))
        self._guards.setdefault(id(expression), Guard(expression, (), answer))
        return answer


class State:
    """The slots of a parameter, as a rule sees them: reading or writing ``s.name`` makes one."""

    _declared: Mapping[str, Slot]
    _reduced: Container[str]
    _reads: dict[str, Expression]
    _writes: dict[str, Expression]
    _asked: set[str]
    """``"counted"`` where steps count though the rule does not compute with them."""
    _measured: dict[str, Expression]
    """What is reduced for a person to read, by name."""
    _left: dict[int, Expression]
    """What a step leaves in operands that are no slots, by operand."""

    def __init__(self, declared: Mapping[str, Slot], reduced: Container[str] = ()) -> None:
        self.__dict__["_declared"] = declared
        self.__dict__["_reduced"] = reduced
        self.__dict__["_reads"] = {}
        self.__dict__["_writes"] = {}
        self.__dict__["_measured"] = {}
        self.__dict__["_asked"] = set()
        self.__dict__["_left"] = {}
        self.__dict__["_step"] = Expression("step")
        self.__dict__["_is_new"] = Expression("is_new")

    def __getattr__(self, name: str) -> Expression:
        if name in ("step", "is_new"):
            known: Expression = self.__dict__[f"_{name}"]
            return known
        if name.startswith("_"):
            raise AttributeError(name)
        if name in self._writes:
            written: Expression = self._writes[name]
            return written
        slot = self._declared.get(name, Slot())
        level = Level.REDUCED if name in self._reduced else slot.level
        read: Expression = self._reads.setdefault(name, Expression("slot", detail=name, level=level))
        return read

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("step", "is_new"):
            raise RuleError(f"s.{name} is counted by the optimizer; a rule only reads it")
        if not isinstance(value, (Expression, int, float)):
            raise RuleError(f"s.{name} is given a {type(value).__name__}; a slot holds an expression or a number")
        value = value if isinstance(value, Expression) else Expression("constant", detail=float(value))
        if name in self._declared and self._declared[name].scope == "all":
            self._refuse_own(name, value)
            value = Expression("shared", (value,), name, Level.REDUCED)
        self._writes[name] = value

    def _refuse_own(self, name: str, value: Expression) -> None:
        """A number of the whole optimizer that is given what each parameter has its own of."""
        waiting = [value]
        while waiting:
            e = waiting.pop()
            if e.op == "reduce" and e.detail[1] == "all":
                continue
            common = e.op == "slot" and self._declared.get(str(e.detail), Slot()).scope == "all"
            own = e.op in ("step", "is_new", "size", "slot", "reduce") and not common
            if own or e.level > Level.REDUCED:
                raise RuleError(
                    f"s.{name} is one number of the whole optimizer but is given ({value}), where each parameter has "
                    f"its own ({e}); reduce over all of them with scope='all'"
                )
            waiting += e.args

    def __getitem__(self, name: object) -> NoReturn:
        raise RuleError(f"write s.{name} in place of s[{name!r}]")

    def __setitem__(self, name: object, value: object) -> NoReturn:
        raise RuleError(f"write s.{name} = ... in place of s[{name!r}] = ...")

    def __contains__(self, name: object) -> NoReturn:
        raise RuleError(f"a rule runs once: s has {name!r} from the first update on; ask s.is_new in where(...)")

    def _slots(self) -> dict[str, Slot]:
        """Every slot the rule used, with its shape: by declaration, by a read, or by what is written."""
        slots, least = {}, self._least_levels()
        for name in dict.fromkeys((*self._reads, *self._writes)):
            written = self._writes.get(name)
            if written is not None and least.get(name, written.level) < written.level is Level.ARRAY:
                raise RuleError(
                    f"s.{name} is not declared, and so an array, but it is given {GIVEN[least[name]]} and itself, "
                    f"({written}); {DECLARE.format(name=KIND[least[name]])}, or as array() if it is meant to be one"
                )
            found = Level.ARRAY if name in self._reads or written is None else written.level
            slot = self._declared.get(name, Slot(KIND.get(found, "array")))  # type: ignore[arg-type]
            if written is not None:
                self._refuse_misfit(name, slot, written)
            slots[name] = replace(slot, name=name)
        return slots

    def _least_levels(self) -> dict[str, Level]:
        """Of each slot that is read and written but not declared, what it would have to be if it were no more than
        what it is given."""
        free = {
            n for n in self._reads.keys() & self._writes.keys() if n not in self._declared and n not in self._reduced
        }
        every = list(ordered(self._writes[name] for name in sorted(free)))
        # what is reduced, or made a matrix of, is meant to be an array
        whole = ordered(a for e in every if e.op in ("reduce", "matrix") for a in e.args)
        free -= {str(e.detail) for e in whole if e.op == "slot"}
        least, before = dict.fromkeys(free, Level.SCALAR), None
        while least != before:
            before, known = dict(least), dict[int, Level]()
            for e in every:
                fixed = not e.args or e.op in ("reduce", "matrix", "part")
                own = least.get(str(e.detail), e.level) if e.op == "slot" else e.level
                known[id(e)] = own if fixed else joint(known[id(a)] for a in e.args)
            least = {name: known[id(self._writes[name])] for name in free}
        return least

    def _refuse_misfit(self, name: str, slot: Slot, written: Expression) -> None:
        """A slot that is given what it can't hold."""
        given = written.level
        if (given is Level.TABLE) != (slot.level is Level.TABLE):
            raise RuleError(
                f"s.{name} is {'a table' if slot.level is Level.TABLE else 'no table'} but is given {GIVEN[given]}, "
                f"({written}); declare what matrix() returns in the class: slots = {{{name!r}: table(...)}}"
            )
        if slot.kind == "array" and (given is Level.REDUCED or (given is not Level.ARRAY and name in self._reads)):
            what, declare = GIVEN[given], DECLARE.format(name=KIND[given])
            raise RuleError(f"s.{name} is read as an array but given {what}, ({written}); {declare}")
        if slot.kind == "scalar" and given > Level.REDUCED:
            raise RuleError(f"s.{name} is one number for each parameter but is given {GIVEN[given]}, ({written})")
        if slot.level in LINES and joint((given, slot.level)) is not slot.level:
            raise RuleError(f"s.{name} is one number for each {slot.kind} but is given {GIVEN[given]}, ({written})")

    def _given_reductions(self) -> set[str]:
        """The names of the slots that are given what only a reduction knows."""
        given = {name for name, written in self._writes.items() if written.level is Level.REDUCED}
        return {name for name in given if name not in self._declared or self._declared[name].kind == "scalar"}


KIND = {Level.SCALAR: "scalar", Level.REDUCED: "scalar", Level.ROW: "row", Level.COLUMN: "column"}
KIND |= {Level.ARRAY: "array", Level.CHANNEL: "channel", Level.MATRIX: "row"}
GIVEN = {Level.SCALAR: "one number", Level.REDUCED: "one number", Level.ARRAY: "an array"}
GIVEN |= {Level.ROW: "one number for each row", Level.COLUMN: "one number for each column"}
GIVEN |= {Level.TABLE: "a table"}
GIVEN |= {Level.CHANNEL: "one number for each channel", Level.MATRIX: "one number for each matrix"}
DECLARE = 'for that, declare it in the class: slots = {{"name": {name}(0.0)}}'


def trace(
    rule: Rule,
    hyper: Mapping[str, Any],
    slots: Mapping[str, Slot] | None = None,
    *,
    name: str = "rule",
    modifiers: Sequence[Modifier] = (),
    ndim: int | None = None,
) -> Program:
    """Run a rule on symbols.

    Args:
        rule: ``rule(p, g, s, h)`` gives the parameter's new value.
        hyper: the hyperparameters.
        slots: declared slots by name.
        name: what the Program is called when printed.
        modifiers: what goes around the rule, in the order in which it acts.
        ndim: the number of the parameter's dimensions, for rules that ask.

    Raises:
        RuleError: if the rule is wrong, saying where and what to write instead.
    """
    slots = {**(slots or {}), **declared(modifiers)}
    for slot_name, slot in slots.items():
        refuse_slot(slot_name, slot, hyper)
    reduced = frozenset(slot_name for slot_name, slot in slots.items() if slot.scope == "all")
    shape = Shape(ndim)
    whole = chained(rule, modifiers, name)
    while True:
        h, s = Hyper(hyper), State(slots, reduced)
        before = drawn()
        new = run(whole, h, s, shape)
        if drawn() != before:
            raise RuleError(
                f"{name}.update draws a random number: it runs once, and every step would use that one; uniform() "
                "and normal() from steprule.rule are drawn in each step"
            )
        found = s._given_reductions()
        if found <= reduced:
            program = _Layout(name, s, h, reduced).program(new, s._measured, s._left)
            active = tuple(type(m).__name__ for m in modifiers if m.name and hyper[m.name])
            return replace(program, ndim=ndim if shape.asked else None, modifiers=active)
        reduced |= found  # what is read of them, too, is known only where reductions are


GENERATORS: dict[str, Callable[[Any], Any]] = {
    "random": lambda module: module.getstate(),
    "numpy.random": lambda module: pickle.dumps(module.get_state()),
    "torch.random": lambda module: module.get_rng_state().numpy().tobytes(),
}
"""The states of the random generators that a rule might draw from, by module."""


def drawn() -> list[Any]:
    """How far those generators are whose modules are in use."""
    return [state(sys.modules[name]) for name, state in GENERATORS.items() if name in sys.modules]


def refuse_slot(name: str, slot: Any, hyper: Mapping[str, Any]) -> None:
    """A declaration that says nothing, or a first value that nobody knows."""
    if not isinstance(slot, Slot):
        raise RuleError(
            f"slots[{name!r}] is {slot!r:.60}; declare it as array(), row(), column(), channel(), table() or scalar()"
        )
    known = slot.initial in hyper or (slot.kind, slot.initial) in (("array", "parameter"), ("table", "identity"))
    if isinstance(slot.initial, str) and not known:
        near = difflib.get_close_matches(slot.initial, hyper, 3) or sorted(hyper)
        raise RuleError(
            f"the {slot.kind} slot {name!r} begins with {slot.initial!r}, but there is no hyperparameter of that name: "
            f"{', '.join(near)}"
        )


class Shape:
    """The number of the parameter's dimensions, and whether the rule asked for it."""

    def __init__(self, ndim: int | None) -> None:
        self.ndim = ndim
        self.asked = False

    def ask(self) -> int:
        if self.ndim is None:
            raise RuleError("the rule asks for ndim(p): trace it with ndim=, the number of the parameter's dimensions")
        self.asked = True
        return self.ndim


def run(rule: Rule, h: Hyper, s: State, shape: Shape) -> Expression:
    """Run a rule on symbols, once: the parameter's new value."""
    p = Expression("param", level=Level.ARRAY)
    g = Expression("grad", level=Level.ARRAY)
    previous = asking.answer, asking.ndim, asking.draw, asking.due
    asking.due = lambda k: ((s.step - 1) % k == 0) | s.is_new
    draws = itertools.count()
    seed = h.seed if "seed" in h._values else Expression("constant", detail=0.0)
    asking.answer, asking.ndim, asking.draw = h._ask, shape.ask, lambda: (seed, s.step, next(draws))
    try:
        new: Expression = rule(p, g, s, h)
        return new
    finally:
        asking.answer, asking.ndim, asking.draw, asking.due = previous


class _Layout:
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
        finished = {
            s.name: self.unique(self.writes[s.name])
            for s in (*self.line_slots, *self.reduced_slots)
            if s.name in self.writes
        }
        tables = {s.name: self.unique(self.writes[s.name]) for s in self.tables if s.name in self.writes}
        for root in (*tracked.values(), *outputs.values(), *finished.values()):
            self.collect(root)
        for root in tables.values():
            self.collect(root)
        for call in self.matrices:
            self.number(call)
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
        phases = tuple(self.phase(i, [(o, outputs[o]) for o in outputs if stage[o] == i]) for i in range(last + 1))
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

    def number(self, call: Expression) -> None:
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
        return len(self.inputs) + len(self.reduces) + place(self.shared, e)

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
        return place(self.lines, e)

    def column(self, e: Expression) -> int:
        return place(self.scalars, e)


def place(known: list[Expression], e: Expression) -> int:
    """Where an expression stands among others; at their end, if it did not yet."""
    for index, other in enumerate(known):
        if other is e:
            return index
    known.append(e)
    return len(known) - 1
