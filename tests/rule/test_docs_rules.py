"""The page on rules: its code runs, and it names every function of the language."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from steprule.rule.expression import VOCABULARY

PAGE = (Path(__file__).parents[2] / "docs" / "rules.md").read_text(encoding="utf-8")


def test_the_code_runs() -> None:
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(blocks) == 9
    passes = []
    for block in blocks:
        exec(block, names)
        passes += re.findall(r"in (\d) pass", names["optimizer"].explain())
    assert passes == [*["1"] * 3, "2", *["1"] * 4, "2", "1", "2", "1"]  # SM3 and Shampoo have matrices and vectors


def test_every_function_is_named() -> None:
    listed = PAGE.split("## Operators and functions")[1].split("## State")[0]
    assert set(re.findall(r"\w+", listed)) >= VOCABULARY
