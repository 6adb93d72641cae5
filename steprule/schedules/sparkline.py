"""Numbers as a line of block characters."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["sparkline"]

BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float]) -> str:
    """One character for each value, from the lowest to the highest; level where all are equal.

    Example:
        >>> sparkline([0.0, 1.0, 2.0, 7.0]), sparkline([3.0, 3.0])
        ('▁▂▃█', '▄▄')
    """
    low, high = min(values), max(values)
    if low == high:
        return BLOCKS[3] * len(values)
    return "".join(BLOCKS[min(int((value - low) / (high - low) * 8), 7)] for value in values)
