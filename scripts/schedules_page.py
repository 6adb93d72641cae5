"""Draws docs/schedule_shapes.png: every schedule that stands in a table of docs/schedules.md."""

from __future__ import annotations

import re
from pathlib import Path

from matplotlib.figure import Figure

from steprule import schedules
from steprule.display.style import COLOURS

DOCS = Path(__file__).parents[1] / "docs"
STEPS = 120


def expressions(page: str) -> list[str]:
    """What stands first in the rows of the page's tables."""
    return re.findall(r"^\| `([^`]+)` \|", page, re.M)


def values(expression: str) -> list[float]:
    """The schedule's values from step 0 on; a plateau hears of a loss that stops falling."""
    made = eval(expression, dict(vars(schedules)))
    if not isinstance(made, schedules.Schedule):
        return [made(step) for step in range(STEPS)]
    found = []
    for step in range(STEPS):
        found.append(made(step))
        if schedules.plateaus([made]):
            made.report(max(1.0 - step / 30, 0.2))
    return found


def main() -> None:
    """Draw a panel for each."""
    found = expressions((DOCS / "schedules.md").read_text(encoding="utf-8"))
    columns = 3
    figure = Figure(figsize=(11, 1.6 * -(-len(found) // columns)), layout="constrained")
    panels = figure.subplots(-(-len(found) // columns), columns, sharex=True, squeeze=False).ravel()
    for axes, expression in zip(panels, found, strict=False):
        axes.plot(values(expression), color=COLOURS[0], linewidth=1.6)
        axes.set_title(expression, fontsize=8, family="monospace", loc="left")
        axes.set_ylim(-0.05, 1.08)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(found) :]:
        axes.set_axis_off()
    figure.savefig(DOCS / "schedule_shapes.png", dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
