"""How pictures look."""

from __future__ import annotations

from typing import Any

__all__ = ["COLOURS", "FAINT", "INK", "STYLE"]

INK, FAINT = "#22262e", "#c9ced8"
COLOURS = ("#2463b8", "#c2410c", "#1c8a5b", "#7c3aed", "#b45309", "#be185d", "#0f766e", "#475569")
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eceff4",
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "font.size": 9,
    "figure.facecolor": "white",
}
