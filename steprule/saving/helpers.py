"""Threads that read, write and compute beside the one that saves or loads."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

__all__ = ["Helpers", "Job"]


class Job:
    """Something that a thread is to do."""

    def __init__(self, call: Callable[..., object], args: tuple[Any, ...]) -> None:
        self._call, self._args = call, args
        self._error: BaseException | None = None
        self._finished = Event()

    def run(self) -> None:
        try:
            self._call(*self._args)
        except BaseException as error:
            self._error = error
        self._finished.set()

    def done(self) -> bool:
        return self._finished.is_set()

    def result(self) -> None:
        """Wait until it is done, and raise what it raised."""
        self._finished.wait()
        if self._error is not None:
            raise self._error


class Helpers:
    """A few threads, made when they are needed.

    Those of :mod:`concurrent.futures` hold a lock while they are given something that every fork asks for: the handler
    of a signal that forks just then would wait for itself.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._threads: list[Thread] = []
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()

    def __enter__(self) -> Helpers:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def submit(self, call: Callable[..., object], *args: Any) -> Job:
        """Let a thread call a function.

        Raises:
            RuntimeError: there is none, and none can be started.
        """
        if len(self._threads) < self._count:
            thread = Thread(target=self._work, daemon=True)
            try:
                thread.start()
            except RuntimeError:
                if not self._threads:
                    raise
            else:
                self._threads.append(thread)
        job = Job(call, args)
        self._jobs.put(job)
        return job

    def shutdown(self) -> None:
        """Wait until everything is done, and let the threads go."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.run()
            del job  # and the memory that it fills
