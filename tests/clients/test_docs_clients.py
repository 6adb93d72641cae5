"""Every snippet of docs/clients.md runs, and the table has the versions that are pinned."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "clients.md").read_text()
FIRST, *SECTIONS = re.split(r"^## ", PAGE, flags=re.M)


def blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.S)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.partition("\n")[0])
def test_the_snippet_runs(section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    title = section.partition("\n")[0]
    if title != "By name":
        pytest.importorskip(title, reason=f"{title} is not installed: make clients installs it")
    monkeypatch.chdir(tmp_path)
    (start,), (snippet,) = blocks(FIRST), blocks(section)
    assert len([line for line in snippet.splitlines() if line]) <= 10
    names: dict[str, Any] = {"__name__": "snippet"}
    exec(compile(start, "docs/clients.md", "exec"), names)
    before = [p.detach().clone() for p in names["model"].parameters()]
    exec(compile(snippet, "docs/clients.md", "exec"), names)
    if title == "By name":
        assert type(names["optimizer"]) is names["steprule"].AdamW
    elif title == "peft":
        assert len(names["optimizer"].state) == 4
    elif title == "skorch":  # which trains a copy
        assert names["net"].optimizer_.steps_taken == 2
    elif title == "trl":  # another model
        assert names["optimizer"].steps_taken == 4
    else:
        after = list(names["model"].parameters())
        assert any(not (a.detach() == b).all() for a, b in zip(after, before, strict=True))


def test_the_versions_are_those_that_are_pinned() -> None:
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    table = dict(re.findall(r"^\| ([\w-]+) \| (\d\S+) \|", FIRST, re.M))
    assert len(table) == 12
    assert {name: pinned[name] for name in table} == table
