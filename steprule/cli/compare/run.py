"""One setting's training: its steps, its checkpoint, and what became of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import steprule
from steprule.checkpoint import CheckpointError, load, save
from steprule.messages.words import counted

from .setting import Setting
from .task import Task, begin

__all__ = ["Run", "restore", "train_run"]

PAUSE = 5.0  # seconds from one checkpoint to the next


@dataclass
class Run:
    """A setting's losses so far, with the seconds of training that they took.

    Attributes:
        setting: what is trained with.
        path: its checkpoint.
        losses: the loss of each step.
        seconds: the time until the end of each step; loading, saving and drawing don't count.
        state_bytes: what the optimizer keeps between steps.
        failed: why the run ended before its time, or None.
    """

    setting: Setting
    path: Path
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    state_bytes: int = 0
    failed: str | None = None

    def mean(self, window: int) -> list[float]:
        """The loss, averaged over as many steps up to each."""
        total, means = 0.0, []
        for step, loss in enumerate(self.losses):
            total += loss - (self.losses[step - window] if step >= window else 0.0)
            means.append(total / min(step + 1, window))
        return means

    def reaches(self, target: float, window: int) -> int | None:
        """The number of steps after which the averaged loss was at most the target."""
        return next((step + 1 for step, loss in enumerate(self.mean(window)) if loss <= target), None)


def train_run(run: Run, task: Task, seed: int, steps: int, about: Mapping[str, Any], show: Callable[[], None]) -> None:
    """Train a run to its end, from where it is.

    Args:
        run: what is trained; it grows.
        task: makes the model and its losses.
        seed: of the task.
        steps: how many it has in the end.
        about: what the checkpoint says of itself.
        show: called after each step.

    Raises:
        Exception: whatever the task or the optimizer raises.
    """
    model, losses = begin(task, seed)
    optimizer = run.setting.optimizer(model)
    if run.losses:
        with torch.no_grad():
            for _ in islice(losses, len(run.losses)):
                pass
        load(run.path, optimizer, model)
    saved = time.monotonic()
    while len(run.losses) < steps and run.failed is None:
        step(run, model, optimizer, losses)
        if time.monotonic() - saved > PAUSE:
            save_run(run, model, optimizer, about)
            saved = time.monotonic()
        show()
    run.state_bytes = bytes_of_state(optimizer)
    if run.failed is None:
        save_run(run, model, optimizer, about)


def step(run: Run, model: nn.Module, optimizer: steprule.Optimizer, losses: Iterator[Tensor]) -> None:
    begun = time.perf_counter()
    optimizer.zero_grad()
    loss = next(losses, None)
    if loss is None:
        raise RuntimeError(f"the task has only {counted(len(run.losses), 'loss')}")
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    value = loss.item()
    if not math.isfinite(value):
        run.failed = f"the loss is {value} at step {len(run.losses) + 1}"
        return
    run.losses.append(value)
    run.seconds.append((run.seconds[-1] if run.seconds else 0.0) + time.perf_counter() - begun)


def bytes_of_state(optimizer: steprule.Optimizer) -> int:
    values = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor))


def save_run(run: Run, model: nn.Module, optimizer: steprule.Optimizer, about: Mapping[str, Any]) -> None:
    save(
        run.path,
        optimizer,
        model,
        rng=True,
        about=dict(about, setting=run.setting.text),
        losses=run.losses,
        seconds=run.seconds,
        state_bytes=bytes_of_state(optimizer),
    )


def restore(setting: Setting, path: Path, about: Mapping[str, Any]) -> Run:
    """A run as its checkpoint has it; a new one if there is none.

    Raises:
        CheckpointError: the file is damaged, or of something else.
    """
    if not path.exists():
        return Run(setting, path)
    extra = load(path, None)
    if extra.get("about") != dict(about, setting=setting.text):
        raise CheckpointError(f"{path} is not a checkpoint of {setting.text!r} in this comparison")
    return Run(setting, path, extra["losses"], extra["seconds"], extra["state_bytes"])
