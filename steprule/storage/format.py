"""What a format is: the numbers that stand in memory, and what they stand for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from steprule.rule.expression import Expression, Level, ordered

__all__ = ["Codes", "Format", "Formula", "formula"]


@dataclass(frozen=True)
class Formula:
    """Operations of the language on some given numbers; each backend computes them as those of rules.

    Attributes:
        given: how many numbers are given: the first values.
        operations: (operation, numbers of its operands, detail), each of which is the next value.
        result: the number of the result.
    """

    given: int
    operations: tuple[tuple[str, tuple[int, ...], Any], ...]
    result: int

    def compute(self, given: Sequence[Any], operation: Callable[[str, list[Any], Any], Any]) -> Any:
        """The result.

        Args:
            given: the numbers.
            operation: computes one operation of operands and a detail, which is what a constant is.
        """
        values = list(given)
        for op, args, detail in self.operations:
            values.append(operation(op, [values[a] for a in args], detail))
        return values[self.result]


def formula(function: Callable[..., Expression], given: int) -> Formula:
    """A function of expressions as a formula."""
    leaves = [Expression("given", detail=k, level=Level.ARRAY) for k in range(given)]
    root = function(*leaves)
    numbers = {id(leaf): k for k, leaf in enumerate(leaves)}
    operations = []
    for e in ordered([root]):
        if id(e) not in numbers:
            operations.append((e.op, tuple(numbers[id(a)] for a in e.args), e.detail))
            numbers[id(e)] = given + len(operations) - 1
    return Formula(given, tuple(operations), numbers[id(root)])


@dataclass(frozen=True)
class Codes:
    """Whole numbers that stand for numbers, by a scale that a block of them shares.

    Attributes:
        dtype: that of the codes.
        block: how many elements share a scale, in the order of memory.
        decode: ``(code, scale) -> number``.
        root: ``(number) -> root``, what codes are multiples of the scale of.
        scale: ``(largest) -> scale``, of the largest absolute value of a block's roots; it is held in bfloat16.
        inverse: ``(scale) -> inverse``, of the scale as it is held.
        encode: ``(root, inverse) -> code``, to nearest.
        at_random: ``(root, inverse, bits) -> code``, by a number of 16 random bits; None where it is not.
    """

    dtype: str
    block: int
    decode: Formula
    root: Formula
    scale: Formula
    inverse: Formula
    encode: Formula
    at_random: Formula | None = None


@dataclass(frozen=True)
class Format:
    """How an array is held.

    Attributes:
        name: what ``state_dtype`` calls it.
        bytes: memory of an element.
        dtype: the dtype of what stands for each element; None where codes do.
        noisy: whether a slot that is never negative is rounded at random. Such slots are running means of squares,
            whose change in a step is often below half a unit in the last place: rounded to nearest, it would be lost.
        signed: the codes of a slot that may be negative.
        positive: those of one that never is.
        least: with how many elements of the whole parameter an array is held in codes; smaller ones stay in float32.
    """

    name: str
    bytes: float
    dtype: str | None
    noisy: bool = False
    signed: Codes | None = None
    positive: Codes | None = None
    least: int = 0
