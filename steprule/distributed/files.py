"""One file for any number of processes: who writes it, and how all are kept together while it is written or read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from .agreement import everybody
from .placing import whole
from .shares import Axis, axis_of, is_spread

__all__ = ["Company", "company"]

PATIENCE = 60.0
"""Seconds in which all processes have to call what only all can do."""

ATTENDED: dict[str, int] = {}
"""How often this process has done a thing together with the others."""


class Company:
    """The processes that hold tensors together, while they save or load.

    Args:
        tensors: those that are spread.
    """

    def __init__(self, tensors: Sequence[Any]) -> None:
        meshes = {id(t.device_mesh): t.device_mesh for t in tensors}.values()
        axes = [axis_of(mesh, i) for mesh in meshes for i in range(mesh.ndim) if mesh.size(i) > 1]
        self.axes: list[Axis] = list(dict.fromkeys(axes))
        largest = max(meshes, key=lambda mesh: mesh.size())
        self.ranks: list[int] = sorted(largest.mesh.flatten().tolist())
        self.is_first = dist.get_rank() == self.ranks[0]

    def attend(self, what: str) -> None:
        """Wait until all processes are here; before that nothing is sent to any.

        Raises:
            RuntimeError: not all are, after a while.
        """
        store: Any = dist.distributed_c10d._get_default_store()
        topic = f"steprule/{what}/{'-'.join(map(str, self.ranks))}"
        keys = {rank: f"{topic}/{ATTENDED.get(topic, 0)}/{rank}" for rank in self.ranks}
        own = keys[dist.get_rank()]
        store.set(own, "here")
        try:
            store.wait(list(keys.values()), timedelta(seconds=PATIENCE))
        except Exception as error:
            absent = [rank for rank, key in keys.items() if not store.check([key])]
            store.delete_key(own)
            raise RuntimeError(
                f"steprule.{what}() was called on rank {dist.get_rank()}, and not on {', '.join(map(str, absent))} "
                f"within {PATIENCE:g} seconds: with parameters that several processes hold, every one of them calls it"
            ) from error
        ATTENDED[topic] = ATTENDED.get(topic, 0) + 1

    def compare(self, error: BaseException | None, said: object = None) -> dict[int, Any]:
        """What all have to say, unless one of them has failed.

        Raises:
            RuntimeError: with what another one says went wrong; here ``error`` itself is raised.
        """
        wrong = None if error is None else f"{type(error).__name__}: {error}"
        found = {rank: json.loads(text) for rank, text in everybody(self.axes, json.dumps([wrong, said])).items()}
        if error is not None:
            raise error
        failed = {rank: wrong for rank, (wrong, _) in sorted(found.items()) if wrong is not None}
        if failed:
            raise RuntimeError("; ".join(f"on rank {rank}, {message}" for rank, message in failed.items()))
        return {rank: value for rank, (_, value) in found.items()}

    @contextmanager
    def one_for_all(self) -> Iterator[None]:
        """What fails in the block on one process fails on all.

        Raises:
            RuntimeError: as :meth:`compare`.
        """
        problem: Exception | None = None
        try:
            yield
        except Exception as error:
            problem = error
        self.compare(problem)

    def write(
        self, tensors: Mapping[str, torch.Tensor], write: Callable[[Callable[[torch.Tensor], torch.Tensor]], None]
    ) -> None:
        """Let the first process write a file, for which all bring together one tensor after the other.

        Args:
            tensors: those of the file, of which some are spread.
            write: writes the file; it is given what makes a tensor whole, to be asked for each once.

        Raises:
            RuntimeError: the processes have other tensors to save.
            Exception: what ``write`` raised; on the other processes a RuntimeError that says so.
        """
        spread = [name for name, tensor in tensors.items() if is_spread(tensor)]
        said = self.compare(None, spread)
        order = said[self.ranks[0]]
        for rank, names in sorted(said.items()):
            if missing := sorted(set(order) - set(names)):
                raise RuntimeError(f"rank {rank} has no {missing[0]} to save, which rank {self.ranks[0]} has")
        left = list(order)
        problem: Exception | None = None
        names = {id(tensor): name for name, tensor in tensors.items()}

        def bring(tensor: torch.Tensor) -> torch.Tensor:
            if not is_spread(tensor):
                return tensor
            left.remove(names[id(tensor)])
            return whole(tensor)

        if self.is_first:
            try:
                write(bring)
            except Exception as error:
                problem = error
        for name in list(left):
            bring(tensors[name])
        self.compare(problem)


def company(tensors: Sequence[object]) -> Company | None:
    """Those that hold some of these tensors together; None where this process has all of each."""
    spread = [tensor for tensor in tensors if is_spread(tensor)]
    return Company(spread) if spread else None
