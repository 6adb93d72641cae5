"""The page on modifiers: its code runs, and it names every modifier."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from steprule import modifiers

PAGE = (Path(__file__).parents[2] / "docs" / "modifiers.md").read_text(encoding="utf-8")


def test_the_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(blocks) == 6
    for block in blocks:
        exec(block, names)
    assert (tmp_path / "run.safetensors").exists()


def test_every_modifier_is_named() -> None:
    table = PAGE.split("| | changes | |")[1].split("## Order")[0]
    assert set(modifiers.__all__) - {"Modifier"} == set(re.findall(r"`(\w+)`", table))
