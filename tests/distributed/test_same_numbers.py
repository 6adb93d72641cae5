"""Every algorithm on parameters that several processes hold does what it does in one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from distributed.layouts import LAYOUTS, plain, spread, train, whole
from distributed.processes import on_ranks
from every_algorithm import RULES

import steprule

OPTIONS: list[dict[str, Any]] = [{}, {"clip_norm": 0.3}]
REDUCING = {"Lamb", "Adafactor", "Muon"}
SKIPPED = {"SparseAdam", "Muon"}


def same_numbers(layout_name: str, names: list[str]) -> list[str]:
    """On one rank: what differs."""
    layout, wrong = LAYOUTS[layout_name], []
    for name in names:
        for options in OPTIONS:
            algorithm = getattr(steprule, name)

            def make(params: Any, algorithm: Any = algorithm, options: Any = options) -> steprule.Optimizer:
                return algorithm(params, **options)

            ours, optimizer = train(make, layout, spread)
            theirs, reference = train(make, layout, plain)
            exact = name not in REDUCING and not options
            for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
                close = torch.equal(whole(a), b) if exact else torch.allclose(whole(a), b, rtol=1e-6, atol=1e-7)
                if not close:
                    wrong.append(f"{name} {options} p{i}: off by {(whole(a) - b).abs().max().item():.3g}")
            for p, q in zip(ours, theirs, strict=True):
                for slot, value in reference.state[q].items():
                    mine = whole(optimizer.state[p][slot])
                    fits = torch.equal(mine, value) if exact else torch.allclose(mine, value, rtol=1e-5, atol=1e-7)
                    if mine.shape != value.shape or not fits:
                        wrong.append(f"{name} {options} {slot}: {mine} for {value}")
    return wrong


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_algorithm_does_what_it_does_in_one_process(layout: str) -> None:
    names = [name for name in RULES if name not in SKIPPED]
    for rank, wrong in enumerate(on_ranks(LAYOUTS[layout].size, same_numbers, layout, names, deadline=120)):
        assert not wrong, f"rank {rank}: " + "\n".join(wrong)
