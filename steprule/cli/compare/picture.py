"""The picture of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np

from steprule.display.style import COLOURS, INK, STYLE
from steprule.replacing import replacing

from .curves import bounds
from .run import Run
from .screen import smoothing, target_of

__all__ = ["draw"]

LABEL = 60  # characters of a label at most


def draw(path: Path, title: str, runs: Sequence[Run], steps: int, target: float | None) -> None:
    """Draw the loss of each run over the steps and over the seconds, as a PNG.

    Args:
        path: the PNG file, replaced whole.
        title: stands above the picture.
        runs: those that have no loss are left out.
        steps: of every run.
        target: the loss that was asked for, if one was.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: the file can't be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        present = [(index, run) for index, run in enumerate(runs) if run.losses]
        figure = Figure(figsize=(10, 4.6 + 0.22 * len(present)), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
        over_steps, over_seconds = figure.subplots(1, 2, sharey=True)
        smooth = smoothing(steps)
        for index, run in present:
            colour = COLOURS[index % len(COLOURS)]
            label = run.setting.text if len(run.setting.text) <= LABEL else f"{run.setting.text[: LABEL - 1]}…"
            label = f"{index + 1}: {label}{' (failed)' if run.failed else ''}"
            at = np.arange(1, len(run.losses) + 1)
            over_steps.plot(at, run.losses, color=colour, alpha=0.2, linewidth=0.6)
            over_steps.plot(at, run.mean(smooth), color=colour, linewidth=1.8, label=label)
            over_seconds.plot(run.seconds, run.mean(smooth), color=colour, linewidth=1.8)
        goal = target_of(runs, steps, target)
        for axes, name in ((over_steps, "step"), (over_seconds, "seconds")):
            axes.set_xlabel(name)
            if goal is not None:
                axes.axhline(goal, color=INK, linewidth=0.8, linestyle=":")
        low, high = bounds([run.losses for _, run in present])
        if low > 0:
            over_steps.set_yscale("log")
        margin = 1.15 if low > 0 else 0.05 * (high - low)
        over_steps.set_ylim((low / margin, high * margin) if low > 0 else (low - margin, high + margin))
        over_steps.set_title("loss over the steps")
        over_seconds.set_title("over the time" if goal is None else f"over the time; dotted: the target, {goal:.4g}")
        figure.legend(loc="outside lower left", ncols=1 if len(present) < 5 else 2, frameon=False)
        buffer = BytesIO()
        figure.savefig(buffer, format="png", dpi=160)
    with replacing(path) as file:
        file.write(buffer.getvalue())
