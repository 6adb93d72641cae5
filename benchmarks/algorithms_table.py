"""Writes docs/algorithms.md: when to choose each algorithm, what it keeps, and what its step costs beside AdamW's."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer

import steprule
from steprule.cli.bench import about_machine, disturbed, measured_where
from steprule.cli.bench.cases import WHERE, Where
from steprule.cli.bench.contenders import parameters
from steprule.cli.bench.tensor_shapes import SHAPES
from steprule.cli.bench.timing import CLOCKS, Pace, alternate, ratio

USUAL = """the 146 tensors of GPT-2 small; for Muon its hidden
  matrices; for its relatives those of four narrow
  blocks; for SparseAdam the gradient of 8,192 tokens for its
  vocabulary"""
PAGE = Path(__file__).parent.parent / "docs" / "algorithms.md"

HEAD = """# Algorithms

Sorted by what they keep. Each is one short file in `steprule/algorithms/`, whose docstring has the formula, the paper,
and every hyperparameter with its unit; [hyperparameters.md](hyperparameters.md) has all their usual ranges. Names,
arguments, defaults, state and checkpoints are those of `torch.optim`, where it has the algorithm.

- **state**: bytes for each float32 parameter, with default hyperparameters.
- **time**: of a step, over that of AdamW on the same parameters and gradients, in turns; {what}.

{where}

| algorithm | choose it | state | time |
|---|---|--:|--:|
"""

TAIL = """
LBFGS evaluates the model several times in a step; what it keeps grows to `history_size` pairs of vectors, and the time
of its own part with them.

Written by `python benchmarks/algorithms_table.py`.
"""

KEPT = "## Parity"
"""The section that scripts/parity_table.py writes."""


class Row(NamedTuple):
    """A line of the table."""

    name: str
    choose: str
    state: float
    time: str

    def __str__(self) -> str:
        state = "8 a pair" if self.name == "`LBFGS`" else f"{self.state:.3g}"
        return f"| {self.name} | {self.choose} | {state} | {self.time} |"


def algorithms() -> Iterator[tuple[str, type[steprule.Optimizer], dict[str, Any]]]:
    """What the table calls each algorithm, its class and its options."""
    for name, kind in vars(steprule).items():
        if inspect.isclass(kind) and issubclass(kind, steprule.Optimizer) and kind is not steprule.Optimizer:
            yield f"`{name}`", kind, {}
    yield "`SGD(momentum=0.9)`", steprule.SGD, {"momentum": 0.9}


def choose(kind: type) -> str:
    """The sentence of the docstring that says when to choose an algorithm."""
    found = re.search(r"Choose it (.*?\.)(?:\s|$)", inspect.getdoc(kind) or "", re.DOTALL)
    if found is None:
        raise ValueError(f"the docstring of {kind.__name__} does not say when to choose it")
    text = " ".join(found[1].removesuffix(".").split())
    return re.sub(r":class:`(\w+)`", r"`\1`", text).replace("``", "`")


def row(name: str, kind: type[steprule.Optimizer], options: dict[str, Any], shapes: str | None, pace: Pace) -> Row:
    """Measure an algorithm in turns with AdamW."""
    text = choose(kind) if not options else "the same, with momentum"
    if kind is steprule.LBFGS:
        return Row(name, text, float("inf"), "")
    where = WHERE.get(kind.__name__, Where())
    ours, adamw = (parameters(SHAPES[shapes or where.steps], torch.float32, "cpu", where.tokens) for _ in range(2))
    optimizer = kind(ours, **options)
    contenders = {name: optimizer.step, "AdamW": steprule.AdamW(adamw).step}
    times = alternate(contenders, pace, CLOCKS["cpu"])
    held = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    state = sum(v.numel() * v.element_size() for v in held) / sum(p.numel() for p in ours)
    return Row(name, text, state, f"{ratio(times[name].rounds, times['AdamW'].rounds).median:.2f}")


def main(
    output: Annotated[Path, typer.Option(dir_okay=False, help="The page.")] = PAGE,
    shapes: Annotated[str | None, typer.Option(help=f"Measure on others: {', '.join(SHAPES)}.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Turns that each algorithm takes.")] = Pace.rounds,
) -> None:
    """Measure every algorithm, and write the page."""
    about = about_machine("cpu")
    rows = [row(*algorithm, shapes, Pace(repeats)) for algorithm in algorithms()]
    where = " ".join(filter(None, [f"Measured on {measured_where(about)}.", disturbed(about)]))
    lines = [str(line) for line in sorted(rows, key=lambda line: (round(line.state, 2), line.name))]
    page = HEAD.format(what=f"those of {shapes}" if shapes else USUAL, where=where) + "\n".join(lines) + "\n" + TAIL
    _, heading, kept = (PAGE.read_text(encoding="utf-8") if PAGE.exists() else "").partition(KEPT)
    output.write_text(page + ("\n" + heading + kept if heading else ""), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
