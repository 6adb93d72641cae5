"""The `steprule` command. Each of its commands stands in a file of its own, and in `COMMANDS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from steprule import __version__

from . import bench, compare, convert, demo, inspect, memory

COMMANDS: tuple[Callable[..., None], ...] = (
    bench.bench,
    compare.compare,
    convert.convert,
    demo.demo,
    inspect.inspect,
    memory.memory,
)

app = typer.Typer(name="steprule", no_args_is_help=True)


def show_version(asked: bool) -> None:
    if asked:
        print(f"steprule {__version__}")
        raise typer.Exit


@app.callback()
def steprule(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and end.", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """Optimizers for PyTorch, written once as a short update rule."""


for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """Run the command line."""
    app()
