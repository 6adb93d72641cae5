"""Trains digits and a small character transformer with many algorithms, each at the rate that suits it best.

Writes the section of docs/comparison.md and its picture: ``make compare``.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import pydoc_data.topics
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from low_bits import digits  # type: ignore[import-not-found,unused-ignore]
from rich.progress import track
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import steprule
from steprule import hidden_matrices, modifiers, schedules
from steprule.display.style import COLOURS, STYLE

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "examples"))
from small_transformer import LENGTH, Transformer  # type: ignore[import-not-found,unused-ignore]  # noqa: E402

PAGE, PICTURE = ROOT / "docs" / "comparison.md", ROOT / "docs" / "trained.png"
HEADING = "## Trained on the same tasks"
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
PIECES = 8

Make = Callable[[nn.Module, Any], steprule.Optimizer]


def with_adamw(kind: Any, **options: Any) -> Make:
    """An algorithm for hidden matrices, and AdamW at the same rate for all else."""
    others = {~hidden_matrices: dict(algorithm=steprule.AdamW)}
    return lambda model, rate: kind(model, lr=rate, overrides=others, **options)


CHOSEN = """
Adagrad RMSprop Adam AdamW NAdam RAdam Adafactor Lion Lamb Signum Tiger AdaBelief LaProp Adan ADOPT AdEMAMix
StableAdamW CAME MARS AdamMini Ranger Prodigy DAdaptAdam ScheduleFreeAdamW SOAP Shampoo Kron Scion
"""
"""With their own defaults."""
CONSTANT = {"ScheduleFreeAdamW"}
"""Those whose rate does not fall, as they average instead."""


def contenders() -> dict[str, Make]:
    """How each algorithm is made of a model and a rate, by name."""

    def make(name: str, **options: Any) -> Make:
        return lambda model, rate: getattr(steprule, name)(model, lr=rate, **options)

    found = {name: make(name) for name in CHOSEN.split()}
    found["SGD, momentum 0.9"] = make("SGD", momentum=0.9)
    found["AdamW, cautious"] = lambda model, rate: steprule.AdamW(model, lr=rate, modifiers=[modifiers.Cautious()])
    found["Muon and AdamW"] = with_adamw(steprule.Muon, adjust_lr_fn="match_rms_adamw")
    found["NorMuon and AdamW"] = with_adamw(steprule.NorMuon)
    return found


class Task(NamedTuple):
    """Something to learn.

    Attributes:
        name: in words, with the unit of its loss.
        model: makes it.
        steps: how many are taken.
        losses: the loss of a step on this model, by a generator of random numbers.
        held_out: the loss on what was not trained on.
    """

    name: str
    model: Callable[[], Any]
    steps: int
    loss: Callable[[Any, torch.Generator], Tensor]
    held_out: Callable[[Any], float]


TRAIN = 1400


def of_digits(model: nn.Module, draws: torch.Generator) -> Tensor:
    images, labels = digits()
    rows = torch.randint(TRAIN, (64,), generator=draws)
    return cross_entropy(model(images[rows]), labels[rows])


def digits_held_out(model: nn.Module) -> float:
    images, labels = digits()
    return float(cross_entropy(model(images[TRAIN:]), labels[TRAIN:]))


@cache
def text() -> Tensor:
    """The reference of the Python language, which comes with it, as bytes."""
    topics = pydoc_data.topics.topics
    return torch.tensor(list("\n".join(topics[name] for name in sorted(topics)).encode()))


def pieces(begins: Tensor) -> tuple[Tensor, Tensor]:
    found = torch.stack([text()[begin : begin + LENGTH + 1] for begin in begins.tolist()])
    return found[:, :-1], found[:, 1:]


def of_text(model: Transformer, draws: torch.Generator) -> Tensor:
    last = len(text()) * 9 // 10 - LENGTH - 1
    loss: Tensor = model.loss(*pieces(torch.randint(last, (PIECES,), generator=draws)))
    return loss


def text_held_out(model: Transformer) -> float:
    begins = torch.arange(len(text()) * 9 // 10, len(text()) - LENGTH - 1, LENGTH)
    return float(model.loss(*pieces(begins)))


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


TASKS = (
    Task("digits, nats an image", network, 330, of_digits, digits_held_out),
    Task("text, nats a byte", Transformer, 300, of_text, text_held_out),
)


class Job(NamedTuple):
    """One training run."""

    task: int
    name: str
    rate: float
    seed: int


def trained(job: Job) -> float:
    """The loss on what is held out after training; infinite where it broke."""
    torch.set_num_threads(1)
    task = TASKS[job.task]
    torch.manual_seed(job.seed)
    model = task.model()
    rate: Any = job.rate if job.name in CONSTANT else job.rate * schedules.linear(task.steps)
    optimizer = contenders()[job.name](model, rate)
    draws = torch.Generator().manual_seed(job.seed)
    for _ in range(task.steps):
        optimizer.zero_grad()
        loss = task.loss(model, draws)
        if not math.isfinite(loss.detach()):
            return math.inf
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    averaged = optimizer.evaluating() if job.name in CONSTANT else contextlib.nullcontext()
    with averaged, torch.no_grad():
        held_out = task.held_out(model)
    return held_out if math.isfinite(held_out) else math.inf


def measured(jobs: Sequence[Job], processes: int) -> Iterator[tuple[Job, float]]:
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from zip(jobs, track(pool.imap(trained, jobs), total=len(jobs)), strict=True)


class Best(NamedTuple):
    """The rate that suits an algorithm best on a task, and its losses there with each seed."""

    rate: float
    losses: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.losses)


def compared(names: Sequence[str], seeds: int, processes: int) -> list[dict[str, Best]]:
    """For each task, each algorithm at its best rate of the first seed."""
    tasks = range(len(TASKS))
    first = dict(measured([Job(*key, 0) for key in product(tasks, names, RATES)], processes))

    def best_rate(task: int, name: str) -> float:
        return min(RATES, key=lambda rate: first[Job(task, name, rate, 0)])

    rates = {key: best_rate(*key) for key in product(tasks, names)}
    others = [Job(*key, rate, seed) for key, rate in rates.items() for seed in range(1, seeds)]
    losses = {**first, **dict(measured(others, processes))}

    def best(task: int, name: str) -> Best:
        rate = rates[task, name]
        return Best(rate, tuple(losses[Job(task, name, rate, seed)] for seed in range(seeds)))

    return [{name: best(task, name) for name in names} for task in tasks]


def ordered(own: Mapping[str, Best]) -> list[str]:
    """The algorithms, the best first."""
    return sorted(own, key=lambda name: own[name].mean)


def table(found: Sequence[Mapping[str, Best]]) -> str:
    """All algorithms, by how they read; of a loss, its mean and how far from it the seeds lie."""
    cells = {
        name: [
            f"{own[name].rate:g} | {own[name].mean:.3f} ± {statistics.pstdev(own[name].losses):.3f}" for own in found
        ]
        for name in ordered(found[-1])
    }
    head = " | ".join(f"rate | {task.name}" for task in TASKS)
    lines = [f"| algorithm | {head} |", "|---|" + "--:|--:|" * len(TASKS)]
    return "\n".join(lines + [f"| {name} | {' | '.join(own)} |" for name, own in cells.items()])


def section(found: Sequence[Mapping[str, Best]], seeds: int) -> str:
    """What docs/comparison.md says of it."""
    rates = ", ".join(f"{rate:g}" for rate in RATES)
    return f"""{HEADING}

![Losses on held-out digits and text, an algorithm a line](trained.png)

Every algorithm takes the same steps on the same batches, with its own defaults and the best of the same rates
({rates}), chosen by the loss of the first of {seeds} seeds. Rates fall in a
line to zero, but for the schedule-free one. The loss is that on what was held out: after {TASKS[0].steps} steps on
scikit-learn's digits of 8 by 8 (a perceptron of 26 thousand parameters, batches of 64), and after {TASKS[1].steps}
on the reference of the Python language, byte by byte (a transformer of 136 thousand parameters,
{PIECES} pieces of {LENGTH} bytes). So short a run says how fast an algorithm begins; of larger models it says
little. `make compare` writes this section.

{table(found)}
"""


def draw(found: Sequence[Mapping[str, Best]], path: Path) -> None:
    """Each seed's loss, the best algorithm at the top; what is far off is cut."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 1 + 0.2 * len(found[0])), layout="constrained")
        for axes, task, own in zip(figure.subplots(1, len(found)), TASKS, found, strict=True):
            names = ordered(own)
            ends = list(filter(math.isfinite, (own[name].mean for name in names)))
            last = ends[85 * (len(ends) - 1) // 100]
            for place, name in enumerate(names):
                losses = own[name].losses
                axes.plot(losses, [place] * len(losses), "o", color=COLOURS[0], alpha=0.4, markersize=4)
                axes.plot(own[name].mean, place, "|", color=COLOURS[1], markersize=10, markeredgewidth=2)
            axes.set_xlim(ends[0] - 0.1 * (last - ends[0]), last + 0.2 * (last - ends[0]))
            axes.set_yticks(range(len(names)), names)
            axes.invert_yaxis()
            axes.set_title(task.name)
        figure.savefig(path, dpi=110)


def main(
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 3,
    processes: Annotated[int, typer.Option(min=1, help="Runs at a time, of one thread each.")] = 2,
    only: Annotated[str, typer.Option(help="Some algorithms, with commas; the table is printed alone.")] = "",
) -> None:
    """Train, and write the section and the picture."""
    names = only.split(",") if only else list(contenders())
    found = compared(names, seeds, processes)
    if only:
        print(table(found))
        return
    before = PAGE.read_text().partition(f"\n{HEADING}")[0]
    PAGE.write_text(f"{before}\n{section(found, seeds)}")
    draw(found, PICTURE)


if __name__ == "__main__":
    typer.run(main)
