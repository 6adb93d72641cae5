"""What was measured, as tables for the terminal and in Markdown, and as a dictionary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import RenderableType

from steprule.display.frame import framed

from .cases import MEMORY, OURS, Result, Target
from .timing import Spread, spread

__all__ = ["LEGEND", "PEERS", "Grid", "against", "as_dictionary", "figures", "targets"]

PEERS = (MEMORY, "fused", "foreach", "default", "compile")
PEAKS = {"peak MB": OURS, "fused's": "fused"}
"""The columns that say the memory of a first step, and whose it is."""
LEGEND = (
    "ms: a step of steprule. Ratios: its time over the other's; below 1 is faster. "
    "B/p: bytes a parameter. mul_: the GB/s of x.mul_(c) on as many bytes (on a GPU, of a copy); "
    "memory: the time of the same bytes at those. "
    "The others are torch's implementations of the algorithm; adamw-clip's is clip_grad_norm_ and then fused. "
    "peak MB: memory at the peak of the first step, above parameters and gradients; beside it that of torch's fused."
)


@dataclass(frozen=True)
class Grid:
    """Rows of text under column names; the first column stands left, the others right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def rich(self) -> RenderableType:
        """For the terminal."""
        columns = {name: [row[k] for row in self.rows] for k, name in enumerate(self.columns)}
        styles = ["red" if "missed" in row else None for row in self.rows]
        first = self.columns[:1]
        return framed(columns, left=first, breaking=first, styles=styles, title=self.title, dense=True)

    def markdown(self) -> str:
        """As a table in Markdown.

        >>> print(Grid("", ["case", "ms"], [["adamw/gpt2", "80.1"]]).markdown())
        | case | ms |
        |---|---:|
        | adamw/gpt2 | 80.1 |
        """
        lines = [self.columns, ["---", *["---:"] * (len(self.columns) - 1)], *self.rows]
        return "\n".join("|".join(["", *line, ""]) if line is lines[1] else f"| {' | '.join(line)} |" for line in lines)


def figures(results: Sequence[Result], wide: bool = False) -> Grid:
    """A row for each result: milliseconds, bytes, bandwidth and ratios; wide, with the peers' milliseconds too."""
    rows = [
        {
            "case": result.name,
            "ms": digits(1e3 * result.seconds),
            "B/p": f"{result.bytes / result.parameters:g}" if result.bytes else "",
            "GB/s": digits(result.bytes / result.seconds / 1e9) if result.bytes else "",
            "mul_": digits(result.bandwidth / 1e9) if result.bandwidth else "",
            **{name: ratio_cell(result, name, wide) for name in PEERS if name in result.ratios},
            **{column: digits(result.peaks[name] / 1e6) for column, name in PEAKS.items() if name in result.peaks},
        }
        for result in results
    ]
    present = [
        name for name in ("case", "ms", "B/p", "GB/s", "mul_", *PEERS, *PEAKS) if any(row.get(name) for row in rows)
    ]
    return Grid("Time of a step", present, [[row.get(name, "") for name in present] for row in rows])


def ratio_cell(result: Result, name: str, wide: bool) -> str:
    ratio = digits(result.ratios[name].median)
    if not wide:
        return ratio
    theirs = result.times[name].rounds
    return f"{ratio} ({digits(1e3 * spread(theirs).median)} ms)"


def targets(results: Sequence[Result]) -> Grid:
    """A row for each figure to reach: what was reached, its quartiles, and whether that is enough."""
    rows = [
        [
            result.name,
            against(target),
            f"{target.limit:g}",
            digits(reached.median),
            f"{digits(reached.low)} to {digits(reached.high)}",
            "met" if met(target, reached) else "missed",
        ]
        for result in results
        for target, reached in result.targets
    ]
    return Grid("Targets", ["case", "against", "at most", "reached", "quartiles", ""], rows)


def against(target: Target) -> str:
    """What a target's ratio is to, in words."""
    special = {
        MEMORY: "same bytes in place",
        "fastest": "torch's fastest",
        "10M": "itself at 10M",
        "seconds": "seconds",
        "one group": "itself in one group",
        "float32": "itself in float32",
    }
    return special.get(target.against, f"torch {target.against}")


def met(target: Target, reached: Spread) -> bool:
    return reached.median <= target.limit


def digits(value: float) -> str:
    """Three significant digits, without an exponent.

    >>> [digits(value) for value in (0.03621, 0.998, 81.25, 1234.5)]
    ['0.0362', '0.998', '81.2', '1234']
    """
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def as_dictionary(result: Result) -> dict[str, Any]:
    """A result in plain values: seconds, bytes, ratios, targets, and every round behind them."""
    return {
        "case": result.name,
        "parameters": result.parameters,
        "bytes": result.bytes,
        "bandwidth_bytes": result.bandwidth_bytes,
        "seconds": {name: asdict(spread(times.rounds)) for name, times in result.times.items()},
        "first_seconds": {name: times.first for name, times in result.times.items()},
        "rounds": {name: list(times.rounds) for name, times in result.times.items()},
        "ratios": {name: asdict(ratio) for name, ratio in result.ratios.items()},
        "peaks": dict(result.peaks),
        "targets": [
            {**asdict(target), "reached": asdict(reached), "met": met(target, reached)}
            for target, reached in result.targets
        ],
    }
