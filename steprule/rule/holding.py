"""In what slots and the parameter are held, where a group asks for fewer bits, and how they are rounded to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from .drawing import bits_for
from .expression import Expression, Level
from .links import Link
from .master import MASTER, PARAMETER
from .signs import growing, never_negative
from .slot import Slot

__all__ = ["Hold", "rounded_at_random"]

BEGINS_AS_PARAMETER = "it begins as the weights, and is an average or an anchor of them, which moves less than a code"


class Hold(Link):
    """The last link: it knows every slot, and what is written to it.

    Args:
        formats: of what the group says, the slots and the rule's name, the format of each slot that has one.
        noisy: the formats in which a slot that is never negative is rounded at random.
        slow: that in which running means are, too, that change little in a step.
        name: what the rule is called.
    """

    def __init__(
        self,
        formats: Callable[[Any, Mapping[str, Slot], str], dict[str, str]],
        noisy: frozenset[str],
        slow: str,
        name: str,
    ) -> None:
        super().__init__()
        self.formats, self.noisy, self.slow, self.rule = formats, noisy, slow, name

    def weights(self, p: Any, new: Any, s: Any, h: Any) -> Any:
        slots = {name: kept_exact(slot) for name, slot in s._slots().items() if slot.beside is None}
        positive = never_negative(slots, s._writes, h._value)
        grown = growing(s._writes, positive)
        for name, slot in slots.items():
            if slot.kind == "array":
                why = slot.exact or grown.get(name)
                slots[name] = replace(slot, positive=slot.positive or name in positive, exact=why)
        held = self.formats(h.state_dtype, slots, self.rule)
        if MASTER in s._declared:  # averages and anchors of weights, and what only grows, have all of their bits too
            exact = [n for n, slot in slots.items() if slot.kind == "array" and slot.exact and slot.dtype is None]
            held = dict.fromkeys(exact, "float32") | held
        s._held.update({name: (slot.positive, held.get(name)) for name, slot in slots.items() if slot.kind == "array"})
        for name, found in held.items():
            written = s._writes.get(name)
            if found not in self.noisy or written is None:
                continue
            if slots[name].positive or (found == self.slow and is_slow(written, name, h)):
                s._writes[name] = rounded_at_random(written, name)
        random = h.rounding == "stochastic" and MASTER not in s._declared  # parts are rounded where they are made
        return rounded_at_random(new, PARAMETER) if random else new


SLOW = 0.05
"""A running mean of which less than this changes in a step is slow: a code of 8 bits stands for some hundredths."""


def is_slow(written: Expression, name: str, h: Any) -> bool:
    """Whether a slot is a running mean that changes by less than a code in a step; hyperparameters are asked."""
    for e in written.args[1:] if written.op == "where" else (written,):
        weight = weight_of(e, name)
        if weight is not None and weight.level is Level.SCALAR and not weight.varies:
            return bool(h._ask(weight < SLOW))
    return False


def weight_of(e: Expression, name: str) -> Expression | None:
    """How much of a running mean changes in a step, where an expression is one."""
    if e.op != "add":
        return None

    def is_mean(x: Expression) -> bool:
        return x.op == "slot" and x.detail == name

    for mean, other in (e.args, e.args[::-1]):
        pairs = [(x, y) for z in (mean, other) if z.op == "mul" for x, y in (z.args, z.args[::-1])]
        if is_mean(mean):  # mean + weight * (x - mean)
            return next((x for x, y in pairs if y.op == "sub" and is_mean(y.args[1])), None)
        kept = next((x for x, y in pairs if is_mean(y)), None)
        if kept is not None:
            return 1 - kept
    return None


def kept_exact(slot: Slot) -> Slot:
    """A slot with what its declaration says of fewer bits."""
    anchored = slot.kind == "array" and slot.initial == "parameter" and slot.exact is None
    return replace(slot, exact=BEGINS_AS_PARAMETER) if anchored else slot


def rounded_at_random(value: Expression, name: str) -> Expression:
    """A value, and the bits by which it is rounded where it is stored in fewer bits.

    Args:
        value: what is stored.
        name: what tells this rounding from others of the rule.
    """
    if value.level is not Level.ARRAY:
        return value
    return Expression("noisy", (value, bits_for(name)))
