"""docs/reliability.md names tests that are there, and counts them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def rows() -> dict[str, tuple[list[str], str]]:
    """By promise: the files of its tests, and what the last cell says."""
    found = {}
    for line in (ROOT / "docs/reliability.md").read_text(encoding="utf-8").splitlines():
        promise, *cells = line.strip("| ").split(" | ")
        names = re.findall(r"`([\w/]+\.py)`", cells[0]) if len(cells) == 2 else []
        if names and names[0].startswith("tests/"):
            folder = Path(names[0]).parent
            found[promise] = [name if "/" in name else f"{folder}/{name}" for name in names], cells[1]
    return found


def test_every_file_is_there() -> None:
    assert len(rows()) > 12
    assert [name for names, _ in rows().values() for name in names if not (ROOT / name).is_file()] == []


@pytest.mark.slow
def test_the_counts_are_those_of_make_test() -> None:
    files = sorted({name for names, _ in rows().values() for name in names})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "not slow", *files]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    cases = Counter(line.split("::")[0] for line in listed.splitlines() if "::" in line)
    for promise, (names, said) in rows().items():
        counted = sum(cases[name] for name in names)
        assert said.split(",")[0].split()[0] == str(counted), f"{promise}: {counted}"
