"""The code on pages that no test of their own runs, runs; and prints what stands under it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import steprule

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


def comparison() -> tuple[list[str], list[list[str]]]:
    """The titles and the rows of the large table of docs/comparison.md."""
    lines = (DOCS / "comparison.md").read_text(encoding="utf-8").splitlines()
    table = [line for line in lines if line.startswith("| ") and line.count("|") == 12]
    titles, *rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]
    return titles, rows


def test_each_tick_of_the_comparison_leads_to_tests() -> None:
    titles, rows = comparison()
    assert titles[1] == "steprule"
    assert len(rows) > 20
    for what, ours, *_ in rows:
        linked = re.search(r"\]\((\S+)\)", ours)
        if ours.startswith("["):
            assert linked is not None, what
            tests = (DOCS / linked[1]).read_text(encoding="utf-8")
            assert "\ndef test_" in tests, f"{what}: {linked[1]} has no tests"
        else:
            assert "yes" not in ours, f"{what}: no test is named"


def test_the_comparison_counts_our_algorithms() -> None:
    _, rows = comparison()
    assert int(rows[0][1]) == len(steprule.algorithms.names())
    page = (DOCS / "comparison.md").read_text(encoding="utf-8")
    assert all(name in page for name in ("2.13", "28 November 2026")), "which versions, and when"
