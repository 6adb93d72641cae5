"""What notebooks show of optimizers, schedules, selectors and explanations."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import torch
from torch import nn

import steprule
from steprule import norms, report
from steprule.schedules import cosine, warmup


class Cells(HTMLParser):
    """The text of each cell, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in ("br", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag == "polyline" or self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def optimizer() -> steprule.Optimizer:
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    return steprule.AdamW(model, lr=0.1 * warmup(5).then(cosine(20)), overrides={norms: dict(weight_decay=0)})


def test_an_optimizer_is_its_table() -> None:
    found = optimizer()
    text = found._repr_html_()
    head, *rows = Cells(text).rows
    assert head == ["", "parameters", "tensors", "size", "lr", "weight_decay"]
    assert [row[1] for row in rows] == ["{0,2}.{weight,bias}", "1.{weight,bias}"]
    assert [row[-1] for row in rows] == ["0.01", "0"]
    assert "in all groups: betas=(0.9, 0.999)" in text
    assert "74 parameters in 6 tensors, 2 groups; 0 steps taken" in text


def test_schedules_selectors_and_explanations() -> None:
    schedule = 0.1 * warmup(5).then(cosine(20))
    picture = schedule._repr_html_()
    Cells(picture)
    assert "<code>0.1 * warmup(5).then(cosine(20)), 25 steps</code>" in picture
    [points] = re.findall(r'points="([^"]+)"', picture)
    heights = [float(point.split(",")[1]) for point in points.split()]
    assert abs(heights.index(min(heights)) - 32) < 4  # the peak, after a fifth of the way
    assert (norms & "*.weight")._repr_html_() == "<code>(norms &amp; &#x27;*.weight&#x27;)</code>"
    found = optimizer()
    for p in found.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    said: Any = found.explain(source=True)
    assert said._repr_html_().startswith("<pre>llvm: dense memory on the CPU")
    program = found._workings.planner.plan.launches[0].program  # type: ignore[union-attr]
    assert "exp_avg_sq ←" in program._repr_html_()


def test_figures_are_shown_without_pyplot() -> None:
    figure: Any = report.plot_schedules(optimizer())
    assert figure._repr_png_().startswith(b"\x89PNG")
