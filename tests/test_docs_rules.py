"""The page on rules: its code runs, and it names every function of the language."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from steprule.rule.functions import __all__ as functions

PAGE = (Path(__file__).parent.parent / "docs" / "rules.md").read_text(encoding="utf-8")


def test_the_code_runs() -> None:
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(blocks) == 3
    for block in blocks:
        exec(block, names)
    assert "in 2 passes over memory" in names["optimizer"].explain()


def test_every_function_is_named() -> None:
    listed = PAGE.split("## Operators and functions")[1].split("## State")[0]
    assert set(functions) <= set(re.findall(r"\w+", listed))
