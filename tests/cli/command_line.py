"""What the tests of several commands ask of a result."""

from __future__ import annotations

from typer.testing import Result


def assert_refused(result: Result, *parts: str) -> None:
    """One line, exit status 2."""
    assert result.exit_code == 2, result.output
    [line] = result.stderr.splitlines()
    assert all(part in line for part in parts), line
