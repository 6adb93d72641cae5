"""`steprule bench`: the time of a step on this machine, beside torch's and beside the machine's memory."""

from __future__ import annotations

import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from steprule.cli.console import check_matplotlib, console, fail, say
from steprule.display.bytes import readable
from steprule.replacing import replacing

from .cases import Case, FirstStep, Result, Settings, Steps, cases, many_groups
from .file_times import measure_files
from .gpu_cases import gpu_cases
from .growth import measure_growth
from .peak_memory import measure_memory
from .picture import draw, draw_growth
from .ranks import measure_ranks
from .table import LEGEND, as_dictionary, figures, targets
from .tensor_shapes import SHAPES, shapes_of
from .timing import Pace

CASES: dict[str, Callable[[], list[Case]]] = {"cpu": cases, "cuda": gpu_cases}
STOPPED = "stopped"
WIDE = 150  # columns from which on the peers' milliseconds find room


COMMON = {"repeats", "json_file"}
MODES: dict[str, set[str]] = {
    "files": {*COMMON, "size"},
    "memory": {*COMMON, "quick"},
    "growth": {*COMMON, "quick", "threads", "picture"},
    "ranks": COMMON,
    "groups": {*COMMON, "quick", "threads", "picture", "markdown", "names"},
}
"""What measures something else than the cases, and the options that it takes."""


def bench(
    context: typer.Context,
    case: Annotated[str, typer.Option(metavar="GLOB", help="Only cases of this name, as 'adamw/*'.")] = "*",
    shapes: Annotated[
        str | None,
        typer.Option(help=f"Measure on these shapes instead: {', '.join(SHAPES)}, or so many tensors of 100."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch and steprule.", show_default="torch's")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Turns that each contender takes.")] = Pace.rounds,
    json_file: Annotated[
        Path | None, typer.Option("--json", dir_okay=False, help="Write all figures, with every turn's.")
    ] = None,
    picture: Annotated[Path | None, typer.Option(dir_okay=False, help="Draw the ratios as a PNG.")] = None,
    markdown: Annotated[Path | None, typer.Option(dir_okay=False, help="Write the tables in Markdown.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Three short turns: a first impression.")] = False,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Let torch.compile take part; it compiles for a minute a case.")
    ] = False,
    seconds: Annotated[float, typer.Option(metavar="S", help="Begin no other case after so many seconds.")] = math.inf,
    device: Annotated[str, typer.Option(help=f"Where to measure: {', '.join(CASES)}.")] = "cpu",
    first: Annotated[
        bool, typer.Option("--first", help="Only first steps, compiled and from code that is kept on disk.")
    ] = False,
    files: Annotated[
        bool, typer.Option("--files", help="Measure saving and loading beside torch's instead of steps.")
    ] = False,
    size: Annotated[int, typer.Option(min=1, metavar="MB", help="With --files: of the file.")] = 600,
    ranks: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="Measure steps on N processes that hold parameters together.")
    ] = None,
    memory: Annotated[
        bool, typer.Option("--memory", help="Measure the memory of training, plain and in backward, instead of steps.")
    ] = False,
    groups: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only N tensors, each in a group of its own.")
    ] = None,
    growth: Annotated[
        bool, typer.Option("--growth", help="Measure how a step grows with bytes, tensors, groups and threads.")
    ] = False,
    names: Annotated[bool, typer.Option("--list", help="Print the names of the cases, and measure nothing.")] = False,
) -> None:
    """Measure the time of a step, in turns with torch's optimizers and with the machine's memory."""
    refuse_unused(context)
    if files:
        measure_and_show_files(size, repeats, json_file)
        return
    if memory:
        measure_and_show_memory(repeats, quick, json_file)
        return
    if growth:
        measure_and_show_growth(repeats, quick, threads, json_file, picture)
        return
    if ranks is not None:
        measure_and_show_ranks(ranks, repeats, json_file)
        return
    if device not in CASES:
        fail(f"--device is one of {', '.join(CASES)}, not {device!r}")
    if groups is not None:
        chosen = many_groups(groups)
    else:
        chosen = [item for item in chosen_cases(case, shapes, device) if not first or isinstance(item, FirstStep)]
    if not chosen:
        fail(f"no first step is named {case!r}")
    if names:
        for item in chosen:
            print(item.name)
        return
    if device == "cuda" and not torch.cuda.is_available():
        fail("there is no GPU that torch can use here")
    for path in (json_file, picture, markdown):
        check_writable(path)
    if picture:
        check_matplotlib("a picture")
    if threads is not None:
        torch.set_num_threads(threads)
    pace = Pace(3, block=0.03) if quick else Pace(repeats)
    measure_and_show_steps(chosen, Settings(pace, device, compiled), seconds, json_file, picture, markdown)


def measure_and_show_steps(
    chosen: Sequence[Case],
    settings: Settings,
    seconds: float,
    json_file: Path | None,
    picture: Path | None,
    markdown: Path | None,
) -> None:
    """The cases that were chosen, in tables, a picture and files; what could not be measured at the end."""
    about = about_machine(settings.device)
    results, failed = measure(chosen, settings, seconds)
    show_results(results, about)
    if json_file:
        content = {**about, "pace": asdict(settings.pace), "results": list(map(as_dictionary, results))}
        write_text(json_file, json.dumps(content))
    if markdown:
        write_text(markdown, page(results, about))
    if picture and results:
        draw(picture, results, measured_where(about))
    for name, error in failed.items():
        console.print(f"{name} was not measured: {error}", style="red", highlight=False)
    if failed:
        raise typer.Exit(130 if STOPPED in failed.values() else 1)


def refuse_unused(context: typer.Context) -> None:
    """Refuse options that say nothing beside another that was given."""
    named = {param.name: param.opts[0] for param in context.command.params if param.name}
    sources = {name: context.get_parameter_source(name) for name in named}
    given = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    mode = next((name for name in MODES if name in given), None)
    unused = {"size"} & given if mode is None else given - MODES[mode] - {mode}
    if unused:
        names = ", ".join(sorted(named[name] for name in unused))
        fail(f"--{mode} takes no {names}" if mode else f"{names} is for --files")


def measure_and_show_files(size: int, repeats: int, json_file: Path | None) -> None:
    """Saving and loading, in turns with torch's."""
    check_writable(json_file)
    about, results = about_machine("cpu"), []
    say(measured_where(about))
    for result in measure_files(size, repeats):
        say(result.line)
        results.append({**asdict(result), "ratio": result.ratio})
    if json_file:
        write_text(json_file, json.dumps({**about, "results": results}))


def measure_and_show_memory(repeats: int, quick: bool, json_file: Path | None) -> None:
    """What training takes above the weights, plain and in backward, beside torch's."""
    check_writable(json_file)
    about, results = about_machine("cpu"), []
    say(measured_where(about))
    say("bytes above the weights: said by memory(), by torch's own count, resident; time of a training step")
    for result in measure_memory(repeats, quick):
        sizes = [readable(size) if size is not None else "" for size in (result.said, result.counted, result.resident)]
        said, counted, resident = sizes
        say(f"{result.name:50} {said:>8} {counted:>8} {resident:>8} {1000 * result.median:8.1f} ms")
        results.append(asdict(result))
    if json_file:
        write_text(json_file, json.dumps({**about, "results": results}))


def measure_and_show_growth(
    repeats: int, quick: bool, threads: int | None, json_file: Path | None, picture: Path | None
) -> None:
    """AdamW's step over all that grows, beside torch's."""
    for path in (json_file, picture):
        check_writable(path)
    if picture:
        check_matplotlib("a picture")
    if threads is not None:
        torch.set_num_threads(threads)
    about, curves = about_machine("cpu"), []
    say(measured_where(about))
    for curve in measure_growth(Pace(3, block=0.03) if quick else Pace(repeats), quick):
        console.print(curve.grid.rich())
        curves.append(curve)
    if json_file:
        write_text(json_file, json.dumps({**about, "curves": list(map(asdict, curves))}))
    if picture:
        draw_growth(picture, curves, measured_where(about))


def measure_and_show_ranks(ranks: int, repeats: int, json_file: Path | None) -> None:
    """Steps on several processes, beside torch's and beside the same parts as plain tensors."""
    check_writable(json_file)
    about, results = about_machine("cpu"), []
    say(measured_where(about))
    say(f"{ranks} processes of one thread; the last column is the time on DTensors over that on their parts")
    for result in measure_ranks(ranks, repeats):
        say(result.line)
        results.append(asdict(result))
    if json_file:
        write_text(json_file, json.dumps({**about, "ranks": ranks, "results": results}))


def chosen_cases(pattern: str, shapes: str | None, device: str = "cpu") -> list[Case]:
    """The cases of a name, on other shapes if that is asked for; a case that has no targets there loses them."""
    every = {case.name: case for case in CASES[device]()}
    chosen = [case for name, case in every.items() if fnmatchcase(name, pattern)]
    if not chosen:
        fail(f"no case is named {pattern!r}; there are {', '.join(every)}")
    if shapes is None:
        return chosen
    try:
        shapes_of(shapes)
    except KeyError:
        fail(f"there are no shapes {shapes!r}; there are {', '.join(SHAPES)}, and a number for so many tensors of 100")
    moved = [replace(case, shapes=shapes, targets=()) for case in chosen if isinstance(case, Steps)]
    return list({case.name: every.get(case.name, case) for case in moved}.values())


def check_writable(path: Path | None) -> None:
    """Refuse a file that can't be written, before minutes of measuring."""
    if path is None:
        return
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        fail(f"cannot write {path}: {error.strerror or error}")


def measure(
    chosen: Sequence[Case], settings: Settings, seconds: float = math.inf
) -> tuple[list[Result], dict[str, str]]:
    """The results of some cases, and what was wrong with the others; those so far when it is interrupted.

    Args:
        chosen: what to measure, the first things first.
        settings: how.
        seconds: after which no other case begins.
    """
    last = time.monotonic() + seconds
    results: list[Result] = []
    failed: dict[str, str] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task("", total=len(chosen))
        try:
            for case in chosen:
                progress.update(task, description=case.name)
                if time.monotonic() > last:
                    failed[case.name] = f"the {seconds:g} seconds were over"
                    continue
                try:
                    results += case.run(settings)
                except Exception as error:  # minutes of other cases are not to be lost with it
                    failed[case.name] = f"{type(error).__name__}: {error}"
                progress.advance(task)
        except KeyboardInterrupt:
            failed[case.name] = STOPPED
    return results, failed


def about_machine(device: str) -> dict[str, Any]:
    """Where and with what it is measured."""
    return {
        "processor": processor(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "processors": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "steprule": own_version(),
    }


def own_version() -> str:
    """steprule's version, where it is installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("steprule")
    except PackageNotFoundError:
        return "not installed"


def processor() -> str:
    """The processor's name, as the system has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def measured_where(about: dict[str, Any]) -> str:
    where = about["gpu"] or "{processor}, {threads} threads".format(**about)
    return f"{where}, torch {about['torch']}, steprule {about['steprule']}"


def disturbed(about: dict[str, Any]) -> str | None:
    """What to say of figures that other programs had a part in."""
    if about["load"] is None or about["load"] <= about["processors"] / 2:
        return None
    return f"Other programs were running at the start (load {about['load']:.1f}): these figures are theirs too."


def show_results(results: Sequence[Result], about: dict[str, Any]) -> None:
    """The tables, on the terminal."""
    console.print(measured_where(about), highlight=False)
    if warning := disturbed(about):
        console.print(warning, style="red", highlight=False)
    for grid in (figures(results, wide=console.width >= WIDE), targets(results)):
        if grid.rows:
            console.print()
            console.print(grid.rich())
    console.print()
    console.print(LEGEND, highlight=False, style="dim")


def page(results: Sequence[Result], about: dict[str, Any]) -> str:
    """The tables, as a page in Markdown."""
    tables = [f"## {grid.title}\n\n{grid.markdown()}" for grid in (figures(results), targets(results)) if grid.rows]
    parts = ["# Step times", measured_where(about) + ".", disturbed(about), *tables, LEGEND]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_text(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode())
