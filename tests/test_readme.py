"""The code in the README runs, and its picture is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import steprule

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Linear(2, 1, bias=False)
    start = model.weight.detach().clone()
    names: dict[str, Any] = {"optim": steprule, "model": model}
    own_rule, *others = [block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "=" in block]
    exec(own_rule, names)
    names["optimizer"] = names["ElasticSGD"](model.named_parameters(), lr=0.5, l1=0.1, l2=0.2)
    model.weight.grad = torch.ones(1, 2)
    names["optimizer"].step()
    for block in others:
        exec(block, names)

    expected = start - 0.5 * (1 + 0.1 * start.sign() + 0.2 * start)
    torch.testing.assert_close(model.weight.detach(), expected)
    assert names["extra"] == {"epoch": 3}


def test_the_pictures_and_pages_are_there() -> None:
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)

    links = re.findall(r"(?<!!)\[[^]]+\]\(([^):]+)\)", README)
    assert links
    assert all((ROOT / link).is_file() for link in links)
    assert pictures
    assert all((ROOT / picture).is_file() for picture in pictures)
