"""Threads that share the chunks of a launch."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeAlias

import torch

from steprule.portability.forking import at_fork

__all__ = ["ALONE", "run_on_threads"]

ALONE = 100_000
"""Below this many elements waking another thread costs more than it brings."""


Work: TypeAlias = tuple[Callable[[int], None], int, bool]

SMALL, HALF = float.fromhex("0x1p-1022"), 0.5


def flushing() -> bool:
    """Whether this thread rounds subnormal numbers to zero, as ``torch.set_flush_denormal`` makes it."""
    return SMALL * HALF == 0.0


class Pool:
    """Worker threads, each waiting on its own queue. One launch has them at a time."""

    def __init__(self) -> None:
        self.busy = threading.Lock()
        self.threads: list[threading.Thread] = []
        self.queues: list[SimpleQueue[Work | None]] = []
        self.done: SimpleQueue[None] = SimpleQueue()

    def work(self, queue: SimpleQueue[Work | None]) -> None:
        while (task := queue.get()) is not None:
            kernel, frame, flush = task
            if flush != flushing():
                torch.set_flush_denormal(flush)
            kernel(frame)
            self.done.put(None)

    def grow(self, helpers: int) -> None:
        """As many threads as that, or as many as the system allows."""
        while len(self.queues) < helpers:
            queue: SimpleQueue[Work | None] = SimpleQueue()
            thread = threading.Thread(target=self.work, args=(queue,), daemon=True, name="steprule")
            self.queues.append(queue)  # before it starts, so that it is ended whatever comes between
            self.threads.append(thread)
            try:
                thread.start()
            except (RuntimeError, MemoryError):
                self.queues.pop()
                self.threads.pop()
                return

    def run(self, kernel: Callable[[int], None], frame: int, helpers: int) -> None:
        try:
            self.grow(helpers)
            queues, flush = self.queues[:helpers], flushing()
            for queue in queues:
                queue.put((kernel, frame, flush))
            kernel(frame)
            for _ in queues:
                self.done.get()
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """After Ctrl-C, or whatever else a signal's handler raises: let the workers finish, for they write to tensors,
        and start anew. A second one meanwhile changes nothing."""
        renew(self)
        for queue in self.queues:
            queue.put(None)
        for thread in self.threads:
            while thread.is_alive():
                with contextlib.suppress(BaseException):
                    thread.join()


pool = Pool()


def renew(ended: Pool | None = None) -> None:
    """A new pool in place of one that ended; a forked child has none of its parent's threads."""
    global pool
    if ended is None or pool is ended:
        pool = Pool()


at_fork(after_in_child=renew)


def run_on_threads(kernel: Any, frame: int, batches: int) -> None:
    """Call ``kernel(frame)`` on as many threads as :func:`torch.get_num_threads` says and there are batches for.

    A thread that finds the workers taken by another launch does all of its chunks itself: who computes a chunk
    makes no difference to its bits.
    """
    helpers, mine = min(torch.get_num_threads(), batches) - 1, pool
    if helpers <= 0 or mine.busy.locked():
        kernel(frame)
        return
    with mine.busy:  # which no signal's handler comes between; rarely it waits for a launch that has just begun
        mine.run(kernel, frame, helpers)
