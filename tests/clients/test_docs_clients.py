"""Every snippet of docs/clients.md runs, and the table has the versions that are pinned."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from client_task import FEATURES

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


def held(items: list[Any]) -> dict[str, set[str]]:
    """What the tests of each client that were collected are the proof of."""
    found: dict[str, set[str]] = {}
    for item in items:
        own = found.setdefault(item.path.stem.removeprefix("test_"), set())
        own |= {feature for mark in item.iter_markers("holds") for feature in mark.args}
        own |= {item.callspec.params.get("name")} if hasattr(item, "callspec") else set()
    return {client: own & set(FEATURES) for client, own in found.items() if own & set(FEATURES)}


def test_the_matrix_says_what_tests_hold(request: pytest.FixtureRequest) -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in FIRST.splitlines() if line[:1] == "|"]
    (head,) = (row for row in rows if row[1:] == FEATURES)
    matrix = {row[0].removeprefix("pytorch-"): row[1:] for row in rows if set(row[1:]) <= {"✓", "-"}}
    assert head[0] == "client"
    assert len(matrix) == 12
    option = request.config.option
    if option.keyword or option.markexpr or any("::" in arg for arg in request.config.args):
        pytest.skip("not all tests of a client are collected")
    proofs = held(request.session.items)
    assert proofs.keys() <= matrix.keys()
    for client, features in proofs.items():
        ticks = {feature for feature, tick in zip(FEATURES, matrix[client], strict=True) if tick == "✓"}
        assert ticks == features, client
