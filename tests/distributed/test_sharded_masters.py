"""What stands beside weights that several processes hold is what stands beside them in one process."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from distributed.layouts import LAYOUTS, Layout, plain, spread, train_spread, whole
from distributed.processes import on_ranks
from torch import Tensor

import steprule

Placed = Callable[[Layout, Iterable[Tensor]], list[Tensor]]


def short(placed: Placed) -> Placed:
    return lambda layout, tensors: placed(layout, [tensor.bfloat16() for tensor in tensors])


def differing(layout: Layout, masters: list[str]) -> list[str]:
    """On one rank: what differs of weights, of what stands beside them, of the full form and of what is loaded."""
    wrong: list[str] = []

    def compare(what: str, ours: Iterable[Any], theirs: Iterable[Any]) -> None:
        pairs = zip(ours, theirs, strict=True)
        # of whole numbers of 16 bits gloo sends nothing
        wrong.extend(what for a, b in pairs if not torch.equal(whole(a.to(torch.float32)), b.to(torch.float32)))

    for master in masters:

        def make(params: Any, master: str = master) -> steprule.Optimizer:
            return steprule.AdamW(params, lr=1e-2, master=master, state_dtype="float32")

        ours, optimizer = train_spread(make, layout, short(spread))
        theirs, reference = train_spread(make, layout, short(plain))
        compare(f"{master}: weights", ours, theirs)
        compare(master, (optimizer.state[p]["master"] for p in ours), (reference.state[p]["master"] for p in theirs))
        full, known = (o.state_dict(full=True)["state"] for o in (optimizer, reference))  # type: ignore[call-arg]
        compare(f"{master} in full", *([entry["master"] for entry in s.values()] for s in (full, known)))
        loaded = make([(f"p{i}", p) for i, p in enumerate(ours)])
        loaded.load_state_dict(reference.state_dict())
        compare(
            f"{master} loaded",
            (loaded.state[p]["master"] for p in ours),
            (reference.state[p]["master"] for p in theirs),
        )
        with torch.no_grad():
            ours[0].mul_(2)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            optimizer.step()
        wrong += [f"{master}: {w.message}" for w in said if "'p0' was written to" not in str(w.message)]
        wrong += [] if said else [f"{master}: no warning"]
    return wrong


@pytest.mark.parametrize("layout", ["uneven", "both"])
def test_masters_are_those_of_one_process(layout: str) -> None:
    where = LAYOUTS[layout]
    for rank, wrong in enumerate(on_ranks(where.size, differing, where, ["8bit", "16bit", "float32"], deadline=120)):
        assert not wrong, f"rank {rank}: {wrong}"
