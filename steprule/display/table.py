"""The groups of an optimizer as a table for a terminal."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch.nn.parameter import is_lazy

from steprule.grouping.globs import fold
from steprule.messages.words import counted
from steprule.schedules import Schedule, Scheduled

from .frame import GAP, framed

__all__ = ["globs", "group_table", "plain_text", "terminal_width"]

Groups = Sequence[Mapping[str, Any]]

NOT_HYPER = frozenset({"params", "param_names", "schedules"})
WIDE = 120
"""Columns of a terminal from which on the lines of schedules are longer."""
LEAST = 36
"""Columns that names get at least; with fewer left, a group's hyperparameters stand below each other."""
MOST_GROUPS, MOST_GLOBS = 12, 5


def group_table(
    title: str, groups: Groups, kernels: Sequence[str], usual: Mapping[str, Any], step: int, width: int
) -> RenderableType:
    """Names, sizes, kernels, and the hyperparameters that differ or follow a schedule; below, what all groups share.

    Args:
        title: what the optimizer is called.
        groups: its parameter groups.
        kernels: what serves the parameters of each.
        usual: values that need no mention where every group has them.
        step: how many steps were taken.
        width: columns of the terminal.
    """
    found = dict.fromkeys(name for group in groups for name in group if name not in NOT_HYPER)
    names = sorted(found, key=lambda name: (name != "algorithm", name in usual))
    texts = {name: [value_text(group[name]) if name in group else "" for group in groups] for name in names}
    moving = {key_of(path) for group in groups for path in schedules_of(group)}
    varying = [name for name in names if name in moving or len(set(texts[name])) > 1]
    shared = {name: texts[name][0] for name in names if name not in varying}
    shared = {name: text for name, text in shared.items() if name not in usual or text != value_text(usual[name])}
    shared |= {"kernel": kernels[0]} if len(set(kernels)) == 1 else {}
    below = Text("in all groups: " + ", ".join(f"{name}={text}" for name, text in shared.items()))
    return Group(heading(title, groups, step), group_rows(groups, kernels, varying, step, width), below)


def heading(title: str, groups: Groups, step: int) -> str:
    params = [p for group in groups for p in group["params"]]
    size = counted(sum(map(elements, params)), "parameter")
    where = f"{counted(len(params), 'tensor')}, {counted(len(groups), 'group')}"
    return f"{title}: {size} in {where}; {counted(step, 'step')} taken"


def group_rows(groups: Groups, kernels: Sequence[str], varying: Sequence[str], step: int, width: int) -> Table:
    """The table itself: a row for each group, of which a long list leaves out the middle."""
    called, horizon = globs(groups), horizon_of(groups, step)
    hidden = range(MOST_GROUPS // 2, len(groups) - MOST_GROUPS // 2) if len(groups) > MOST_GROUPS else range(0)
    rows = [i for i in range(len(groups)) if i not in hidden]
    columns = {
        "": list(map(str, rows)),
        "parameters": ["\n".join(first_globs(called[i])) for i in rows],
        "tensors": [str(len(groups[i]["params"])) + frozen(groups[i]["params"]) for i in rows],
        "size": [short_count(sum(map(elements, groups[i]["params"]))) for i in rows],
        **{name: [hyper_text(groups[i], name, horizon, width >= WIDE) for i in rows] for name in varying},
    }
    if len(set(kernels)) > 1:
        varying = [*varying, "kernel"]
        columns["kernel"] = [kernels[i] for i in rows]
    if varying and width - room_of(columns) < LEAST:
        columns = stacked(columns, varying)
    columns["parameters"] = [wrapped(cell, max(width - room_of(columns), 16)) for cell in columns["parameters"]]
    if hidden:
        for name, cells in columns.items():
            cells.insert(hidden.start, {"": "⋮", "parameters": f"{len(hidden)} more groups"}.get(name, ""))
    return framed(columns, left=columns.keys() - {"", "tensors", "size"}, breaking=["parameters"])


def stacked(columns: Mapping[str, list[str]], names: Sequence[str]) -> dict[str, list[str]]:
    """Some columns as one, in which their names and values stand below each other."""
    rows = zip(*(columns[name] for name in names), strict=True)
    cells = ["\n".join(f"{name} {cell}" for name, cell in zip(names, row, strict=True) if cell) for row in rows]
    return {**{name: own for name, own in columns.items() if name not in names}, "hyperparameters": cells}


def room_of(columns: Mapping[str, Sequence[str]]) -> int:
    """What all columns but the names take."""
    taken = [max(map(len, chain([name], *(cell.split("\n") for cell in cells)))) for name, cells in columns.items()]
    names = list(columns).index("parameters")
    return sum(taken) - taken[names] + GAP * (len(columns) - 1)


def wrapped(text: str, width: int) -> str:
    """Names broken after dots and commas where they are longer than a line; what goes on stands further in."""
    lines: list[str] = []
    for name in text.split("\n"):
        pieces = name.replace(".", ".\0").replace(",", ",\0").split("\0")
        line = pieces[0]
        for piece in pieces[1:]:
            if len(line) + len(piece) > width:
                lines.append(line)
                line = "  "
            line += piece
        lines.append(line)
    return "\n".join(lines)


def globs(groups: Groups) -> list[list[str]]:
    """For each group its parameters' names as a few globs; shapes where there are no names."""
    names = [group.get("param_names") for group in groups]
    everything = list(chain.from_iterable(filter(None, names)))
    return [
        list(map(encodable, fold(own, everything))) if own else list(dict.fromkeys(map(shape_text, group["params"])))
        for own, group in zip(names, groups, strict=True)
    ]


def elements(p: torch.Tensor) -> int:
    """The number of elements: none yet, of a lazy module that has seen no input."""
    return 0 if is_lazy(p) else p.numel()


def shape_text(p: torch.Tensor) -> str:
    return "uninitialized" if is_lazy(p) else str(tuple(p.shape))


def first_globs(found: Sequence[str]) -> list[str]:
    hidden = len(found) - MOST_GLOBS
    return [*found[:MOST_GLOBS], f"and {hidden} more"] if hidden > 1 else list(found)


def short_count(count: int) -> str:
    """A number of parameters in at most five characters.

    >>> [short_count(n) for n in (0, 9999, 10000, 84934656, 1234567890)]
    ['0', '9999', '10.0k', '84.9M', '1.23G']
    """
    if count < 10_000:
        return str(count)
    power = (len(str(count)) - 1) // 3
    return f"{count / 1000**power:#.3g}"[:4].rstrip(".") + " kMGTPE"[power]


def frozen(params: Sequence[torch.Tensor]) -> str:
    count = sum(not p.requires_grad for p in params)
    return "" if not count else " (frozen)" if count == len(params) else f" ({count} frozen)"


def key_of(path: Any) -> str:
    key: str = path if isinstance(path, str) else path[0]
    return key


def schedules_of(group: Mapping[str, Any]) -> Scheduled:
    found: Scheduled = group.get("schedules") or Scheduled()
    return found


def horizon_of(groups: Groups, step: int) -> int:
    """The step up to which schedules are drawn: where the last of them ends."""
    ends = [schedule.steps or 0 for group in groups for schedule in schedules_of(group).values()]
    return max(ends, default=0) or max(1000, 2 * step)


def hyper_text(group: Mapping[str, Any], name: str, horizon: int, wide: bool) -> str:
    """The present value, and a line for each schedule in it; nothing where the group's algorithm has no such."""
    if name not in group:
        return ""
    own = [schedule for path, schedule in schedules_of(group).items() if key_of(path) == name]
    return " ".join([value_text(group.get(name)), *(schedule_picture(schedule, horizon, wide) for schedule in own)])


def schedule_picture(schedule: Schedule, horizon: int, wide: bool) -> str:
    try:
        values = [schedule(round(i * horizon / 200)) for i in range(201)]
        return f"{schedule.sparkline(horizon, width=24 if wide else 8)} {min(values):.2g}…{max(values):.2g}"
    except Exception:  # a user's function need not know the steps to come
        return "(a function)"


def value_text(value: Any) -> str:
    """A hyperparameter in a few characters.

    >>> value_text((0.9, torch.tensor(0.999))), value_text(1 / 3), value_text(None)
    ('(0.9, 0.999)', '0.333333', 'None')
    """
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(value_text, value))})"
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def terminal_width() -> int:
    """Columns of the terminal; 80 where there is none."""
    return shutil.get_terminal_size((80, 24)).columns


def plain_text(shown: RenderableType, width: int) -> str:
    """What rich would print, as text without colours."""
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(shown, highlight=False, markup=False)
    return encodable("\n".join(line.rstrip() for line in capture.get().rstrip("\n").split("\n")))


IN_ASCII = str.maketrans({"─": "-", "│": "|", "…": "...", "←": "<-", **dict(zip("▁▂▃▄▅▆▇█", "_.,-~=*#", strict=True))})


def encodable(text: str, encoding: str | None = None) -> str:
    """The text itself if the terminal can show it, else with plain characters in place of those that it can't.

    Args:
        text: what is to be printed.
        encoding: the terminal's, if it is not that of ``sys.stdout``.

    >>> encodable("lr ▁▅█ ← 0…1", "ascii")
    'lr _~# <- 0...1'
    """
    encoding = encoding or getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(IN_ASCII).encode(encoding, "replace").decode(encoding)
    return text
