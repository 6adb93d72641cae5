"""float16 rounded at random: of weights alone, for what state needs of exponents it has not."""

from steprule.rule.expression import Expression
from steprule.rule.functions import abs, floor, isnan, where

from .correction import bits_of, number, on_words
from .format import formula

__all__ = ["FLOAT16_AT_RANDOM"]

DROPPED = 13
"""The bits of a float32 that a float16 lacks."""
LEAST, UNIT = 2.0**-14, 2.0**-24
"""The least normal number, below which all numbers are multiples of the unit."""


def at_random(x: Expression, noise: Expression) -> Expression:
    """A neighbour of a number among those of float16, the nearer one more often, by 32 random bits."""
    carried = on_words("iadd", bits_of(x), on_words("ishr", noise, detail=32 - DROPPED))
    normal = number(on_words("iand", carried, 2**32 - 2**DROPPED))
    part = Expression("drawn", (noise,), 16) * 2.0**-16
    small = floor(x * (1 / UNIT) + part) * UNIT
    return where(isnan(x), x, where(abs(x) < LEAST, small, normal))


FLOAT16_AT_RANDOM = formula(at_random, 2)
