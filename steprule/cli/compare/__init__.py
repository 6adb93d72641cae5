"""`steprule compare`: one task trained by several optimizers or settings, beside each other."""

from __future__ import annotations

import json
import shlex
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.live import Live

from steprule.checkpoint import CheckpointError
from steprule.cli.console import check_matplotlib, console, fail
from steprule.cli.demo import is_given, writing_to
from steprule.replacing import replacing

from . import picture, task
from .run import Run, restore, train_run
from .screen import results, screen
from .setting import Setting, parse

USUAL = ("SGD lr=0.02 momentum=0.9 nesterov=True", "AdamW lr=2e-3", "RMSprop lr=5e-4")
OPTIONS = {"task": "task_name", "seed": "seed", "steps": "steps"}  # what the function below calls them
FRAME = 0.15  # seconds from one picture on the screen to the next


@dataclass(frozen=True)
class Comparison:
    """What is compared; it stands in ``compare.json`` from the first moment on.

    Attributes:
        task: the name of the task.
        seed: of the task.
        steps: of every run.
        settings: the texts of all settings, those of earlier calls with ``--resume`` too.
    """

    task: str
    seed: int
    steps: int
    settings: list[str]

    @property
    def about(self) -> dict[str, Any]:
        """What must agree for a checkpoint to be of this comparison."""
        return {"task": self.task, "seed": self.seed}

    def path(self, folder: Path, text: str) -> Path:
        return folder / f"run-{self.settings.index(text) + 1}.safetensors"


def compare(
    context: typer.Context,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="SETTING", help="Such as 'AdamW lr=1e-3*cosine(450)'.")
    ] = None,
    task_name: Annotated[
        str,
        typer.Option("--task", help="demo: digits; or package.module:function, which returns (model, losses)."),
    ] = task.DEMO,
    steps: Annotated[int, typer.Option(min=1, help="Of every run.")] = 450,
    seed: Annotated[int, typer.Option(min=0, max=2**32, help="Of first weights and data order.")] = 0,
    target: Annotated[
        float | None, typer.Option(help="A loss to reach.", show_default="where the worst run ends")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder of checkpoints, figures and picture.")] = Path("compare-output"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what the output folder holds.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew where the folder holds one.")] = False,
) -> None:
    """Train one task with several optimizers or settings, and compare their losses.

    A task of your own gives a loss for each step, computed with the parameters of that moment.
    """
    texts = list(settings or ())
    if len(set(texts)) < len(texts):
        fail("a setting is given twice")
    if resume and overwrite:
        fail("--resume goes on with what is there, and --overwrite begins anew: give one of them")
    if not (resume or overwrite) and (output / "compare.json").exists():
        fail(
            f"{output} holds a comparison: --resume goes on with it, --overwrite begins anew, or name another --output"
        )
    known = earlier(output) if resume else None
    if known is None:
        comparison = Comparison(task_name, seed, steps, texts or list(USUAL))
    else:
        given = {"task": task_name, "seed": seed, "steps": steps}
        asked = {name: value for name, value in given.items() if is_given(context, OPTIONS[name])}
        comparison = merged(known, asked, texts, output)
    chosen = [parse(text) for text in texts or comparison.settings]
    made = task.find_task(comparison.task, comparison.seed)
    check_matplotlib("the comparison's picture")
    if overwrite:
        task.try_out(made, comparison.task, comparison.seed, str(output))
    with writing_to(output):
        if known is None:
            remove_checkpoints(output)
        runs = [restored(each, comparison, output, resume) for each in chosen]
        write_json(output / "compare.json", vars(comparison))
        try:
            train_all(runs, made, comparison, target)
        except KeyboardInterrupt:
            command = f"steprule compare --resume --output {shlex.quote(str(output))}"
            console.print(f"Stopped. To go on: {command}", soft_wrap=True, markup=False, highlight=False)
            raise typer.Exit(130) from None
        write_json(
            output / "compare.json", {**vars(comparison), "results": results_as_data(runs, comparison.steps, target)}
        )
        if all(run.failed for run in runs):
            fail(f"no run could be trained, so that there is nothing to draw: {runs[0].failed}", 1)
        title = "LeNet on handwritten digits" if comparison.task == task.DEMO else comparison.task
        picture.draw(output / "compare.png", f"{title}, seed {comparison.seed}", runs, comparison.steps, target)
    console.print(f"Picture and figures are in {output}.", soft_wrap=True, markup=False, highlight=False)
    if any(run.failed for run in runs):
        raise typer.Exit(1)


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints that an earlier comparison left, for a new one begins."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        count = len(json.loads((folder / "compare.json").read_text(encoding="utf-8"))["settings"])
        for index in range(1, count + 1):
            for suffix in ("safetensors", "txt"):
                (folder / f"run-{index}.{suffix}").unlink(missing_ok=True)


def restored(setting: Setting, comparison: Comparison, folder: Path, resume: bool) -> Run:
    """A run where its checkpoint left it."""
    path = comparison.path(folder, setting.text)
    if not resume:
        return Run(setting, path)
    try:
        return restore(setting, path, comparison.about)
    except CheckpointError as error:
        fail(str(error))


def earlier(folder: Path) -> Comparison | None:
    """The comparison that a folder holds, or None."""
    path = folder / "compare.json"
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Comparison(*(found[name] for name in ("task", "seed", "steps", "settings")))
    except (ValueError, KeyError, TypeError, OSError) as error:
        fail(f"{path} is not of a comparison: {error}")


def merged(known: Comparison, asked: dict[str, Any], texts: Sequence[str], folder: Path) -> Comparison:
    """An earlier comparison with what is asked for now."""
    for name in ("task", "seed"):
        before = getattr(known, name)
        if asked.get(name, before) != before:
            fail(f"{folder} is of a comparison with --{name} {before}; resume it with that, or without --{name}")
    if asked.get("steps", known.steps) < known.steps:
        fail(f"{folder} is of a comparison with --steps {known.steps}; resume it with as many or more")
    settings = list(dict.fromkeys([*known.settings, *texts]))
    return Comparison(known.task, known.seed, asked.get("steps", known.steps), settings)


def train_all(runs: Sequence[Run], made: task.Task, comparison: Comparison, target: float | None) -> None:
    """Train each run to its end; what one of them raises is noted, and the next one begins."""
    shown = 0.0

    def draw() -> Any:
        return screen(runs, comparison.steps, target, console.width, console.height)

    with Live(draw(), console=console, auto_refresh=False, transient=True) as live:

        def show() -> None:
            nonlocal shown
            if console.is_terminal and time.monotonic() - shown > FRAME:
                live.update(draw(), refresh=True)
                shown = time.monotonic()

        for run in runs:
            if len(run.losses) >= comparison.steps:
                continue
            log = run.path.with_suffix(".txt")
            log.unlink(missing_ok=True)
            try:
                train_run(run, made, comparison.seed, comparison.steps, comparison.about, show)
            except (Exception, SystemExit) as error:
                first = (str(error).splitlines() or [""])[0]
                run.failed = f"{type(error).__name__} at step {len(run.losses) + 1}: {first} ({log.name} has more)"
                log.write_text(traceback.format_exc(), encoding="utf-8")
    console.print(draw())


def results_as_data(runs: Sequence[Run], steps: int, target: float | None) -> list[dict[str, Any]]:
    """What was found, as plain data, with every loss."""
    found = results(runs, steps, target)
    return [
        {**asdict(result), "losses": run.losses, "seconds_to_step": run.seconds}
        for run, result in zip(runs, found, strict=True)
    ]


def write_json(path: Path, content: dict[str, Any]) -> None:
    with replacing(path) as file:
        file.write(json.dumps(content, indent=1).encode())
