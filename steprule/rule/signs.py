"""What is known of a value's sign without computing the whole of it."""

from __future__ import annotations

from .expression import Expression, Level
from .functions import minimum

__all__ = ["direction", "not_negative"]


def direction(e: Expression) -> Expression:
    """An expression that has the sign of another wherever that is not zero, and is cheaper.

    Numbers that are not negative and multiply the whole, and divisors that are not negative, are left out: of Adam's
    step it is the running mean of the gradient. A product that would be too small for its dtype keeps its sign.
    """
    if e.op == "neg":
        return -direction(e.args[0])
    if e.op == "div" and not_negative(e.args[1]):
        return direction(e.args[0])
    if e.op == "mul":
        for factor, rest in (e.args, e.args[::-1]):
            if factor.level <= Level.REDUCED and not_negative(factor):
                return direction(rest)
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
