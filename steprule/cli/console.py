"""What every command shares: the terminal, and how it says that something cannot be done."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer
from rich.console import Console
from rich.text import Text

from steprule.messages.words import printable

console = Console()


def say(line: str, style: str = "") -> None:
    """Print one line as it is: no markup is read in it, and nothing in it reaches the terminal as a command."""
    console.print(Text(printable(line), style=style))


def fail(message: str, status: int = 2) -> NoReturn:
    """Say in one line what is wrong, and end.

    Args:
        message: What is wrong and what to do about it.
        status: The exit status: 2 where the command was given wrongly, 1 where nothing came of it.

    Raises:
        typer.Exit: Always, with that status.
    """
    print("steprule:", printable(" ".join(message.split())), file=sys.stderr)
    raise typer.Exit(status)


def check_matplotlib(what: str) -> None:
    """Fail where matplotlib is not installed, which something needs."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        fail(f"{what} needs matplotlib: pip install 'steprule[demo]'")
