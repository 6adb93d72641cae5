"""How the pictures of the gallery are drawn and kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from steprule.display.style import COLOURS, STYLE

__all__ = ["COLOURS", "keep", "panels", "smooth"]


def panels(count: int, titles: Sequence[str]) -> tuple[Figure, list[Any]]:
    """A figure with so many panels in a row."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.6 * count, 3.1), layout="constrained")
        axes = list(figure.subplots(1, count, squeeze=False)[0])
        for each, title in zip(axes, titles, strict=True):
            each.set_title(title)
    return figure, axes


def keep(figure: Figure, picture: Path | None) -> None:
    """Write a figure, if somebody wants it."""
    if picture is not None:
        with mpl.rc_context(STYLE):
            figure.savefig(picture, dpi=100)


def smooth(values: Sequence[float], window: int = 10) -> list[float]:
    """The mean of the last values, up to each."""
    return [sum(values[max(0, i - window + 1) : i + 1]) / min(window, i + 1) for i in range(len(values))]
