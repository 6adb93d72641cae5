"""The `steprule` command. Each of its commands stands in a file of its own, and in `COMMANDS`."""

from __future__ import annotations

from collections.abc import Callable

import typer

from . import bench, compare, convert, demo, inspect

COMMANDS: tuple[Callable[..., None], ...] = (
    bench.bench,
    compare.compare,
    convert.convert,
    demo.demo,
    inspect.inspect,
)

app = typer.Typer(name="steprule", no_args_is_help=True, add_completion=False)


@app.callback()
def steprule() -> None:
    """Optimizers for PyTorch, written once as a short update rule."""


for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """Run the command line."""
    app()
