"""The code on pages that no test of their own runs, runs; and prints what stands under it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ["start", "from_torch"]
BLOCK = re.compile(r"```(python|text)\n(.*?)```", re.S)


@pytest.mark.parametrize("name", PAGES)
def test_the_code_runs_and_prints_what_stands_under_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    blocks = BLOCK.findall(page)
    assert any(kind == "python" for kind, _ in blocks)
    for kind, text in blocks:
        if kind == "python":
            capsys.readouterr()
            exec(compile(text, f"{name}.md", "exec"), names)
        else:
            assert capsys.readouterr().out == text
