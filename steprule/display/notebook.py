"""What notebooks show: tables as HTML, text as it stands."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Shown", "html_of"]


class Shown(str):
    """Text that a notebook shows line by line.

    >>> Shown("a < b")._repr_html_()
    '<pre>a &lt; b</pre>'
    """

    __slots__ = ()

    def _repr_html_(self) -> str:
        return f"<pre>{escape(self)}</pre>"


def html_of(parts: Iterable[RenderableType]) -> str:
    """Tables, texts and strings as HTML, below each other."""
    from rich.table import Table

    return "".join(table_html(part) if isinstance(part, Table) else f"<p>{lines(part)}</p>" for part in parts)


def table_html(table: Any) -> str:
    """A table of rich as one of HTML."""
    columns = table.columns
    head = "".join(cell("th", column.header, column.justify) for column in columns)
    rows = zip(*(column.cells for column in columns), strict=True)
    body = "".join(
        f"<tr>{''.join(cell('td', text, c.justify) for text, c in zip(row, columns, strict=True))}</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def cell(tag: str, text: Any, justify: str) -> str:
    side = "right" if justify == "right" else "left"
    return f'<{tag} style="text-align: {side}; vertical-align: top">{lines(text)}</{tag}>'


def lines(text: Any) -> str:
    return escape(str(text)).replace("\n", "<br>")
