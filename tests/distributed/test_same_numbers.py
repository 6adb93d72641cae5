"""Every algorithm on parameters that several processes hold does what it does in one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from distributed.layouts import LAYOUTS, MATRICES, Layout, plain, spread, train_spread, whole
from distributed.processes import on_ranks
from every_algorithm import MATRIX, REDUCING, RULES

import steprule

OPTIONS: list[dict[str, Any]] = [{}, {"clip_norm": 0.3}]


def difference(ours: torch.Tensor, theirs: torch.Tensor, exact: bool) -> str | None:
    if ours.shape == theirs.shape and (
        torch.equal(ours, theirs) if exact else torch.allclose(ours, theirs, rtol=1e-6, atol=1e-7)
    ):
        return None
    return f"off by {(ours - theirs).abs().max():.3g}" if ours.shape == theirs.shape else f"of shape {ours.shape}"


def same_numbers(layout: Layout, names: list[str]) -> list[str]:
    """On one rank: what differs of parameters and state after a few steps."""
    wrong = []
    for name in names:
        for options in OPTIONS:

            def make(params: Any, name: str = name, options: Any = options) -> steprule.Optimizer:
                return getattr(steprule, name)(params, **options)

            ours, optimizer = train_spread(make, layout, spread)
            theirs, reference = train_spread(make, layout, plain)
            exact = name not in REDUCING and (not options or name == "Muon")
            for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
                wrong.append((name, options, f"p{i}", difference(whole(a), b.detach(), exact)))
                mine, other = optimizer.state[a], reference.state[b]
                wrong += [(name, options, f"p{i}.{s}", difference(whole(mine[s]), v, exact)) for s, v in other.items()]
                if set(mine) != set(other):
                    wrong.append((name, options, f"p{i}", f"has {set(mine)}"))
    return [f"{name} {options} {what}: {found}" for name, options, what, found in wrong if found]


def check(layout: Layout, names: list[str]) -> None:
    for rank, wrong in enumerate(on_ranks(layout.size, same_numbers, layout, names, deadline=120)):
        assert not wrong, f"rank {rank}: " + "\n".join(wrong)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_algorithm_does_what_it_does_in_one_process(layout: str) -> None:
    check(LAYOUTS[layout], [name for name in RULES if name not in {"SparseAdam"} | MATRIX])


@pytest.mark.parametrize("layout", MATRICES)
def test_whole_matrices_are_worked_on_as_in_one_process(layout: str) -> None:
    check(MATRICES[layout], ["Muon"])
