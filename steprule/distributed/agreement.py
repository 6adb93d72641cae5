"""What processes say to each other beside numbers: that they do the same thing, and what went wrong on one of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist

from .shares import Axis

__all__ = ["agree", "raise_told"]


def everybody(axes: Iterable[Axis], said: str) -> dict[int, str]:
    """What every process said that can be reached along some dimensions of meshes, by its rank."""
    known = {dist.get_rank(): said}
    for axis in axes:
        answers: list[dict[int, str]] = [{}] * axis.size
        dist.all_gather_object(answers, known, group=axis.group)
        for answer in answers:
            known |= answer
    return known


def raise_told(axes: Sequence[Axis], error: BaseException | None) -> None:
    """Let all know what went wrong, and raise it where nothing did.

    Raises:
        RuntimeError: with the messages of the other processes.
    """
    said = "" if error is None else f"{type(error).__name__}: {error}"
    told = {rank: message for rank, message in everybody(axes, said).items() if message}
    if error is None:
        failed = "; ".join(f"on rank {rank}, {message}" for rank, message in sorted(told.items()))
        raise RuntimeError(f"the step failed {failed}")


def agree(axes: Sequence[Axis], description: Sequence[str], device: torch.device) -> None:
    """Make sure that all processes have the same before them.

    Args:
        axes: the dimensions of meshes along which they are asked.
        description: what this process has, line by line.
        device: where what is sent has to be.

    Raises:
        RuntimeError: naming the first line in which another one differs.
    """
    digest = hashlib.sha256("\n".join(description).encode()).digest()[:7]
    own = float(int.from_bytes(digest, "little") >> 4)  # which a float64 holds exactly
    differs = torch.zeros(1, dtype=torch.float64, device=device)
    for axis in axes:
        # the largest, and the largest of what is smaller the larger it is: of equal numbers these are the same
        ends = torch.tensor([own, -own], dtype=torch.float64, device=device)
        dist.all_reduce(ends, op=dist.ReduceOp.MAX, group=axis.group)
        differs += (ends[0] != -ends[1]).double()
        dist.all_reduce(differs, op=dist.ReduceOp.MAX, group=axis.group)
    if not differs.item():
        return
    said = everybody(axes, "\n".join(description))
    rank = dist.get_rank()
    for other, text in sorted(said.items()):
        here, there = list(description), text.split("\n")
        here, there = (x + ["nothing more"] * (max(len(here), len(there)) - len(x)) for x in (here, there))
        for mine, theirs in zip(here, there, strict=True):
            if mine != theirs:
                first, second = (mine, theirs) if rank < other else (theirs, mine)
                raise RuntimeError(
                    f"ranks {min(rank, other)} and {max(rank, other)} have different optimizers: the one has {first}, "
                    f"the other {second}; construct and change them alike on all ranks"
                )
    raise RuntimeError("two other ranks have different optimizers; construct and change them alike on all ranks")
