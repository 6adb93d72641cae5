"""What a format is: the numbers that stand in memory, and what they stand for."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Format"]


@dataclass(frozen=True)
class Format:
    """How an array is held.

    Attributes:
        name: what ``state_dtype`` calls it.
        bytes: memory of an element.
        dtype: the dtype of what stands for each element.
        noisy: whether a slot that is never negative is rounded at random. Such slots are running means of squares,
            whose change in a step is often below half a unit in the last place: rounded to nearest, it would be lost.
    """

    name: str
    bytes: float
    dtype: str
    noisy: bool = False
