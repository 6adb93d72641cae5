"""The picture of a training run: loss, held-out accuracy and the rate of each group over the steps."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from steprule.display.style import STYLE
from steprule.replacing import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOSS, ACCURACY = "#2463b8", "#1c8a5b"
GROUPS = ("#c2410c", "#7c3aed", "#0f766e", "#b45309", "#be185d")


def draw_run(path: Path, title: str, loss: list[float], accuracy: list[float], rates: dict[str, list[float]]) -> None:
    """Draw a run as a PNG, in one atomic replacement of `path`.

    Args:
        path: The PNG file.
        title: Stands above the picture.
        loss: Training loss of each step.
        accuracy: Held-out accuracy after each epoch, between 0 and 1.
        rates: Learning rate at each step, by the name of the group.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: The file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(9, 4.8), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
        grid = figure.add_gridspec(2, 2, width_ratios=(1.15, 1))
        loss_axes = figure.add_subplot(grid[:, 0])
        draw_loss(loss_axes, loss)
        draw_accuracy(figure.add_subplot(grid[0, 1], sharex=loss_axes), accuracy, len(loss))
        draw_rates(figure.add_subplot(grid[1, 1], sharex=loss_axes), rates)
        try:
            with replacing(path) as file:
                figure.savefig(file, format="png", dpi=160)
        finally:
            plt.close(figure)


def draw_loss(axes: Axes, loss: list[float], window: int = 50) -> None:
    """The loss of each step, and its mean over a window."""
    window = min(window, len(loss))
    mean = np.convolve(loss, np.ones(window) / window, mode="valid")
    axes.semilogy(range(1, len(loss) + 1), loss, color=LOSS, alpha=0.25, linewidth=0.7)
    axes.semilogy(range(window, len(loss) + 1), mean, color=LOSS, linewidth=2)
    axes.set_title(f"training loss, and its mean over {window} steps")
    axes.set_xlabel("step")


def draw_accuracy(axes: Axes, accuracy: list[float], steps: int) -> None:
    """Held-out accuracy in percent, after each epoch."""
    percent = 100 * np.asarray(accuracy)
    at = np.linspace(0, steps, len(percent) + 1)[1:]
    axes.plot(at, percent, color=ACCURACY, marker="o", markersize=3.5, linewidth=1.5)
    axes.annotate(
        f"{percent[-1]:.1f} %",
        (at[-1], percent[-1]),
        xytext=(0, -8),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=12,
        fontweight="bold",
        color=ACCURACY,
    )
    axes.set_ylim(max(percent[-1] - 20, 0), 101)  # the first epochs may lie below
    axes.set_title("held-out digits that are right, %")
    axes.tick_params(labelbottom=False)


def draw_rates(axes: Axes, rates: dict[str, list[float]]) -> None:
    """The learning rate of each group; groups that share one share a line."""
    lines: dict[tuple[float, ...], list[str]] = {}
    for name, rate in rates.items():
        lines.setdefault(tuple(rate), []).append(name)
    highest_first = sorted(lines.items(), reverse=True)
    for colour, (line, names) in zip(cycle(GROUPS), highest_first):
        axes.plot(range(1, len(line) + 1), line, color=colour, linewidth=2, label="\n".join(names))
    axes.set_ylim(bottom=0)
    axes.set_title("learning rate of each group")
    axes.set_xlabel("step")
    axes.legend(frameon=False, labelcolor="linecolor", handlelength=1)
