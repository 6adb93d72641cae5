"""Every program of the gallery runs, for a few steps, and stands on the page with its picture."""

from __future__ import annotations

import math
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from matplotlib import image

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "gallery"
PROGRAMS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "panels")


def numbers(found: Any) -> list[float]:
    """What a program says, as numbers."""
    if isinstance(found, dict):
        return list(found.values())
    return [x for x in (found if isinstance(found, tuple) else (found,)) if isinstance(x, float)]


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_runs_and_draws(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    module = import_module(name)
    found = numbers(module.main(steps=10, picture=tmp_path / "picture.png"))
    assert found
    assert all(map(math.isfinite, found))
    assert image.imread(tmp_path / "picture.png").shape == image.imread(ROOT / "docs" / "gallery" / f"{name}.png").shape


def test_all_of_them_stand_on_the_page() -> None:
    page = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"\(\.\./examples/gallery/(\w+)\.py\)", page)) == PROGRAMS
    assert sorted(re.findall(r"\(gallery/(\w+)\.png\)", page)) == PROGRAMS
