"""How the time of a step grows with the size, the number and the grouping of parameters, and falls with threads."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import steprule

from .cases import OURS
from .contenders import Make, parameters, stepping, torch_peers
from .table import Grid, digits
from .tensor_shapes import Shape
from .timing import CLOCKS, Pace, Spread, alternate, spread

__all__ = ["Curve", "Growing", "axes", "measure_growth", "measured"]

CONSTANT = 10**7
"""Parameters that are shared among more and more tensors."""
GROUPED = 465
"""Tensors that are shared among more and more groups."""


@dataclass(frozen=True)
class Growing:
    """What grows.

    Attributes:
        name: in words.
        values: of it, growing.
        shapes: the parameters' shapes at a value.
        groups: how many groups they are in at a value.
        threads: how many threads take the step at a value; None: as many as torch has.
    """

    name: str
    values: Sequence[int]
    shapes: Callable[[int], Sequence[Shape]]
    groups: Callable[[int], int] = lambda _: 1
    threads: Callable[[int], int | None] = lambda _: None


@dataclass(frozen=True)
class Curve:
    """The seconds of a step of AdamW at each value of an axis, by contender, ours first."""

    name: str
    values: Sequence[int]
    seconds: Mapping[str, Sequence[Spread]]

    @property
    def grid(self) -> Grid:
        """As a table: milliseconds, and our time over each peer's."""
        peers = [name for name in self.seconds if name != OURS]
        rows = [
            [
                f"{value:,}",
                *(digits(1e3 * found[k].median) for found in self.seconds.values()),
                *(digits(self.seconds[OURS][k].median / self.seconds[peer][k].median) for peer in peers),
            ]
            for k, value in enumerate(self.values)
        ]
        return Grid(
            f"AdamW: ms of a step, by {self.name}",
            [self.name, *(f"{name} ms" for name in self.seconds), *(f"of {peer}" for peer in peers)],
            rows,
        )


def axes(quick: bool = False) -> list[Growing]:
    """What is made to grow; in a first impression, not so far."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    last = 8 if quick else 10
    return [
        Growing("bytes in one tensor", [10**k for k in range(3, last)], lambda size: [(size // 4,)]),
        Growing(
            f"tensors that share {CONSTANT:,} parameters",
            [10**k for k in range(last - 4)],
            lambda count: count * [(CONSTANT // count,)],
        ),
        Growing(f"groups of {GROUPED} tensors of 100", [1, 5, 31, 155, 465], lambda _: GROUPED * [(100,)], groups=int),
        Growing(
            "threads",
            [2**k for k in range(cores.bit_length())],
            lambda _: 10 * [(CONSTANT // 10,)],
            threads=int,
        ),
    ]


def measure_growth(pace: Pace, quick: bool = False) -> Iterator[Curve]:
    """Measure AdamW along each axis, in turns with torch's implementations."""
    for axis in axes(quick):
        yield measured(axis, pace)


def measured(axis: Growing, pace: Pace) -> Curve:
    """Measure AdamW along one axis."""
    peers = torch_peers(torch.optim.AdamW)
    makes: dict[str, Make] = {OURS: stepping(steprule.AdamW), **{name: peers[name] for name in ("fused", "foreach")}}
    before = torch.get_num_threads()
    seconds: dict[str, list[Spread]] = {}
    try:
        for value in axis.values:
            torch.set_num_threads(axis.threads(value) or before)
            gc.collect()
            params, count = parameters(axis.shapes(value), torch.float32, "cpu"), axis.groups(value)
            # groups of its own for each: an optimizer writes its options into them
            steps = {name: make(grouped(params, count)) for name, make in makes.items()}
            times = alternate(steps, pace, CLOCKS["cpu"])
            for name, found in times.items():
                seconds.setdefault(name, []).append(spread(found.rounds))
    finally:
        torch.set_num_threads(before)
    return Curve(axis.name, axis.values, seconds)


def grouped(params: list[Tensor], count: int) -> Any:
    """Parameters in so many groups of about the same size."""
    return [{"params": params[k::count]} for k in range(count)]
