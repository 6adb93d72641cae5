"""Threads that share the chunks of a launch."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import torch

__all__ = ["ALONE", "run_on_threads"]

ALONE = 100_000
"""Below this many elements waking another thread costs more than it brings."""


class Pool:
    """Worker threads, each waiting on its own queue. One launch has them at a time."""

    def __init__(self) -> None:
        self.busy = threading.Lock()
        self.queues: list[SimpleQueue[tuple[Callable[[int], None], int]]] = []
        self.done: SimpleQueue[None] = SimpleQueue()

    def work(self, queue: SimpleQueue[tuple[Callable[[int], None], int]]) -> None:
        while True:
            kernel, frame = queue.get()
            kernel(frame)
            self.done.put(None)

    def run(self, kernel: Callable[[int], None], frame: int, helpers: int) -> None:
        while len(self.queues) < helpers:
            queue: SimpleQueue[tuple[Callable[[int], None], int]] = SimpleQueue()
            threading.Thread(target=self.work, args=(queue,), daemon=True, name="steprule").start()
            self.queues.append(queue)
        for queue in self.queues[:helpers]:
            queue.put((kernel, frame))
        kernel(frame)
        for _ in range(helpers):
            self.done.get()


pool = Pool()


def renew() -> None:
    """A forked child has none of its parent's threads."""
    global pool
    pool = Pool()


os.register_at_fork(after_in_child=renew)


def run_on_threads(kernel: Any, frame: int, elements: int, batch: int, chunks: int) -> None:
    """Call ``kernel(frame)`` on as many threads as :func:`torch.get_num_threads` says and there is work for.

    A thread that finds the workers taken by another launch does all of its chunks itself: who computes a chunk
    makes no difference to its bits.
    """
    helpers = 0 if elements < ALONE else min(torch.get_num_threads(), -(-chunks // batch)) - 1
    if helpers > 0 and pool.busy.acquire(blocking=False):
        mine = pool
        try:
            mine.run(kernel, frame, helpers)
        finally:
            mine.busy.release()
    else:
        kernel(frame)
