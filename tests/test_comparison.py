"""`make compare`: what it trains, and what it writes of it."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def compare() -> Any:
    sys.path.append(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("compare_script", BENCHMARKS / "compare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["compare_script"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("task", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_is_the_same_each_time_and_learns(compare: Any, task: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "TASKS", [own._replace(steps=12) for own in compare.TASKS])
    threads, job = torch.get_num_threads(), compare.Job(task, "AdamW", 1e-2, 0)
    try:
        torch.manual_seed(0)
        with torch.no_grad():
            before = compare.TASKS[task].held_out(compare.TASKS[task].model())
        assert compare.trained(job) == compare.trained(job) < before
        assert compare.trained(compare.Job(task, "SGD, momentum 0.9", 1e9, 0)) == math.inf
    finally:
        torch.set_num_threads(threads)


def test_the_best_stand_first_with_the_rate_that_suits_them(compare: Any, tmp_path: Path) -> None:
    found = [
        {
            "AdamW": compare.Best(1e-3, (0.5, 0.7)),
            "Lion": compare.Best(3e-4, (0.25, 0.75)),
            "SGD": compare.Best(1, (9, 9)),
        },
        {
            "AdamW": compare.Best(1e-2, (3.0, 3.0)),
            "Lion": compare.Best(3e-4, (2.0, 2.5)),
            "SGD": compare.Best(1, (9, 9)),
        },
    ]
    found = [{**own, "Adam": compare.Best(0.1, (4.0, 4.0))} for own in found]
    lines = compare.table(found).splitlines()
    assert lines[2] == "| Lion | 0.0003 | 0.500 ± 0.250 | 0.0003 | 2.250 ± 0.250 |"
    assert [line.split(" ")[1] for line in lines[2:]] == ["Lion", "AdamW", "Adam", "SGD"]
    assert compare.section(found, 2).startswith(compare.HEADING)
    compare.draw(found, tmp_path / "trained.png")
    assert (tmp_path / "trained.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_every_algorithm_takes_its_steps(compare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "TASKS", [own._replace(steps=2) for own in compare.TASKS])
    threads = torch.get_num_threads()
    try:
        losses = {
            name: [compare.trained(compare.Job(task, name, 1e-3, 0)) for task in range(2)]
            for name in compare.contenders()
        }
    finally:
        torch.set_num_threads(threads)
    assert len(losses) >= 20
    assert all(map(math.isfinite, [loss for own in losses.values() for loss in own]))
