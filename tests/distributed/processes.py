"""Groups of processes that live as long as the tests: each runs what it is given on every rank, within a deadline."""

from __future__ import annotations

import atexit
import multiprocessing
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PRELOADED = [
    "torch",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "torch.nn.parallel",
    "steprule",
]

STARTING = 120.0
"""Seconds in which processes have to be there: this machine may have others at work."""


class RanksFailedError(AssertionError):
    """Something raised on some rank, or took longer than its deadline."""


def serve(rank: int, size: int, store: str, commands: Connection) -> None:
    """One process of a group."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    commands.send(("there", None))
    while True:
        try:
            function, args = commands.recv()
        except EOFError:
            return
        try:
            torch.manual_seed(0)
            commands.send(("done", function(*args)))
        except BaseException as error:
            commands.send(("failed", f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))


class Group:
    """So many processes."""

    def __init__(self, size: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.commands, self.processes = [], []
        for rank in range(size):
            here, there = context.Pipe()
            args = (rank, size, str(Path(self.folder.name) / "store"), there)
            process = context.Process(target=serve, args=args, daemon=True)
            process.start()
            there.close()
            self.commands.append(here)
            self.processes.append(process)
        self.gather(STARTING)

    def run(self, function: Callable[..., Any], args: tuple[Any, ...], deadline: float) -> list[Any]:
        for commands in self.commands:
            commands.send((function, args))
        return self.gather(deadline)

    def gather(self, deadline: float) -> list[Any]:
        """What every rank answers."""
        end = time.monotonic() + deadline
        answers: dict[int, Any] = {}
        failures: dict[int, str] = {}
        ranks = {id(commands): rank for rank, commands in enumerate(self.commands)}
        while len(answers) + len(failures) < len(self.commands) and (left := end - time.monotonic()) > 0:
            waiting = [c for rank, c in enumerate(self.commands) if rank not in answers and rank not in failures]
            for commands in wait(waiting, left):
                assert isinstance(commands, Connection)
                rank = ranks[id(commands)]
                try:
                    kind, value = commands.recv()
                except EOFError:
                    kind, value = "failed", "the process has ended"
                (failures if kind == "failed" else answers)[rank] = value
                if failures:
                    end = min(end, time.monotonic() + 10.0)  # the others may be waiting for it
        hanging = [r for r in range(len(self.commands)) if r not in answers and r not in failures]
        if failures or hanging:
            self.stop()
            said = [f"rank {rank}: {message}" for rank, message in sorted(failures.items())]
            raise RanksFailedError("\n".join([*said, *(f"rank {r} has not answered in time" for r in hanging)]))
        return [answers[rank] for rank in range(len(self.commands))]

    def stop(self) -> None:
        GROUPS.pop(len(self.processes), None)
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
        self.folder.cleanup()


GROUPS: dict[int, Group] = {}


def stop_all() -> None:
    for group in list(GROUPS.values()):
        group.stop()


atexit.register(stop_all)


def on_ranks(size: int, function: Callable[..., Any], *args: Any, deadline: float = 60.0) -> list[Any]:
    """What a function of a module gives on every rank of a group.

    Args:
        size: how many processes.
        function: what to run; it is looked up by name in the processes.
        args: what it is given.
        deadline: seconds after which the processes are killed.

    Raises:
        RanksFailedError: with what was raised, and on which ranks.
    """
    if size not in GROUPS:
        GROUPS[size] = Group(size)
    return GROUPS[size].run(function, args, deadline)
