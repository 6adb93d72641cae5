"""`steprule inspect`: what is in a file with the state of an optimizer, and what differs between two."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from steprule.checkpoint import CheckpointError
from steprule.display.bytes import readable
from steprule.display.frame import framed
from steprule.grouping.globs import compile_glob, fold
from steprule.messages.spelling import nearest
from steprule.messages.words import counted, printable
from steprule.schedules import from_dict

from .console import console, fail, say
from .inspection import Differences, ParameterRow, differences, name_of, plain_value, rows, summary
from .state_files import StateFile, open_state

__all__ = ["inspect"]


class Order(str, Enum):
    """How the table of parameters is sorted."""

    file = "file"
    name = "name"
    size = "size"
    step = "step"
    norm = "norm"
    nan = "nan"


_KEYS: dict[Order, Callable[[ParameterRow], Any]] = {
    Order.file: lambda row: 0,
    Order.name: lambda row: row.name,
    Order.size: lambda row: -row.size,
    Order.step: lambda row: -(row.step or 0),
    Order.norm: lambda row: -max((s.norm if s.norm == s.norm else math.inf for s in row.found), default=0.0),
    Order.nan: lambda row: (-row.nan, -row.inf),
}


def inspect(
    files: Annotated[list[Path], typer.Argument(help="Checkpoints of steprule, or files of torch.save.")],
    glob: Annotated[str, typer.Option("--filter", "-f", metavar="GLOB", help="Only parameters with such names.")] = "*",
    sort: Annotated[Order, typer.Option("--sort", "-s", help="Order of the parameters.")] = Order.file,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Which of several states in a file of torch.save.")
    ] = None,
) -> None:
    """Show the optimizer state in a file: groups, steps, norms, NaNs. With two files: what differs.

    Files are read piece by piece, however large they are, and nothing in them is run.
    """
    pattern = compile_glob(glob)
    try:
        opened = [open_state(path, key) for path in files]
        if len(opened) == 2:
            differing = differences(opened[0], opened[1], pattern)
            _print_json(_differences_as_json(opened, differing)) if as_json else _compare(opened, differing)
            return
        reports = [(file, sorted(rows(file, pattern), key=_KEYS[sort])) for file in opened]
        if glob != "*" and not any(table for _, table in reports):
            names = [name_of(parameter) for file in opened for parameter in file.saved.parameters]
            fail(f"no parameter is called {glob!r}{nearest(glob, names)}", 1)
    except CheckpointError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}")
    if as_json:
        found = [summary(file, table) for file, table in reports]
        _print_json(found[0] if len(found) == 1 else found)
        return
    for file, table in reports:
        _report(file, table)


def _print_json(value: Any) -> None:
    print(json.dumps(_finite(value), indent=2))


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -- one file ----------------------------------------------------------------------------------------------------


def _report(file: StateFile, table: Sequence[ParameterRow]) -> None:
    found = summary(file, ())
    version = "" if file.version is None else f", version {file.version}"
    step = "" if found["step"] is None else f" after {counted(int(found['step']), 'step')}"
    say(str(file.path), style="bold")
    say(f"{file.kind}{version}: {file.algorithm}{step}")
    size = f"{counted(found['parameters'], 'parameter')} in {counted(len(found['groups']), 'group')}"
    sizes = ", ".join(f"{part} {readable(size)}" for part, size in found["bytes"].items() if size)
    say(f"{size}, {found['numbers']:,} numbers")
    say(sizes)
    if file.others:
        say(f"also in it: {', '.join(map(str, file.others))}")
    _groups(file, found["groups"])
    _parameters(table)


LEAST = 36
"""Columns that names get, if they need them, before other columns stand below each other."""


def _room(columns: Mapping[str, Sequence[str]], names: str) -> int:
    """What the other columns leave to the one of names."""
    taken = [
        max(len(line) for cell in (title, *cells) for line in cell.split("\n"))
        for title, cells in columns.items()
        if title != names
    ]
    return console.width - sum(taken) - 2 * len(columns) - 2


def _stacked(columns: Mapping[str, Sequence[str]], title: str, which: Sequence[str]) -> dict[str, Sequence[str]]:
    """Some columns as one, in which their names and values stand below each other."""
    found = [name for name in columns if name in which]
    rows = zip(*(columns[name] for name in found), strict=True)
    cells = ["\n".join(f"{name} {cell}" for name, cell in zip(found, row, strict=True) if cell) for row in rows]
    kept = {name: own for name, own in columns.items() if name not in found}
    return {**kept, title: cells} if found else kept


def _print_table(
    columns: Mapping[str, Sequence[str]],
    names: str,
    notes: Sequence[str],
    stacked: tuple[str, Sequence[str]] | None = None,
) -> None:
    """A table of columns; the one of names takes the room that is left, and breaks where names have dots.

    Its cells may have several lines. Where names would get too little room, columns that say something of some rows
    only, or of hyperparameters, stand below each other in one.
    """
    columns = {
        title: ["\n".join(map(printable, cell.split("\n"))) for cell in cells] for title, cells in columns.items()
    }
    wanted = min(max((len(line) for cell in columns[names] for line in cell.split("\n")), default=0), LEAST)
    if stacked is not None and _room(columns, names) < wanted:
        columns = _stacked(columns, stacked[0], stacked[1])
    left, room = {names, *(stacked[:1] if stacked else ())}, max(_room(columns, names), 20)
    cells = {printable(title): own for title, own in columns.items()}
    cells[names] = [_broken(cell, room) for cell in columns[names]]
    console.print()
    console.print(framed(cells, left=left, breaking=cells))
    for note in notes:
        say(note)
    console.print()


def _printable_lines(cell: str) -> str:
    return "\n".join(map(printable, cell.split("\n")))


def _broken(text: str, width: int) -> str:
    """Lines that are no wider where a dot or a comma allows it."""
    lines = [""]
    for part in re.findall(r"\n|[^.,\n]*[.,]?", text):
        if part == "\n" or len(lines[-1]) + len(part) > width > len(lines[-1]) > 0:
            lines.append("" if part == "\n" else "  ")
        lines[-1] += part.strip("\n")
    return "\n".join(lines)


def _groups(file: StateFile, groups: Sequence[dict[str, Any]]) -> None:
    """The groups, with what differs between them in columns and the rest below."""
    keys = list(dict.fromkeys(key for group in groups for key in group["hyperparameters"]))
    shown = {key: [_shown(group, key) for group in groups] for key in keys}
    differing = {key: cells for key, cells in shown.items() if len(set(cells)) > 1}
    common = ", ".join(f"{key}={cells[0]}" for key, cells in shown.items() if key not in differing)
    every = [name_of(parameter) for parameter in file.saved.parameters]
    named = [fold(group["parameters"], every) if file.saved.names else ["not saved"] for group in groups]
    columns = {
        "group": [str(i) for i in range(len(groups))],
        "parameters": [f"{len(group['parameters']):,}" for group in groups],
        **differing,
        "names": ["\n".join(map(printable, globs)) for globs in named],
    }
    notes = [f"{'in all groups: ' if len(groups) > 1 else ''}{common}"]
    followed = [(path, described) for group in groups for path, described in group["schedules"].items()]
    notes += dict.fromkeys(f"* {path} follows {_schedule(described)}" for path, described in followed)
    _print_table(columns, "names", notes, ("hyperparameters", list(differing)))


def _shown(group: dict[str, Any], key: str) -> str:
    scheduled = any(path.partition("[")[0] == key for path in group["schedules"])
    return plain_value(group["hyperparameters"].get(key, "-")) + ("*" if scheduled else "")


def _schedule(described: Any) -> str:
    try:
        return repr(from_dict(described))
    except ValueError:
        return "a function, which is not in the file"


def _parameters(rows: Sequence[ParameterRow]) -> None:
    """A line for each parameter; a step count that all have stands below."""
    slots = dict.fromkeys(slot for row in rows for slot in row.slots)
    columns = {
        "parameter": [printable(row.name) for row in rows],
        "group": [str(row.group) for row in rows],
        "shape": ["?" if row.shape is None else _dimensions(row.shape) for row in rows],
        "step": ["" if row.step is None else f"{row.step:.0f}" for row in rows],
        "weight": ["" if row.weight is None else f"{row.weight.norm:.3g}" for row in rows],
        **{slot: [f"{row.slots[slot].norm:.3g}" if slot in row.slots else "" for row in rows] for slot in slots},
        "NaN": [f"{row.nan:,}" if row.nan else "" for row in rows],
        "Inf": [f"{row.inf:,}" if row.inf else "" for row in rows],
    }
    caption = ["norms of weights and state"]
    for title in ("group", "step"):
        if len(set(columns[title])) == 1 and rows:
            (only,) = set(columns.pop(title))
            caption += [f"all in {title} {only}" if title == "group" else f"all at step {only}"] if only else []
    caption += [f"no {title}" for title in ("NaN", "Inf") if not any(columns[title])]
    kept = {title: cells for title, cells in columns.items() if title == "parameter" or any(cells)}
    _print_table(kept, "parameter", ["; ".join(caption)], ("state", list(slots)))


def _dimensions(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "number"


# -- two files ---------------------------------------------------------------------------------------------------


def _compare(files: Sequence[StateFile], found: Differences) -> None:
    for mark, file in zip("ab", files, strict=True):
        say(f"{mark}: {file.path} ({file.algorithm}, {file.kind})")
    if found.none:
        say(f"nothing differs: {counted(found.compared, 'tensor')} compared")
        return
    for fact, (a, b) in found.facts.items():
        say(f"{fact}: {a} -> {b}")
    for change, names in found.changes.items():
        whose = "all parameters" if len(names) == found.parameters else ", ".join(fold(names))
        say(f"{change} ({whose})")
    for mark, names in zip("ab", found.only, strict=True):
        if names:
            say(f"only in {mark}: {', '.join(fold(names))}")
    if found.tensors:
        _differing(found)
    same = found.compared - len(found.tensors)
    say(f"{len(found.tensors):,} of {counted(found.compared, 'tensor')} differ, {same:,} are the same")


def _differing(found: Differences) -> None:
    numbers = [
        (f"{d.largest:.3g}", f"{d.relative:.3g}") if d.shapes is None else tuple(map(_dimensions, d.shapes))
        for d in found.tensors
    ]
    columns = {
        "parameter": [printable(d.name) for d in found.tensors],
        "slot": [d.slot for d in found.tensors],
        "largest": [largest for largest, _ in numbers],
        "relative": [relative for _, relative in numbers],
    }
    note = "largest difference between two numbers; norm of the difference over the norm in a"
    _print_table(columns, "parameter", [note])


def _differences_as_json(files: Sequence[StateFile], found: Differences) -> dict[str, Any]:
    return {
        "files": [str(file.path) for file in files],
        "same": found.none,
        "facts": {fact: list(values) for fact, values in found.facts.items()},
        "changes": found.changes,
        "only": list(found.only),
        "compared": found.compared,
        "tensors": [difference._asdict() for difference in found.tensors],
    }
