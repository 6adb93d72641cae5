"""Steps on parameters that several processes hold, beside torch's and beside the same parts as plain tensors."""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import steprule

from .tensor_shapes import SHAPES, Shape

__all__ = ["RankResult", "measure_ranks"]

TEN_MILLION: Sequence[Shape] = [*[(1024, 1024)] * 9, *[(1024,)] * 9, (512, 1024), (512,)]

MODELS: dict[str, Sequence[Shape]] = {"LeNet": SHAPES["lenet"], "10 million": TEN_MILLION}

RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "AdamW": ("AdamW", {}),
    "AdamW, clip_norm": ("AdamW", {"clip_norm": 1.0}),
    "Lamb, clip_norm": ("Lamb", {"clip_norm": 1.0}),
    "Adafactor": ("Adafactor", {}),
}

BLOCK = 0.1
"""Seconds that a contender runs at a stretch, at least."""


@dataclass(frozen=True)
class RankResult:
    """Milliseconds of a step, medians of the first process.

    Attributes:
        model: whose shapes.
        rule: which algorithm.
        shared: on DTensors, sharded by rows over all processes.
        alone: on the same parts as plain tensors, where nothing is exchanged.
        torch: torch's fused step on the same DTensors, where there is one; after its own clipping if the rule clips.
    """

    model: str
    rule: str
    shared: float
    alone: float
    torch: float | None

    @property
    def line(self) -> str:
        """For a person to read."""
        beside = "" if self.torch is None else f", torch fused {self.torch:8.3f}"
        ratio = self.shared / self.alone
        return (
            f"{self.model:10}  {self.rule:16}  {self.shared:8.3f} ms, its parts {self.alone:8.3f}{beside}  {ratio:6.2f}"
        )


def measure_ranks(ranks: int, repeats: int) -> list[RankResult]:
    """Time steps on some processes, each of one thread.

    Raises:
        RuntimeError: a process has failed.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        results = context.SimpleQueue()
        arguments = [(rank, ranks, str(Path(folder) / "store"), repeats, results) for rank in range(ranks)]
        processes = [context.Process(target=serve, args=own, daemon=True) for own in arguments]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise RuntimeError("a process of the measurement has failed; its own message stands above")
        found: list[RankResult] = results.get()
        return found


def serve(rank: int, ranks: int, store: str, repeats: int, results: Any) -> None:
    """One process of the measurement."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    found = list(measure(repeats))
    if rank == 0:
        results.put(found)
    dist.destroy_process_group()


def measure(repeats: int) -> Iterator[RankResult]:
    for model, shapes in MODELS.items():
        for rule, (name, options) in RULES.items():
            shared, alone = sharded_parameters(shapes)
            contenders: dict[str, Callable[[], object]] = {
                "shared": getattr(steprule, name)(shared, **options).step,
                "alone": getattr(steprule, name)(alone, **options).step,
            }
            if name == "AdamW":
                contenders["torch"] = of_torch(sharded_parameters(shapes)[0], options)
            times = in_turns(contenders, repeats)
            yield RankResult(model, rule, times["shared"], times["alone"], times.get("torch"))


def sharded_parameters(shapes: Sequence[Shape]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """DTensors with gradients, and what is here of them."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def spread(shape: Shape) -> Any:
        return distribute_tensor(torch.randn(shape) / 10, mesh, [Shard(0)], src_data_rank=None)

    shared, alone = [nn.Parameter(spread(shape)) for shape in shapes], []
    for p, shape in zip(shared, shapes, strict=True):
        p.grad = spread(shape)
        own: Any = p
        part = nn.Parameter(own._local_tensor.clone())
        part.grad = own.grad._local_tensor.clone()
        alone.append(part)
    return shared, alone


def of_torch(params: list[nn.Parameter], options: dict[str, Any]) -> Callable[[], object]:
    """torch's fused step, after its clipping where the rule clips."""
    step = torch.optim.AdamW(params, fused=True).step
    limit = options.get("clip_norm")
    if limit is None:
        return step
    return lambda: (nn.utils.clip_grad_norm_(params, limit), step())


def in_turns(contenders: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Milliseconds of each, the median of blocks that alternate; all processes run the same number of steps."""
    count: dict[str, int] = {}
    for name, step in contenders.items():
        for _ in range(3):
            step()
        dist.barrier()
        start = time.perf_counter()
        step()
        taken = torch.tensor(time.perf_counter() - start)
        dist.all_reduce(taken, op=dist.ReduceOp.MAX)
        count[name] = max(1, min(1000, int(BLOCK / max(float(taken), 1e-6))))
    turns: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, step in contenders.items():
            dist.barrier()
            start = time.perf_counter()
            for _ in range(count[name]):
                step()
            turns[name].append((time.perf_counter() - start) / count[name] * 1e3)
    return {name: statistics.median(times) for name, times in turns.items()}
