"""Curves in a terminal: braille dots, eight to a character, in a colour for each run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from rich.text import Text

__all__ = ["STYLES", "bounds", "curves"]

STYLES = ("cyan", "yellow", "green", "magenta", "red", "blue", "bright_white", "bright_cyan")
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a braille character, by row and column
ENDS = 4  # columns of the runs' numbers at the right
MARGIN = 11  # columns of the numbers at the left


def curves(series: Sequence[Sequence[float]], length: int, width: int, height: int) -> Text:
    """A line for each series over the steps, and its number behind its end.

    Args:
        series: positive or not, but finite; each at most ``length`` long. An empty one has no line.
        length: steps from the left edge to the right.
        width: columns of the whole, numbers included.
        height: rows of the whole.
    """
    columns, rows = width - MARGIN - ENDS, height - 1
    lines = [binned(values, length, 2 * columns) for values in series]
    low, high = bounds(lines)
    logarithmic = low > 0 and high / low > 10
    place = math.log if logarithmic else float
    bottom, top = place(low), place(high)
    cells: dict[tuple[int, int], tuple[int, int]] = {}
    ends: dict[int, list[int]] = {}
    for index, line in enumerate(lines):
        heights = [round((place(min(y, high)) - bottom) / (top - bottom) * (4 * rows - 1)) for y in line]
        for x, y in enumerate(heights):
            before = heights[x - 1] if x else y
            for dot in range(min(before, y), max(before, y) + 1):
                row, column = rows - 1 - dot // 4, x // 2
                bits, _ = cells.get((row, column), (0, index))
                cells[row, column] = bits | DOTS[3 - dot % 4][x % 2], index
        if heights:
            ends.setdefault(rows - 1 - heights[-1] // 4, []).append(index)
    text = Text(no_wrap=True)
    middle = math.exp((bottom + top) / 2) if logarithmic else (bottom + top) / 2
    marks = {0: high, rows // 2: middle, rows - 1: low}
    for row in range(rows):
        text.append(f"{marks[row]:>{MARGIN - 2}.3g} ┤" if row in marks else f"{'│':>{MARGIN}}", "dim")
        for column in range(columns):
            bits, index = cells.get((row, column), (0, 0))
            text.append(chr(0x2800 + bits) if bits else " ", STYLES[index % len(STYLES)] if bits else "")
        for index in ends.get(row, [])[:ENDS]:
            text.append(str(index + 1), f"bold {STYLES[index % len(STYLES)]}")
        text.append("\n")
    ending = f"step {length}"
    text.append(f"{'0 ':>{MARGIN}}{ending:>{columns}}", "dim")
    return text


def binned(values: Sequence[float], length: int, bins: int) -> list[float]:
    """The mean of the values in each bin of the steps, up to the last bin that has begun."""
    filled = math.ceil(len(values) * bins / length)
    found: list[float] = []
    for place in range(filled):
        part = values[place * length // bins : max((place + 1) * length // bins, place * length // bins + 1)]
        found.append(fmean(part) if part else found[-1])
    return found


def bounds(series: Sequence[Sequence[float]]) -> tuple[float, float]:
    """From the lowest value to the highest; one that runs away counts only as far above the start as that is high.

    >>> bounds([[4.0, 3.0, 2.0], [3.0, 1e9]]), bounds([[2.0, 2.0]]), bounds([])
    ((2.0, 6.0), (1.5, 2.5), (0.0, 1.0))
    """
    values = [y for line in series for y in line] or [0.5]
    low, start = min(values), max((line[0] for line in series if line), default=0.5)
    high = min(max(values), start + (start - low)) if start > low else max(values)
    return (low, high) if high > low else (low - 0.5, low + 0.5)
