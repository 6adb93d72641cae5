"""What is known of a value's sign without computing the whole of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .expression import CONDITIONS, Expression, Level, ordered
from .functions import minimum
from .host import OPERATIONS
from .slot import Slot

__all__ = ["growing", "never_negative", "not_negative", "same_sign"]


def same_sign(e: Expression) -> Expression:
    """An expression that has the sign of another wherever that is not zero, and is cheaper.

    Numbers that are not negative and multiply the whole, and divisors that are not negative, are left out: of Adam's
    step it is the running mean of the gradient. A product that would be too small for its dtype keeps its sign.
    """
    if e.op == "neg":
        return -same_sign(e.args[0])
    if e.op == "div" and not_negative(e.args[1]):
        return same_sign(e.args[0])
    if e.op == "mul":
        for factor, rest in (e.args, e.args[::-1]):
            if factor.level <= Level.REDUCED and not_negative(factor):
                return same_sign(rest)
    return e


def not_negative(e: Expression) -> bool:
    """Whether a value is known to be zero, positive or NaN. Hyperparameters are asked, as an ``if`` asks them."""
    if e.op == "constant":
        return bool(e.detail >= 0)
    if e.op in ("sqrt", "abs", "exp", "size"):
        return True
    if e.level is Level.SCALAR and not e.varies:
        return not minimum(e, 0.0)
    if e.op == "mul" and e.args[0] is e.args[1]:
        return True
    if e.op in ("add", "mul", "div", "minimum"):
        return all(map(not_negative, e.args))
    if e.op == "maximum":
        return any(map(not_negative, e.args))
    if e.op == "where":
        return all(map(not_negative, e.args[1:]))
    if e.op == "sub" and e.args[0].op == "constant" and e.args[0].detail >= 1:
        return at_most_one(e.args[1])
    return False


def at_most_one(e: Expression) -> bool:
    """Whether it is known to be a power of a number between 0 and 1, as in the corrections of running means."""
    if e.op != "pow" or e.args[0].varies or e.args[1].op != "step":
        return False
    base = e.args[0]
    return not_negative(base) and not_negative(1 - base)


FACTORS = 8
"""How many factors of a product are looked at together."""
SIGNLESS = CONDITIONS | {"sqrt", "abs", "exp", "size", "step", "drawn"}


def never_negative(
    slots: Mapping[str, Slot], writes: Mapping[str, Expression], value: Callable[[Expression], float]
) -> set[str]:
    """The arrays that hold no negative number, ever: neither do they begin with one, nor does what is written make one
    of what is not negative. Running means of squares are such.

    Args:
        slots: the slots.
        writes: what is written to them.
        value: of a hyperparameter, as it is now.
    """
    arrays = [name for name, slot in slots.items() if slot.kind == "array"]
    found = {name for name in arrays if name in writes and begins_positive(slots[name], value)}
    while True:
        known = signs([writes[name] for name in found], found, value)
        left = {name for name in found if known[id(writes[name])]}
        if left == found:
            return found
        found = left


def begins_positive(slot: Slot, value: Callable[[Expression], float]) -> bool:
    if slot.initial == "parameter":
        return False
    first = value(Expression("hyper", detail=(slot.initial,))) if isinstance(slot.initial, str) else slot.initial
    return first >= 0


def signs(roots: list[Expression], positive: set[str], value: Callable[[Expression], float]) -> dict[int, bool]:
    """Of expressions and what they are made of, whether each is known to be zero, positive or NaN."""
    known: dict[int, bool] = {}
    numbers: dict[int, float] = {}
    for e in ordered(roots):
        if e.op in ("constant", "hyper"):
            numbers[id(e)] = e.detail if e.op == "constant" else value(e)
        elif e.args and e.op in OPERATIONS and all(id(a) in numbers for a in e.args):
            numbers[id(e)] = OPERATIONS[e.op](*(numbers[id(a)] for a in e.args))
        number = numbers.get(id(e))
        known[id(e)] = sign_of(e, known, numbers, positive) if number is None else number >= 0
    return known


def sign_of(e: Expression, known: Mapping[int, bool], numbers: Mapping[int, float], positive: set[str]) -> bool:
    """The same of one, of which that is known of its operands."""
    if e.op == "slot":
        return e.detail in positive
    if e.op in SIGNLESS:
        return True
    args = [known[id(a)] for a in e.args]
    if e.op == "mul":
        return not uneven(factors(e), known)
    if e.op == "add":
        return all(args) or any(is_weighted_mean(a, b, known, numbers) for a, b in (e.args, e.args[::-1]))
    if e.op in ("div", "minimum"):
        return all(args)
    if e.op == "maximum":
        return any(args)
    if e.op == "where":
        return all(args[1:])
    return e.op in ("pow", "stored", "noisy") and args[0]


def factors(e: Expression) -> list[Expression]:
    """The factors of a product, those of products among them; the first so many."""
    found = [e]
    while len(found) < FACTORS:
        at = next((i for i, x in enumerate(found) if x.op == "mul"), None)
        if at is None:
            break
        found[at : at + 1] = found[at].args
    return found


def uneven(found: list[Expression], known: Mapping[int, bool]) -> bool:
    """Whether there is a factor that may be negative and does not stand there twice."""
    odd: set[int] = set()
    for x in found:
        if x.op == "mul" or not known[id(x)]:
            odd ^= {id(x)}
    return bool(odd)


def is_weighted_mean(
    start: Expression, step: Expression, known: Mapping[int, bool], numbers: Mapping[int, float]
) -> bool:
    """Whether a sum is ``start + weight * (end - start)``, its weight between 0 and 1, its ends not negative."""
    for weight, way in (step.args, step.args[::-1]) if step.op == "mul" else ():
        if way.op == "sub" and way.args[1] is start and 0 <= numbers.get(id(weight), -1.0) <= 1:
            return known[id(start)] and known[id(way.args[0])]
    return False


GROWS = "it only grows, and would stop where what is added falls below a code"


def growing(writes: Mapping[str, Expression], positive: set[str]) -> dict[str, str]:
    """Why slots are not for fewer bits to which something is added that is not negative, or that keep the largest of
    all numbers so far."""
    found = {}
    for name, e in writes.items():
        own = [a.op == "slot" and a.detail == name for a in e.args]
        if name in positive and any(own) and e.op in ("add", "maximum"):
            other = e.args[own.index(True) - 1]
            if e.op == "maximum" or not is_way(other, name):
                found[name] = GROWS
    return found


def is_way(step: Expression, name: str) -> bool:
    """Whether what is added to a slot leads away from what it was."""
    return step.op == "mul" and any(
        a.op == "sub" and a.args[1].op == "slot" and a.args[1].detail == name for a in step.args
    )
