"""A long run: memory and time per step stay flat. ``make soak`` takes a million steps; STEPS=20000 takes fewer."""

from __future__ import annotations

import os
import statistics
import sys
import time

import torch
from torch import nn

import steprule
from steprule import schedules

PARTS = 20
"""How often the run is looked at."""
GROWTH = 4.0
"""MiB that the second half may add: allocators settle a little later than everything else."""
SLOWER = 1.5
"""How many times as long as at first a step may take at last, on a machine that does other things too."""


def resident() -> float:
    """The memory of this process, in MiB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def main(steps: int) -> int:
    """Take so many steps; gives 1 if memory or time per step grew."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 4))
    optimizer = steprule.AdamW(model, lr=1e-3 * schedules.cosine(steps), clip_norm=1.0)
    gradients = [[torch.randn_like(p) for p in model.parameters()] for _ in range(8)]
    memory, times = [], []
    for part in range(PARTS):
        spent = []
        for step in range(steps // PARTS):
            for p, g in zip(model.parameters(), gradients[step % 8], strict=True):
                p.grad = g.clone()
            before = time.perf_counter()
            optimizer.step()
            spent.append(time.perf_counter() - before)
            optimizer.zero_grad()
        optimizer.load_state_dict(optimizer.state_dict())
        memory.append(resident())
        times.append(statistics.median(spent) * 1e6)
        print(
            f"{(part + 1) * (steps // PARTS):>9,} steps  {times[-1]:7.1f} us a step  {memory[-1]:8.1f} MiB", flush=True
        )
    growth, slower = memory[-1] - memory[PARTS // 2], min(times[-3:]) / min(times[1:4])
    print(f"second half: {growth:+.1f} MiB; at last a step takes {slower:.2f} times as long as at first")
    assert optimizer.steps_taken == steps // PARTS * PARTS
    return int(growth > GROWTH or slower > SLOWER)


if __name__ == "__main__":
    sys.exit(main(int(os.environ.get("STEPS", 1_000_000))))
