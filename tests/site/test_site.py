"""The built documentation site and a notebook; `make docs` builds the one and runs this."""

from __future__ import annotations

import importlib.util
import re
import zlib
from pathlib import Path
from typing import Any

import pytest

import steprule

ROOT = Path(__file__).parents[2]
HTML = ROOT / "build" / "docs" / "html"


def built(name: str) -> str:
    return (HTML / name).read_text(encoding="utf-8")


def test_every_public_name_has_a_place() -> None:
    spec = importlib.util.spec_from_file_location("docs", ROOT / "scripts" / "docs.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    content = (HTML / "objects.inv").read_bytes()
    listed = zlib.decompress(content.split(b"\n", 4)[4]).decode()
    assert {line.split()[0] for line in listed.splitlines()} >= set(module.public())


def test_every_algorithm_has_its_formula_and_its_paper() -> None:
    for name in steprule.algorithms.names():
        page = built(f"reference/{name}.html")
        assert 'class="math' in page, name
    assert "arxiv.org/abs/1711.05101" in built("reference/AdamW.html")
    assert "mathjax" in built("reference/AdamW.html")


def test_search_finds_adamw_and_the_chinese_page_is_there() -> None:
    assert "AdamW" in built("searchindex.js")
    assert "写自己的优化器" in built("zh-CN.html")


def test_links_within_the_site_lead_somewhere() -> None:
    for page in HTML.rglob("*.html"):
        for link in re.findall(r'(?:href|src)="([^"#?:]+)(?:[?#][^"]*)?"', page.read_text(encoding="utf-8")):
            assert (page.parent / link).resolve().exists(), f"{page.name}: {link}"


CELLS = [
    "import torch, steprule\nfrom steprule import report\nfrom steprule.schedules import cosine, warmup",
    "model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))\n"
    "optimizer = steprule.AdamW(model, lr=0.1 * warmup(5).then(cosine(20)))\n"
    "model(torch.ones(1, 3)).sum().backward()\noptimizer.step()\noptimizer",
    "report.plot_schedules(optimizer)",
    "optimizer.explain()",
    "cosine(10)",
    "steprule.norms",
]


def test_a_notebook_shows_tables_curves_and_figures() -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    nbclient.NotebookClient(notebook, timeout=300).execute()
    table, figure, explained, curve, selector = [cell.outputs[-1].data for cell in notebook.cells[1:]]
    assert "<table>" in table["text/html"]
    assert len(figure["image/png"]) > 10_000
    assert explained["text/html"].startswith("<pre>llvm: dense memory")
    assert "<svg" in curve["text/html"]
    assert selector["text/html"] == "<code>norms</code>"
