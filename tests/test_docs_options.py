"""The pages on options and schedules name all that there is, and their code runs."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib import image

import steprule
from steprule import schedules
from steprule.stepping.options import OPTIONS

DOCS = Path(__file__).parents[1] / "docs"


def first_cells(page: str) -> list[str]:
    """The code in the first cells of a page's tables."""
    return [code for cell in re.findall(r"^\| (.+?) \|", page, re.M) for code in re.findall(r"`([^`]+)`", cell)]


def test_every_option_is_on_the_page() -> None:
    page = (DOCS / "options.md").read_text(encoding="utf-8")
    assert set(first_cells(page)) == {*OPTIONS, "overrides", "nonfinite", "algorithm"}
    for code in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(code, {})
    beside = re.findall(r"`(\w+)`", page[page.index("What an optimizer does beside") :])
    assert all(hasattr(steprule.Optimizer, name) for name in beside if name != "step")


def test_every_schedule_is_on_the_page_with_its_picture(capsys: pytest.CaptureFixture[str]) -> None:
    page = (DOCS / "schedules.md").read_text(encoding="utf-8")
    found = first_cells(page)
    names: dict[str, Any] = dict(vars(schedules))
    made = [eval(expression, names) for expression in found]
    assert all(isinstance(schedule(7), float) for schedule in made)
    makers = {
        name
        for name in schedules.__all__
        if inspect.isfunction(getattr(schedules, name))
        and inspect.signature(getattr(schedules, name)).return_annotation == "Schedule"
    }
    written = {name for expression in found for name in re.findall(r"\w+", expression)}
    assert makers - written <= {"arithmetic", "function", "from_dict"}
    assert {"then", "repeat"} <= written
    assert image.imread(DOCS / "schedule_shapes.png").shape[1] > 1000
    for code in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(code, {})
    assert capsys.readouterr().out == "".join(re.findall(r"```text\n(.*?)```", page, re.S))
