"""The one look of every table: a rule under the headings, two blanks between columns, numbers to the right."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

__all__ = ["GAP", "framed"]

GAP = 2
"""Blanks between columns."""


def framed(
    columns: Mapping[str, Sequence[str | Text]],
    *,
    left: Collection[str] = (),
    breaking: Collection[str] = (),
    footer: Mapping[str, str] | None = None,
    styles: Sequence[str | None] = (),
    title: str | None = None,
    dense: bool = False,
) -> Table:
    """A table of columns, for the terminal; no markup is read in its cells.

    Args:
        columns: heading -> the cells below it, all of one number.
        left: the columns that stand left: words. The others stand right.
        breaking: the columns whose cells are broken where the terminal is too narrow; others are cut there.
        footer: what stands in a last row of sums, by column; without it there is no such row.
        styles: the style of each row, if rows have one.
        title: what stands above it.
        dense: whether one blank stands between columns, for there are many.
    """
    table = Table(
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 0 if dense else GAP - 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        show_footer=footer is not None,
    )
    for name in columns:
        breaks = name in breaking
        table.add_column(
            Text(name),
            Text((footer or {}).get(name, "")),
            justify="left" if name in left else "right",
            no_wrap=not breaks,
            overflow="fold" if breaks else "ellipsis",
        )
    for i, row in enumerate(zip(*columns.values(), strict=True)):
        cells = (cell if isinstance(cell, Text) else Text(cell) for cell in row)
        table.add_row(*cells, style=styles[i] if styles else None)
    return table
