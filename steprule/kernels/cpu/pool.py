"""Threads that share the chunks of a launch."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeAlias

import torch

__all__ = ["ALONE", "run_on_threads"]

ALONE = 100_000
"""Below this many elements waking another thread costs more than it brings."""


Work: TypeAlias = tuple[Callable[[int], None], int]


class Pool:
    """Worker threads, each waiting on its own queue. One launch has them at a time."""

    def __init__(self) -> None:
        self.busy = threading.Lock()
        self.threads: list[threading.Thread] = []
        self.queues: list[SimpleQueue[Work | None]] = []
        self.done: SimpleQueue[None] = SimpleQueue()

    def work(self, queue: SimpleQueue[Work | None]) -> None:
        while (task := queue.get()) is not None:
            kernel, frame = task
            kernel(frame)
            self.done.put(None)

    def grow(self, helpers: int) -> None:
        while len(self.queues) < helpers:
            queue: SimpleQueue[Work | None] = SimpleQueue()
            thread = threading.Thread(target=self.work, args=(queue,), daemon=True, name="steprule")
            thread.start()
            self.threads.append(thread)
            self.queues.append(queue)

    def run(self, kernel: Callable[[int], None], frame: int, helpers: int) -> None:
        self.grow(helpers)
        try:
            for queue in self.queues[:helpers]:
                queue.put((kernel, frame))
            kernel(frame)
            for _ in range(helpers):
                self.done.get()
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """After Ctrl-C: let the workers finish, for they write to tensors, and start anew."""
        renew()
        for queue in self.queues:
            queue.put(None)
        for thread in self.threads:
            while thread.is_alive():
                with contextlib.suppress(KeyboardInterrupt):
                    thread.join()


pool = Pool()


def renew() -> None:
    """A new pool; a forked child has none of its parent's threads."""
    global pool
    pool = Pool()


os.register_at_fork(after_in_child=renew)


def run_on_threads(kernel: Any, frame: int, batches: int) -> None:
    """Call ``kernel(frame)`` on as many threads as :func:`torch.get_num_threads` says and there are batches for.

    A thread that finds the workers taken by another launch does all of its chunks itself: who computes a chunk
    makes no difference to its bits.
    """
    helpers = min(torch.get_num_threads(), batches) - 1
    if helpers > 0 and pool.busy.acquire(blocking=False):
        mine = pool
        try:
            mine.run(kernel, frame, helpers)
        finally:
            mine.busy.release()
    else:
        kernel(frame)
