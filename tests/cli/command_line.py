"""What the tests of several commands ask of a result."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from steprule.cli import app


def assert_refused(result: Result, *parts: str) -> None:
    """One line, exit status 2."""
    assert result.exit_code == 2, result.output
    [line] = result.stderr.splitlines()
    assert all(part in line for part in parts), line


def invoke(*arguments: str, columns: int | None = None) -> Result:
    """What `steprule` says, on a terminal of that width if one is given."""
    return CliRunner(env={} if columns is None else {"COLUMNS": str(columns)}).invoke(app, arguments)
