"""What the terminal shows: curves, and a table of the runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.text import Text

from steprule.display.bytes import readable
from steprule.display.frame import framed

from .curves import STYLES, curves
from .run import Run

__all__ = ["Outcome", "results", "screen", "smoothing", "target_of", "window_of"]

COLUMNS = ("", "setting", "steps", "loss", "to target", "seconds", "state")


@dataclass(frozen=True)
class Outcome:
    """What a run has come to.

    Attributes:
        setting: the text of its setting.
        steps: the number of steps that it took.
        loss: the mean of its last losses, :func:`window_of` many; None before the first.
        steps_to_target: after how many steps that mean was at most the target; None if it never was.
        seconds: of training.
        state_bytes: what the optimizer keeps between steps; 0 before the end.
        failed: why it ended before its time, or None.
    """

    setting: str
    steps: int
    loss: float | None
    steps_to_target: int | None
    seconds: float
    state_bytes: int
    failed: str | None


def window_of(steps: int) -> int:
    """Over how many steps a loss is averaged before it is compared."""
    return max(1, steps // 20)


def smoothing(steps: int) -> int:
    """Over how many steps a loss is averaged where it is drawn."""
    return max(1, steps // 30)


def target_of(runs: Sequence[Run], steps: int, target: float | None) -> float | None:
    """The loss to reach: the one that was asked for, else where the worst complete run ended; None before that."""
    if target is not None:
        return target
    window = window_of(steps)
    if not all(run.failed or len(run.losses) >= steps for run in runs):
        return None
    return max((run.mean(window)[-1] for run in runs if not run.failed), default=None)


def results(runs: Sequence[Run], steps: int, target: float | None) -> list[Outcome]:
    """What each run has come to so far."""
    window, goal = window_of(steps), target_of(runs, steps, target)
    return [
        Outcome(
            run.setting.text,
            len(run.losses),
            run.mean(window)[-1] if run.losses else None,
            None if goal is None else run.reaches(goal, window),
            run.seconds[-1] if run.losses else 0.0,
            run.state_bytes,
            run.failed,
        )
        for run in runs
    ]


def cells(result: Outcome, steps: int, target: float | None) -> list[str]:
    """A result's row of the table."""
    if not result.steps:
        return [result.setting, "failed" if result.failed else "", "", "", "", ""]
    reached = "" if target is None or result.failed else str(result.steps_to_target or "never")
    return [
        result.setting,
        str(steps) if result.steps >= steps else f"{result.steps}/{steps}",
        "failed" if result.failed else f"{result.loss:.4g}",
        reached,
        f"{result.seconds:.1f}",
        readable(result.state_bytes) if result.state_bytes or result.steps >= steps else "",
    ]


def screen(runs: Sequence[Run], steps: int, target: float | None, width: int, height: int) -> RenderableType:
    """The curves so far above the table so far, which leave a few rows of the terminal free."""
    smooth = [run.mean(smoothing(steps)) for run in runs]
    drawn = curves(smooth, steps, min(width, 140), min(16, max(7, height - len(runs) - 9)))
    found, goal = results(runs, steps, target), target_of(runs, steps, target)
    best = min((r.loss for r in found if r.loss is not None and r.steps >= steps and not r.failed), default=None)
    rows = []
    for index, result in enumerate(found):
        style = "red" if result.failed else "bold" if result.loss == best else ""
        mark = Text(str(index + 1), f"bold {STYLES[index % len(STYLES)]}")
        rows.append([mark, *(Text(cell, style) for cell in cells(result, steps, goal))])
    columns = {name: [row[k] for row in rows] for k, name in enumerate(COLUMNS)}
    table = framed(columns, left=COLUMNS[:2], breaking=["setting"])
    failures = [Text(f"{index}: {run.failed}", "red") for index, run in enumerate(runs, 1) if run.failed]
    return Group(drawn, Text(), table, Text(legend(runs, steps, target), "dim"), *failures)


def legend(runs: Sequence[Run], steps: int, target: float | None) -> str:
    goal = target_of(runs, steps, target)
    window = window_of(steps)
    mean = f"loss: the mean of the last {window} steps" if window > 1 else "loss: of the last step"
    if goal is None:
        return f"{mean}."
    return f"{mean}; target: {goal:.4g}{'' if target is not None else ', where the worst ended'}."
