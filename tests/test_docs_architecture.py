"""docs/architecture.md and CONTRIBUTING.md speak of files that exist."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_every_path_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = set(re.findall(r"`((?:steprule|tests|docs|scripts|benchmarks|\.ci)/[\w./]*|pyproject\.toml)`", text))
    assert len(found) >= 6
    missing = {path for path in found if not (ROOT / path).exists()}
    assert not missing
    linked = re.findall(r"\]\(([\w./]+)\)", text)
    assert all((ROOT / page).parent.joinpath(link).exists() for link in linked)


def test_every_room_stands_in_the_picture() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    picture = text.partition("```")[2].partition("```")[0]
    rooms = {path.parent.name for path in (ROOT / "steprule").glob("**/__init__.py")} - {"steprule", "bench", "compare"}
    assert {f"{room}/" for room in rooms} <= set(re.findall(r"\w+/", picture))


def test_nothing_is_loose_at_the_root() -> None:
    loose = {path.name for path in (ROOT / "steprule").glob("*.py")}
    assert loose == {
        "__init__.py", "__main__.py", "optimizer.py", "checkpoint.py", "report.py", "names.py", "replacing.py"
    }  # fmt: skip


def test_every_test_file_has_a_name_of_its_own() -> None:
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
