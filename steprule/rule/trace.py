"""Runs an update rule once, on symbols, and lays out what it said as a Program."""

from __future__ import annotations

import difflib
import itertools
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from steprule.messages.spelling import nearest

from .chain import chained
from .expression import Expression, Level, RuleError, asking
from .master import MASTER, Master
from .modifier import Modifier, declared_slots
from .phases import Phases
from .program import Program
from .slot import Slot
from .symbols import Hyper, State

__all__ = ["Rule", "trace"]

Rule = Callable[[Expression, Expression, State, Hyper], Any]


def trace(
    rule: Rule,
    hyper: Mapping[str, Any],
    slots: Mapping[str, Slot] | None = None,
    *,
    name: str = "rule",
    modifiers: Sequence[Modifier] = (),
    ndim: int | None = None,
    master: Master | None = None,
    parted: bool = True,
) -> Program:
    """Run a rule on symbols.

    Args:
        rule: ``rule(p, g, s, h)`` gives the parameter's new value.
        hyper: the hyperparameters.
        slots: declared slots by name.
        name: what the Program is called when printed.
        modifiers: what goes around the rule, in the order in which it acts.
        ndim: the number of the parameter's dimensions, for rules that ask.
        master: what stands beside the parameter, which the rule then sees whole.
        parted: whether its new value is parted again; where it is not, it is rounded, and what stands beside it stays.

    Raises:
        RuleError: if the rule is wrong, saying where and what to write instead.
    """
    slots = {**(slots or {}), **declared_slots(modifiers)}
    if master is not None:
        refuse_taken(slots, name)
        slots[MASTER] = master.slot
    for slot_name, slot in slots.items():
        refuse_slot(slot_name, slot, hyper)
    shaping = frozenset(key for slot in slots.values() for key in slot.asks)
    slots = {slot_name: slot.settled(hyper) for slot_name, slot in slots.items()}
    reduced = frozenset(slot_name for slot_name, slot in slots.items() if slot.scope == "all")
    shape = Shape(ndim)
    whole = chained(rule, modifiers, name)
    while True:
        h, s = Hyper(hyper), State(slots, reduced)
        h._settle(shaping)
        before = generator_states()
        new = run(whole, h, s, shape, master, parted)
        if generator_states() != before:
            raise RuleError(
                f"{name}.update draws a random number: it runs once, and every step would use that one; uniform() "
                "and normal() from steprule.rule are drawn in each step"
            )
        refuse_misspelt_slot(name, s)
        found = s._given_reductions()
        if found <= reduced:
            program = Phases(name, s, h, reduced).program(new, s._measured, s._left)
            active = tuple(type(m).__name__ for m in modifiers if m.name and hyper[m.name])
            return replace(program, ndim=ndim if shape.asked else None, modifiers=active, master=master)
        reduced |= found  # what is read of them, too, is known only where reductions are


GENERATORS: dict[str, Callable[[Any], Any]] = {
    "random": lambda module: module.getstate(),
    "numpy.random": lambda module: pickle.dumps(module.get_state()),
    "torch.random": lambda module: module.get_rng_state().numpy().tobytes(),
}
"""The states of the random generators that a rule might draw from, by module."""


def generator_states() -> list[Any]:
    """How far those generators are whose modules are in use."""
    return [state(sys.modules[name]) for name, state in GENERATORS.items() if name in sys.modules]


def refuse_misspelt_slot(name: str, s: State) -> None:
    """A slot that is read and never written stays as it began; if one of nearly its name is written, it was meant."""
    for slot in s._reads:
        if slot not in s._writes and slot not in s._declared:
            for near in difflib.get_close_matches(slot, s._writes.keys() - s._reads.keys(), 1, 0.8):
                raise RuleError(
                    f"{name}.update reads s.{slot} and never writes it, and writes s.{near} without having read it; if "
                    f"two slots are meant, declare {slot!r} in slots"
                )


def refuse_slot(name: str, slot: Any, hyper: Mapping[str, Any]) -> None:
    """A declaration that says nothing, or a first value that nobody knows."""
    if not isinstance(slot, Slot):
        raise RuleError(
            f"slots[{name!r}] is {slot!r:.60}; declare it as array(), row(), column(), channel(), table() or scalar()"
        )
    for key in slot.asks:
        if key not in hyper:
            near = nearest(key, hyper) or f"; there are {', '.join(sorted(hyper))}"
            raise RuleError(f"the table slot {name!r} takes its shape from {key!r}, which is no hyperparameter{near}")
    known = slot.initial in hyper or (slot.kind, slot.initial) in (("array", "parameter"), ("table", "identity"))
    if isinstance(slot.initial, str) and not known:
        near = nearest(slot.initial, hyper) or f"; there are {', '.join(sorted(hyper))}"
        raise RuleError(f"the {slot.kind} slot {name!r} begins with {slot.initial!r}, which is no hyperparameter{near}")


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


def refuse_taken(slots: Mapping[str, Slot], name: str) -> None:
    """The slot beside the parameter must not be one of the rule's own."""
    if MASTER in slots:
        raise RuleError(
            f"{name} has a slot {MASTER!r} of its own, which is where master= keeps the bits that the weights lack; "
            "give the slot another name, or its group master=None"
        )


def run(rule: Rule, h: Hyper, s: State, shape: Shape, master: Master | None, parted: bool) -> Expression:
    """Run a rule on symbols, once: the parameter's new value."""
    p = Expression("param", level=Level.ARRAY)
    g = Expression("grad", level=Level.ARRAY)
    asked = ("answer", "ndim", "draw", "due", "settled", "held", "parameter")
    previous = {name: getattr(asking, name) for name in asked}
    asking.parameter, asking.held = (p, None) if master is None else (master.joined(p, s), master.stored)
    asking.due = lambda k: ((s.step - 1) % k == 0) | s.is_new
    draws = itertools.count()
    seed = h.seed if "seed" in h._values else Expression("constant", detail=0.0)
    asking.settled = h._settled
    asking.answer, asking.ndim, asking.draw = h._ask, shape.ask, lambda: (seed, s.step, next(draws))
    try:
        new: Expression = rule(asking.parameter, g, s, h)
        return new if master is None or not parted else master.parted(new, s, h)
    finally:
        vars(asking).update(previous)
