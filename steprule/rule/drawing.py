"""Random numbers of a rule: a hash of what they belong to, so that nothing has to be remembered but a count."""

from __future__ import annotations

import zlib
from typing import Any

from .expression import VOCABULARY, Expression, Level, RuleError, as_expression, asking
from .functions import abs, sqrt, where

__all__ = ["normal", "uniform"]

VOCABULARY.update(__all__)

GOLDEN = 0x9E3779B9
"""2**32 over the golden ratio: odd, and its multiples are spread evenly."""


def uniform() -> Expression:
    """An array of random numbers, evenly from the multiples of 2**-24 in [0, 1).

    Each is a function of the group's ``seed``, the parameter (its name, or its place where it has none), the
    parameter's step, the element's place in the parameter's memory and the place of the call among those of the rule:
    the same bits for any number of threads, in every backend, for every dtype and after a checkpoint, whatever other
    parameters do. A rule that draws counts steps (``s.step``).
    """
    return on_bits("drawn", bits(), detail=8) * 2.0**-24


def normal() -> Expression:
    """An array of random numbers from the normal distribution with mean 0 and deviation 1, at most 5.3 away.

    They are made of one draw each as :func:`uniform` makes them, by exactly rounded operations alone, and so of the
    same bits everywhere.
    """
    y = on_bits("drawn", bits(), detail=9) * 2.0**-22 + (2.0**-23 - 1)
    return 1.4142135 * y * inverse_error_function((1 - y) * (1 + y))


def bits() -> Expression:
    """32 random bits for each element, as a whole number."""
    if asking.draw is None:
        raise RuleError("random numbers are drawn only while a rule is traced")
    seed, step, draw = asking.draw()
    a = of_step(seed, step, draw * GOLDEN % 2**32)
    b = mixed(on_bits("iadd", a, word(GOLDEN)))
    x = mixed(on_bits("iadd", half_of_place("low"), a))
    x = on_bits("ixor", x, on_bits("imul", half_of_place("high"), detail=GOLDEN))
    return mixed(on_bits("iadd", x, b))


def rounding_bits(tag: int) -> Expression:
    """Random bits for each element by which a value is rounded: the upper 16 of 32 count. They cost a third of those of
    :func:`bits`; elements whose places differ by 2**32 have the same.

    Args:
        tag: what tells these from others of the rule, below 2**32.
    """
    if asking.draw is None:
        raise RuleError("random numbers are drawn only while a rule is traced")
    seed, step, _ = asking.draw()
    x = on_bits("imul", on_bits("ixor", half_of_place("low"), of_step(seed, step, tag)), detail=GOLDEN)
    return on_bits("imul", on_bits("ixor", x, on_bits("ishr", x, detail=15)), detail=0x846CA68B)


def bits_for(name: str) -> Expression:
    """Random bits by which what has a name is rounded."""
    return rounding_bits(zlib.crc32(name.encode()))


def of_step(seed: Any, step: Any, tag: Any) -> Expression:
    """32 bits that a parameter has in a step."""
    key = Expression("input", detail="key", level=Level.REDUCED)
    a = mixed(on_bits("iadd", mixed(on_bits("iadd", word(seed), word(tag))), word(key)))
    return mixed(on_bits("iadd", a, word(step)))


def half_of_place(half: str) -> Expression:
    """Half of the number of the place at which each element stands in the whole of its parameter."""
    origin = Expression("input", detail="origin", level=Level.REDUCED)
    return Expression("index", (word(origin), word(origin, "high")), half, Level.ARRAY)


def word(number: Any, half: str = "low") -> Expression:
    """Half of the bits of a whole number below 2**53."""
    e = number if isinstance(number, Expression) else Expression("constant", detail=float(number))
    return Expression("word", (e,), half, Level.REDUCED)


def on_bits(op: str, *args: Expression, detail: Any = None) -> Expression:
    return Expression(op, args, detail)


def mixed(x: Expression) -> Expression:
    """A hash of 32 bits: a bijection of which each bit depends on every bit."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = on_bits("imul", on_bits("ixor", x, on_bits("ishr", x, detail=shift)), detail=factor)
    return on_bits("ixor", x, on_bits("ishr", x, detail=16))


def logarithm(t: Expression) -> Expression:
    """``-log(t)`` of numbers from 2**-31 to 1, by exactly rounded operations."""
    halvings = as_expression(0.0)
    for k in (16, 8, 4, 2, 1):
        small = t < 2.0**-k
        t, halvings = where(small, t * 2.0**k, t), where(small, halvings + k, halvings)
    s = (1 - t) / (1 + t)
    q = s * s
    series = 1 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11)))))
    return halvings * 0.6931472 + 2 * s * series


CENTRAL: tuple[float, ...] = (2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087)
CENTRAL += (-0.00125372503, -0.00417768164, 0.246640727, 1.50140941)
TAIL: tuple[float, ...] = (-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773)
TAIL += (-0.0076224613, 0.00943887047, 1.00167406, 2.83297682)


def inverse_error_function(t: Expression) -> Expression:
    """What x is multiplied by to give the inverse error function of x, where t is 1 - x * x (Giles, 2010)."""
    w = logarithm(t)
    near, far = w - 2.5, sqrt(abs(w)) - 3
    return where(w < 5, horner(near, CENTRAL), horner(far, TAIL))


def horner(x: Expression, coefficients: tuple[float, ...]) -> Expression:
    total = as_expression(coefficients[0])
    for c in coefficients[1:]:
        total = c + total * x
    return total
