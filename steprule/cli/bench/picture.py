"""The picture of what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from steprule.display.style import FAINT, INK, STYLE
from steprule.replacing import replacing

from .cases import Result
from .growth import Curve
from .table import PEERS
from .tensor_shapes import SIZES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DRAWN = (*PEERS, "one group")
COLOURS = dict(zip(DRAWN, ("#22262e", "#c2410c", "#2463b8", "#1c8a5b", "#7c3aed", "#475569"), strict=True))
OURS = "#be185d"
LABELS = {"memory": "same bytes in place", "one group": "itself in one group"}


def draw(path: Path, results: Sequence[Result], title: str) -> None:
    """Draw the ratios, and where they were measured the sizes and the first steps, as a PNG.

    Args:
        path: the PNG file.
        results: what was measured.
        title: stands above the picture.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    compared = [r for r in results if r.ratios]
    sizes = [r for r in results if r.name.partition("/")[2] in SIZES]
    first = [r for r in results if any(t.against == "seconds" for t, _ in r.targets)]
    panels = [(draw_ratios, compared), (draw_sizes, sizes), (draw_first, first)]
    present = [(draw_panel, rows) for draw_panel, rows in panels if rows]
    heights = [1.2 + 0.24 * len(rows) for _, rows in present]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(present), 1, figsize=(9, 0.6 + sum(heights)), height_ratios=heights, layout="constrained", squeeze=False
        )
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        for (draw_panel, rows), panel in zip(present, axes[:, 0], strict=True):
            draw_panel(panel, rows)
        write_figure(path, figure)
        plt.close(figure)


def draw_growth(path: Path, curves: Sequence[Curve], title: str) -> None:
    """Draw the time of a step over all that grows, as a PNG.

    Args:
        path: the PNG file.
        curves: what was measured.
        title: stands above the picture.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(2, 2, figsize=(9, 6.4), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        for curve, panel in zip(curves, panels.flat, strict=True):
            draw_curve(panel, curve)
        panels[0, 0].legend(frameon=False, labelcolor="linecolor", handlelength=1)
        write_figure(path, figure)
        plt.close(figure)


def draw_curve(axes: Axes, curve: Curve) -> None:
    """Milliseconds of a step, with quartiles, over what grows."""
    for name, found in curve.seconds.items():
        colour, label = (OURS, name) if name not in COLOURS else (COLOURS[name], f"torch {name}")
        axes.loglog(curve.values, [1e3 * s.median for s in found], "o-", color=colour, markersize=3, label=label)
        low, high = [1e3 * s.low for s in found], [1e3 * s.high for s in found]
        axes.fill_between(curve.values, low, high, color=colour, alpha=0.15)
    axes.set_xlabel(curve.name)
    axes.set_title("ms of a step")
    if curve.values[-1] < 1000:
        axes.set_xticks(curve.values, map(str, curve.values), minor=False)
        axes.xaxis.minorticks_off()


def write_figure(path: Path, figure: Figure) -> None:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    with replacing(path) as file:
        file.write(buffer.getvalue())


def draw_ratios(axes: Axes, results: Sequence[Result]) -> None:
    """Our time over each peer's, on a logarithmic axis, with quartiles, and with a tick at each target."""
    for place, result in enumerate(results):
        for name, ratio in result.ratios.items():
            axes.plot([ratio.low, ratio.high], [place, place], color=COLOURS[name], linewidth=2, alpha=0.5)
            axes.plot(ratio.median, place, "o", color=COLOURS[name], markersize=5)
        for target, _ in result.targets:
            colour = COLOURS.get(target.against, INK)
            axes.plot(target.limit, place, "|", color=colour, markersize=11, markeredgewidth=1.5)
    for name in [peer for peer in DRAWN if any(peer in r.ratios for r in results)]:
        axes.plot([], [], "o", color=COLOURS[name], label=LABELS.get(name, f"torch {name}"))
    axes.plot([], [], "|", color=INK, markersize=11, markeredgewidth=1.5, label="at most")
    axes.axvline(1.0, color=INK, linewidth=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_title("steprule's time over the other's: left of 1 is faster")
    axes.legend(ncols=6, loc="upper left", bbox_to_anchor=(0, -0.04), frameon=False)
    name_rows(axes, results)


def draw_sizes(axes: Axes, results: Sequence[Result]) -> None:
    """Nanoseconds per parameter over the number of parameters."""
    ordered = sorted(results, key=lambda r: r.parameters)
    nanoseconds = [1e9 * r.seconds / r.parameters for r in ordered]
    axes.semilogx([r.parameters for r in ordered], nanoseconds, "o-", color=COLOURS["fused"])
    axes.set_ylim(bottom=0)
    axes.set_title("nanoseconds per parameter, over the number of parameters")


def draw_first(axes: Axes, results: Sequence[Result]) -> None:
    """Seconds of first steps."""
    axes.barh(range(len(results)), [r.seconds for r in results], color=COLOURS["foreach"], height=0.6)
    limit = max(target.limit for r in results for target, _ in r.targets)
    axes.axvline(limit, color=INK, linewidth=0.8)
    axes.set_title("seconds of the first step in a new process: trace and compile")
    name_rows(axes, results)


def name_rows(axes: Axes, results: Sequence[Result]) -> None:
    axes.set_yticks(range(len(results)), [r.name for r in results])
    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.grid(axis="y", color=FAINT, linewidth=0.4)
