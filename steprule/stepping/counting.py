"""How many steps were taken and how many skipped, while of the last ones only the GPU knows."""

from __future__ import annotations

import torch

__all__ = ["Count", "Verdicts"]

MANY = 64
"""Verdicts that wait to be read at most."""


class Count:
    """The steps of an optimizer.

    Args:
        taken: over all sessions.
        skipped: those that were left out, for gradients were not finite.
    """

    def __init__(self, taken: int = 0, skipped: int = 0) -> None:
        self.taken, self.skipped = taken, skipped
        self.verdicts = Verdicts()
        """Of the steps counted as taken last, whether they were."""

    def settled(self) -> Count:
        """Itself, once the GPUs have said which of the last steps they skipped: it waits for them."""
        if self.verdicts.waiting:
            left = self.verdicts.skipped()
            self.taken, self.skipped = self.taken - left, self.skipped + left
        return self


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
