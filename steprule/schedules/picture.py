"""A curve as a picture that notebooks show without any library."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = ["svg"]

WIDTH, HEIGHT, EDGE = 320, 80, 4


def svg(values: Sequence[float], title: str) -> str:
    """Values at equal distances as a line, with the lowest and the highest written beside it.

    Example:
        >>> svg([0.0, 1.0], "0.1 * linear(1)").count("<svg")
        1
    """
    low, high = min(values), max(values)
    spread = high - low or 1.0
    across, up = (WIDTH - 2 * EDGE) / max(len(values) - 1, 1), HEIGHT - 2 * EDGE
    points = " ".join(f"{EDGE + i * across:.1f},{EDGE + up * (high - v) / spread:.1f}" for i, v in enumerate(values))
    line = f'<polyline points="{points}" fill="none" stroke="#2463b8" stroke-width="2"/>'
    return (
        f'<div><code>{escape(title)}</code><br><svg width="{WIDTH}" height="{HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{line}</svg>'
        f"<br><small>{low:.3g} … {high:.3g}</small></div>"
    )
