"""`steprule demo`: a real task from groups to a picture, which can be stopped and resumed at any moment."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

import steprule
from steprule.display.frame import framed
from steprule.display.table import value_text
from steprule.grouping.globs import fold
from steprule.messages.spelling import nearest

from .console import console, fail
from .demo_run import DemoRun, DemoSettings, algorithm, check_fits, new_run, resumed_run, train_step
from .digits import STEPS, Digits, batches, count_right, read_digits
from .picture import draw_run

CHECKPOINT = "checkpoint.safetensors"


def demo(
    context: typer.Context,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the digits.")] = 15,
    seed: Annotated[int, typer.Option(min=0, max=2**32, help="Of first weights and data order.")] = 0,
    optimizer: Annotated[str, typer.Option(help="Any algorithm of steprule, by its name.")] = "SGD",
    device: Annotated[str, typer.Option(help="Where to train.")] = "cpu",
    output: Annotated[Path, typer.Option(help="Folder of checkpoint and picture.")] = Path("demo-output"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in the output folder.")] = False,
) -> None:
    """Train LeNet on 1,797 handwritten digits, with checkpoints and a picture."""
    settings = DemoSettings(algorithm(optimizer).__name__, seed, epochs)
    checkpoint = output / CHECKPOINT
    torch.set_num_threads(1)  # LeNet is too small to share, and so its bits don't depend on the machine's cores
    check_device(device)
    train, held_out = load_digits(torch.device(device))
    if resume and not checkpoint.exists():
        fail(f"{output} holds no run to go on with{nearest_run(output)}; leave out --resume to start one", 1)
    with writing_to(output):
        if resume:
            given = {name: value for name, value in asdict(settings).items() if is_given(context, name)}
            run = resumed_run(checkpoint, given, torch.device(device))
            console.print(f"Going on after epoch {len(run.history.right)} of {checkpoint}.", soft_wrap=True)
        else:
            check_fits(settings, next(batches(train, seed, epoch=0)))
            run = new_run(settings, torch.device(device))
            run.save(checkpoint)  # from here on --resume means this run
        console.print(table_of_groups(run.optimizer))
        try:
            train_model(run, train, held_out, checkpoint)
            draw(run, len(held_out.labels), output / "demo.png")
        except KeyboardInterrupt:
            command = f"steprule demo --resume --output {shlex.quote(str(output))}"
            console.print(f"Stopped. To go on: {command}", soft_wrap=True)
            raise typer.Exit(130) from None
    right, total = run.history.right[-1], len(held_out.labels)
    console.print(f"Checkpoint and picture are in {output}.", soft_wrap=True)
    console.print(f"{right / total:.1%} of the held-out digits are right ({right} of {total}).")


def nearest_run(folder: Path) -> str:
    """The folders beside it that hold a run and are called nearly as it is."""
    return nearest(folder.name, [found.parent.name for found in folder.parent.glob(f"*/{CHECKPOINT}")])


def is_given(context: typer.Context, option: str) -> bool:
    """Whether an option stands on the command line."""
    source = context.get_parameter_source(option)
    return source is not None and source.name != "DEFAULT"


def check_device(name: str) -> None:
    """Refuse a device that cannot compute on this machine."""
    try:
        torch.zeros((), device=name).item()
    except (RuntimeError, AssertionError) as error:
        fail(f"cannot train on device {name!r}: {str(error).splitlines()[0]}")


def load_digits(device: torch.device) -> tuple[Digits, Digits]:
    """The digits to train on and those held out, or one line that says what to install."""
    try:
        import matplotlib  # noqa: F401

        return read_digits(device)
    except ImportError as error:
        fail(f"the demo needs scikit-learn and matplotlib ({error}): pip install 'steprule[demo]'")


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Make the folder if need be, and say in one line when something cannot be written in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # known now, not after the first epoch
            pass
        yield
    except OSError as error:
        fail(f"cannot write to {error.filename or folder}: {error.strerror or error}")


def train_model(run: DemoRun, train: Digits, held_out: Digits, checkpoint: Path) -> None:
    """Train to the end, with a checkpoint after each epoch."""
    history, settings = run.history, run.settings
    columns = (
        TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
        BarColumn(),
        TextColumn("{task.fields[loss]}  {task.fields[accuracy]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console) as progress:
        fields: dict[str, Any] = {"epoch": len(history.right), "epochs": settings.epochs, "loss": "", "accuracy": ""}
        task = progress.add_task("", total=settings.epochs * STEPS, completed=len(history.loss), **fields)
        for epoch in range(len(history.right), settings.epochs):
            progress.update(task, epoch=epoch + 1)
            for batch in batches(train, settings.seed, epoch):
                loss = train_step(run, batch)
                progress.update(task, advance=1, loss=f"loss {loss:.4f}")
            history.right.append(count_right(run.model, held_out))
            run.save(checkpoint)
            progress.update(task, accuracy=f"held-out {history.right[-1] / len(held_out.labels):.1%}")


def group_names(optimizer: steprule.Optimizer) -> list[str]:
    """A short name for each group, from the names of its parameters."""
    names = [group["param_names"] for group in optimizer.param_groups]
    return [", ".join(fold(own, among=chain.from_iterable(names))) for own in names]


def table_of_groups(optimizer: steprule.Optimizer) -> RenderableType:
    """The groups, the number of their parameters, and their hyperparameters."""
    columns = [name for name in ("lr", "momentum", "betas", "weight_decay") if name in optimizer.defaults]
    groups = optimizer.param_groups
    cells: dict[str, list[str]] = {
        "group": group_names(optimizer),
        "size": [f"{sum(p.numel() for p in group['params']):,}" for group in groups],
        **{column: [value_text(group[column]) for group in groups] for column in columns},
    }
    return framed(cells, left=["group"], breaking=["group"], title=f"steprule.{type(optimizer).__name__}")


def draw(run: DemoRun, total: int, path: Path) -> None:
    """Draw the picture of a run that has ended."""
    title = f"LeNet on 1,797 handwritten digits, trained by steprule.{run.settings.optimizer}"
    rates = dict(zip(group_names(run.optimizer), run.history.rates, strict=True))
    draw_run(path, title, run.history.loss, [right / total for right in run.history.right], rates)
