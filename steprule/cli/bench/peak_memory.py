"""The memory and time of a whole training step: plain and in backward, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import steprule
from steprule.storage import FORMATS

__all__ = ["MemoryResult", "contenders", "measure_memory"]

ROWS = 32
"""Of a batch: few, for activations are not what is measured."""
WIDTH, DEPTH = 2048, 15
QUICK = 512, 6
THRESHOLD = "MALLOC_MMAP_THRESHOLD_"
"""What tells glibc from how many bytes on a block is the system's. By itself it raises that to 32 MB once such blocks
are freed, and then keeps what gradients leave, in pieces between which other things lie."""


@dataclass(frozen=True)
class MemoryResult:
    """What training takes above the weights.

    Attributes:
        name: what trains.
        weights: bytes of the model.
        said: bytes of gradients and state, as ``memory()`` says them; None of torch's.
        resident: bytes of the process at its peak, above those that it had when the model was made; None where the
            system does not say.
        counted: bytes at the peak, by torch's own count of what its allocator gave and got back.
        seconds: of each training step: forward, backward, step and zero_grad.
    """

    name: str
    weights: int
    said: int | None
    resident: int | None
    counted: int
    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


Train = Callable[[nn.Module, str | None], tuple[Callable[[], None], int | None]]
"""Takes a model and a format of the state, gives what comes after backward, and the bytes that are said."""


def torch_fused(model: nn.Module, _: str | None) -> tuple[Callable[[], None], int | None]:
    return after(torch.optim.AdamW(model.parameters(), fused=True)), None


def torch_in_backward(model: nn.Module, _: str | None) -> tuple[Callable[[], None], int | None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # what torch says of itself when this is imported
        from torch.distributed.optim.apply_optimizer_in_backward import _apply_optimizer_in_backward

    _apply_optimizer_in_backward(torch.optim.AdamW, model.parameters(), dict(fused=True))
    return (lambda: None), None


def step_after_backward(model: nn.Module, state_dtype: str | None) -> tuple[Callable[[], None], int | None]:
    optimizer = steprule.AdamW(model, state_dtype=state_dtype)
    said = optimizer.memory()
    return after(optimizer), said.total - said.weights


def in_backward(model: nn.Module, state_dtype: str | None) -> tuple[Callable[[], None], int | None]:
    optimizer = steprule.AdamW(model, state_dtype=state_dtype)
    said = optimizer.memory()
    optimizer.step_in_backward(model)
    return after(optimizer), said.total - said.weights - said.gradients + (said.in_backward or 0)


def after(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    def take() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return take


def contenders() -> dict[str, tuple[Train, str | None]]:
    """What is measured, by name, with the format of its state."""
    found: dict[str, tuple[Train, str | None]] = {
        "torch fused": (torch_fused, None),
        "torch, _apply_optimizer_in_backward": (torch_in_backward, None),
        "steprule": (step_after_backward, None),
        "steprule, step_in_backward": (in_backward, None),
    }
    for name in FORMATS:
        if name != "float32":
            found[f"steprule, state_dtype={name!r}"] = step_after_backward, name
            found[f"steprule, state_dtype={name!r}, step_in_backward"] = in_backward, name
    return found


def measure_memory(steps: int, quick: bool = False) -> Iterator[MemoryResult]:
    """Train with each contender, one process after the other.

    Args:
        steps: timed training steps of each.
        quick: a small model, for a first impression.

    Raises:
        RuntimeError: a process has failed.
    """
    context = multiprocessing.get_context("spawn")
    for name in contenders():
        results = context.SimpleQueue()
        process = context.Process(target=serve, args=(name, steps, quick, results), daemon=True)
        with giving_back():
            process.start()
        process.join()
        if process.exitcode != 0 or results.empty():
            raise RuntimeError(f"{name!r}: its process ended with status {process.exitcode}")
        yield results.get()


@contextmanager
def giving_back() -> Iterator[None]:
    """Processes that begin now give large blocks that are freed back to the system at once, where glibc allocates."""
    before = os.environ.get(THRESHOLD)
    os.environ[THRESHOLD] = before or str(2**20)
    try:
        yield
    finally:
        if before is None:
            del os.environ[THRESHOLD]


def serve(name: str, steps: int, quick: bool, results: Any) -> None:
    results.put(measure_training(name, steps, *(QUICK if quick else (WIDTH, DEPTH))))


def measure_training(name: str, steps: int, width: int, depth: int) -> MemoryResult:
    """What training takes, here and now."""
    train, state_dtype = contenders()[name]
    torch.manual_seed(0)
    layers = [nn.Linear(width, width) for _ in range(depth)]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight)  # so that numbers keep their size, and none is subnormal
    model = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))
    x = torch.randn(ROWS, width)
    warm(ROWS)
    before = status("VmRSS")
    forget_peak()
    take, said = train(model, state_dtype)

    def step() -> None:
        model(x).square().mean().backward()
        take()

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step()
        step()
    counted = peak_bytes(found)
    del found
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    after_all = status("VmHWM")
    resident = None if before is None or after_all is None else after_all - before
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return MemoryResult(name, weights, said, resident, counted, seconds)


def warm(rows: int) -> None:
    """Load what torch and steprule load when they are first used."""
    model = nn.Linear(rows, rows)
    for optimizer in (steprule.AdamW(model), torch.optim.AdamW(model.parameters(), fused=True)):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True):
            model(torch.ones(1, rows)).sum().backward()
            optimizer.step()


def peak_bytes(found: Any) -> int:
    """The most bytes that torch's allocator had given out at once."""
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    most = total = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        most = max(most, total)
    return most


def status(key: str) -> int | None:
    """What Linux says of this process, in bytes; None elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    named = [line.split()[1] for line in lines if line.startswith(f"{key}:")]
    return int(named[0]) * 1024 if named else None


def forget_peak() -> None:
    """Let the system's peak of this process be what it has now; where it can't be, the peak of making the model counts
    too."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return
