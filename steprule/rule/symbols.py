"""What a rule is run on: hyperparameters and state that note what it does with them."""

from __future__ import annotations

import math
from collections.abc import Container, Hashable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, NoReturn

from steprule.messages.spelling import nearest

from .expression import LINES, Expression, Level, RuleError, joint, ordered
from .host import NUMBER, Guard, as_float, asked, evaluate
from .slot import Slot

__all__ = ["Hyper", "State"]


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
            near = nearest(name, self._values) or f"; there are {', '.join(sorted(self._values))}"
            raise RuleError(f"the rule reads h.{name}, and {name!r} is no hyperparameter{near}")
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

    def _settled(self, e: Expression) -> Any:
        """The value of a hyperparameter; the Program serves only while it stays."""
        value: Any = self._values
        for key in e.detail:
            value = value[key]
        self._guards[e.detail] = Guard(None, e.detail, value)
        return value

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
            return asked(value) if expression is e else as_float(value)

        answer = bool(evaluate(expression, leaf))
        self._guards.setdefault(id(expression), Guard(expression, (), answer))
        return answer

    def _value(self, expression: Expression) -> float:
        """The present value of a hyperparameter, which nothing is made to depend on; NaN for one on a GPU."""
        value: Any = self._values
        for key in expression.detail:
            value = value[key]
        return math.nan if getattr(value, "is_cuda", False) else as_float(value)


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
    _held: dict[str, tuple[bool, str | None]]
    """Of arrays, whether they are never negative, and the format that the group asks for."""

    def __init__(self, declared: Mapping[str, Slot], reduced: Container[str] = ()) -> None:
        self.__dict__["_declared"] = declared
        self.__dict__["_reduced"] = reduced
        self.__dict__["_reads"] = {}
        self.__dict__["_writes"] = {}
        self.__dict__["_measured"] = {}
        self.__dict__["_asked"] = set()
        self.__dict__["_left"] = {}
        self.__dict__["_held"] = {}
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
            positive, held = self._held.get(name, (slot.positive, None))
            slots[name] = replace(slot, name=name, positive=positive, format=held)
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
