"""What a step exchanges on many ranks, by arithmetic: owners are those that the code itself gives to the matrices."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch

from steprule.distributed.owners import Job, assign
from steprule.distributed.shares import Axis

Shape = tuple[int, int]

BANDWIDTH = 50e9
"""Bytes a second that a rank sends and receives: a network of 400 gigabits."""
SPEED = 400e12
"""Operations a second of products in bfloat16, as a GPU reaches them."""
STEPS = 5
"""Of Newton-Schulz."""


def transformer(width: int, inner: int, layers: int, keys: int) -> list[Shape]:
    """The hidden matrices: query, key, value, out; gate, up, down."""
    block = [(width, width), (keys, width), (keys, width), (width, width), (inner, width), (inner, width)]
    return [shape for _ in range(layers) for shape in [*block, (width, inner)]]


MODELS = {"7 billion": transformer(4096, 11008, 32, 4096), "70 billion": transformer(8192, 28672, 80, 1024)}


def products(shape: Shape) -> float:
    """Operations of an iteration on a matrix: the Gram matrix, its square, and the product with the matrix."""
    short, long = sorted(shape)
    return 4.0 * short * short * long + 2.0 * short**3


def row(shapes: list[Shape], ranks: int) -> list[str]:
    axis = Axis("ranks", ranks, 0, None)
    shares: list[Any] = [SimpleNamespace(shape=shape, way=[(axis, 0)]) for shape in shapes]
    jobs = [Job(share, "", 0, torch.bfloat16) for share in shares]
    assign(jobs)
    loads = [0.0] * ranks
    for job in jobs:
        loads[job.owner[axis]] += products(job.shape)
    elements = sum(map(math.prod, shapes))
    sent = 2 * 2 * elements / ranks * (ranks - 1) / ranks
    gathered = 2 * elements * (ranks - 1) / ranks
    time, alone = sent / BANDWIDTH + STEPS * max(loads) / SPEED, gathered / BANDWIDTH + STEPS * sum(loads) / SPEED
    scalars = 8 * 2 * (len(shapes) + 1)
    return [
        f"{ranks:,}",
        f"{scalars:,}",
        f"{sent / 1e9:.3f}",
        f"{gathered / 1e9:.1f}",
        f"{max(loads) / sum(loads) * ranks:.2f}",
        f"{1e3 * time:,.0f}",
        f"{1e3 * alone:,.0f}",
    ]


def main() -> None:
    for name, shapes in MODELS.items():
        print(f"\n{name}: {len(shapes)} matrices, {sum(map(math.prod, shapes)):,} elements\n")
        print(
            "| ranks | Lamb with clip_norm: bytes | Muon: GB to owners and back | GB to gather all | work over 1/N | "
            "ms | ms, each gathers and does all |"
        )
        print("|---|---|---|---|---|---|---|")
        for ranks in (8, 64, 256, 1024):
            print(f"| {' | '.join(row(shapes, ranks))} |")


if __name__ == "__main__":
    main()
