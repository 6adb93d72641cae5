"""Bytes by group, as a table for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from .frame import framed
from .table import first_globs

__all__ = ["memory_table", "readable"]

COLUMNS = ("weights", "gradients", "state", "masters", "total")


def memory_table(
    title: str,
    rows: Sequence[tuple[Sequence[str], Sequence[int]]],
    slots: Mapping[str, int],
    in_backward: int | None,
) -> RenderableType:
    """A row for each group and one for all; below, the slots, and gradients under a step in backward.

    Args:
        title: what the optimizer is called.
        rows: for each group the names of its parameters as globs, and bytes of :data:`COLUMNS`.
        slots: bytes of each slot, over all groups.
        in_backward: the most that gradients take at once under a step in backward, if there is one.
    """
    sums = [sum(row[1][k] for row in rows) for k in range(len(COLUMNS))]
    shown = [k for k, name in enumerate(COLUMNS) if sums[k] or name != "masters"]
    columns = {
        "": list(map(str, range(len(rows)))),
        "parameters": ["\n".join(first_globs(names)) for names, _ in rows],
        **{COLUMNS[k]: [readable(sizes[k]) for _, sizes in rows] for k in shown},
    }
    footer = {"parameters": "all", **{COLUMNS[k]: readable(sums[k]) for k in shown}} if len(rows) > 1 else None
    found = framed(columns, left=["parameters"], breaking=["parameters"], footer=footer)
    below = ", ".join(f"{name} {readable(size)}" for name, size in slots.items()) or "none"
    lines = [f"state: {below}"]
    if in_backward is not None:
        lines.append(f"gradients with step_in_backward: {readable(in_backward)} at most")
    return Group(f"{title}: {readable(sums[-1])}", found, Text("\n".join(lines)))


def readable(size: float) -> str:
    """Bytes in the largest unit of 1,000 in which they are a number.

    >>> readable(0), readable(999), readable(1_536_000), readable(2_480_000_000)
    ('0 B', '999 B', '1.54 MB', '2.48 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} B" if unit == "B" else f"{size:.3g} {unit}" if size < 999.5 else f"{size:,.0f} {unit}"
