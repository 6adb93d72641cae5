"""Steps that GradScaler skips: which they are, and how many, while only the GPU knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from steprule.torch_private import FakeTensor, after_all, before_all

if TYPE_CHECKING:
    from steprule.optimizer import Optimizer

__all__ = ["Verdicts", "loss_of", "says_so", "skips", "watched"]

MANY = 64
"""Verdicts that wait to be read at most."""


def skips(optimizer: Optimizer) -> bool:
    """Whether the step about to begin is one to skip.

    Where kernels can look at GradScaler's flag themselves they do, and nobody waits for the GPU; hooks must not see a
    step that is skipped, and so wait.
    """
    found_inf = optimizer.__dict__.get("found_inf")
    if found_inf is None:
        return False
    plan = optimizer._planner.plan
    if plan is not None and plan.asynchronous and not watched(optimizer):
        return False
    return says_so(found_inf)


def says_so(found_inf: torch.Tensor | float) -> bool:
    """Whether GradScaler's flag is set: a plain 0 if it found no gradient; one without a value counts as not set."""
    if isinstance(found_inf, torch.Tensor):
        return not isinstance(found_inf, FakeTensor) and bool(found_inf.item())
    return bool(found_inf)


def watched(optimizer: Optimizer) -> bool:
    """Whether hooks stand around the step."""
    everywhere = before_all or after_all
    return bool(optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks or everywhere)


def loss_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a skipped step gives: the loss of its closure; None without one."""
    closure = args[0] if args else kwargs.get("closure")
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


class Verdicts:
    """Whether steps that kernels decide on were skipped: a GPU says so once it has come as far."""

    def __init__(self) -> None:
        self.waiting: list[tuple[torch.Tensor, torch.cuda.Event | None]] = []
        self.known = 0

    def add(self, found_inf: torch.Tensor) -> None:
        """A step was taken whose flag is not known here yet."""
        if len(self.waiting) == MANY:
            self.known += self.read(MANY // 2)
        if not found_inf.is_cuda:
            self.waiting.append((found_inf.clone(), None))
            return
        if torch.cuda.is_current_stream_capturing():
            return  # a replay has its own flag, and counts no step on the host
        said, event = torch.empty((), dtype=found_inf.dtype, pin_memory=True), torch.cuda.Event()  # type: ignore[no-untyped-call]
        said.copy_(found_inf.reshape(()), non_blocking=True)
        event.record(torch.cuda.current_stream(found_inf.device))
        self.waiting.append((said, event))

    def skipped(self) -> int:
        """How many were skipped since this was last asked."""
        count, self.known = self.known + self.read(len(self.waiting)), 0
        return count

    def read(self, many: int) -> int:
        """How many of the first so many were skipped."""
        first, self.waiting = self.waiting[:many], self.waiting[many:]
        for _, event in first:
            if event is not None:
                event.synchronize()
        return sum(bool(said.item()) for said, _ in first)
