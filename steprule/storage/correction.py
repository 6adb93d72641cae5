"""What a correction is: the bits beside a bfloat16 that make more of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from steprule.rule.expression import Expression
from steprule.rule.functions import isnan

from .format import Formula, formula

__all__ = ["Correction", "correction"]

HALF, UPPER, QUIET = 0x8000, 0xFFFF0000, 0x400000
"""In the bits of a float32: half a unit of bfloat16, those that are a bfloat16's, and the one that makes NaN quiet."""


@dataclass(frozen=True)
class Correction:
    """How a float32 is held as a bfloat16, to nearest and away from zero in a tie, and the rest of its bits.

    NaN has no rest, and keeps its upper bits. An infinity has none; finite numbers above the largest bfloat16 have
    one below infinity.

    Attributes:
        name: what ``master`` calls it.
        dtype: that of the rest, a whole number.
        joined: ``(bfloat16, rest) -> float32``.
        upper: ``(float32) -> bfloat16``.
        lower: ``(float32) -> rest``.
        upper_at_random: ``(float32, bits) -> bfloat16``, by 32 random bits; None where nothing is rounded away.
        lower_at_random: ``(float32, bits) -> rest``.
    """

    name: str
    dtype: str
    joined: Formula
    upper: Formula
    lower: Formula
    upper_at_random: Formula | None = None
    lower_at_random: Formula | None = None

    def formula(self, operation: str, given: int) -> Formula:
        """That of an operation on so many numbers."""
        found: Formula = getattr(self, f"{operation}_at_random" if operation != "joined" and given > 1 else operation)
        return found


def whole(number: int) -> Expression:
    return Expression("whole", detail=number)


def on_words(op: str, *args: Any, detail: Any = None) -> Expression:
    return Expression(op, tuple(whole(a) if isinstance(a, int) else a for a in args), detail)


def number(word: Expression) -> Expression:
    return Expression("number", (word,))


def bits_of(x: Expression) -> Expression:
    return Expression("bits", (x,))


def kept(x: Expression, rest: int, noise: Expression | None) -> Expression:
    """The bits of a number that are kept.

    Args:
        x: the number.
        rest: of the 16 bits that a bfloat16 lacks, how many are.
        noise: random bits by which it is rounded to them; None rounds to nearest, to even in a tie.
    """
    held = bits = bits_of(x)
    if dropped := 16 - rest:
        if noise is None:
            odd = on_words("iand", on_words("ishr", bits, detail=dropped), 1)
            carried = on_words("iadd", on_words("iadd", bits, 2 ** (dropped - 1) - 1), odd)
        else:
            carried = on_words("iadd", bits, on_words("ishr", noise, detail=32 - dropped))
        held = on_words("iand", carried, 2**32 - 2**dropped)
    quiet = on_words("iand", on_words("ior", bits, QUIET), UPPER)
    return on_words("iwhere", isnan(x), quiet, held)


def correction(name: str, rest: int) -> Correction:
    """A correction of so many bits: 8 or 16."""

    def upper(x: Expression, noise: Expression | None = None) -> Expression:
        return number(on_words("iand", on_words("iadd", kept(x, rest, noise), HALF), UPPER))

    def lower(x: Expression, noise: Expression | None = None) -> Expression:
        return on_words("ishr", kept(x, rest, noise), detail=16 - rest) if rest < 16 else kept(x, rest, noise)

    def joined(p: Expression, held: Expression) -> Expression:
        shifted = on_words("imul", held, detail=2 ** (16 - rest)) if rest < 16 else held
        return number(on_words("iadd", bits_of(p), shifted))

    exact = rest == 16
    return Correction(
        name,
        f"int{rest}",
        formula(joined, 2),
        formula(upper, 1),
        formula(lower, 1),
        None if exact else formula(upper, 2),
        None if exact else formula(lower, 2),
    )
