"""Whole matrices, of which every process holds a part: each travels to one process that works on it, and its parts
travel back.

The dimensions of a parameter's mesh are gone through one after the other, with one all-to-all for each and all matrices
in it: cuts are undone on the way there, and made again on the way back. Where a dimension holds copies, nothing travels
on the way there, and the way back makes copies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from .shares import Axis, Share

__all__ = ["Job", "Owners"]

ALIGNMENT = 16
"""Every piece begins at a multiple of so many bytes, from which a GPU reads as much at once."""


@dataclass(eq=False)
class Job:
    """One matrix that is worked on as a whole.

    Attributes:
        share: the parameter.
        name: what a person calls it.
        operand: which operand of the parameter's Program it is.
        dtype: in which it travels.
        owner: along each dimension of the mesh, the place of the process that works on it.
        piece: what of it is here now, a matrix; None where nothing is.
        present: on how many processes the parameter has a gradient, as far as this one knows.
    """

    share: Share
    name: str
    operand: int
    dtype: torch.dtype
    owner: dict[Axis, int] = field(default_factory=dict)
    piece: torch.Tensor | None = None
    present: float = 0.0

    @property
    def shape(self) -> tuple[int, int]:
        """That of the whole matrix."""
        return self.share.shape[0], math.prod(self.share.shape[1:])

    @property
    def work(self) -> int:
        """How long products take, but for a factor."""
        short, long = sorted(self.shape)
        return short * short * long

    def passes_here(self, legs: int) -> bool:
        """Whether this process has to do with it after so many legs of the way there."""
        return all(self.owner[axis] == axis.rank for axis, _ in self.share.way[:legs])


def assign(jobs: Sequence[Job]) -> None:
    """Give every matrix an owner among the processes of its mesh: the largest first, each to whom has least to do."""
    loads: dict[tuple[Axis, ...], list[int]] = {}
    for job in sorted(jobs, key=lambda job: -job.work):
        axes = tuple(axis for axis, _ in job.share.way)
        known = loads.setdefault(axes, [0] * math.prod(axis.size for axis in axes))
        place = min(range(len(known)), key=known.__getitem__)
        known[place] += job.work
        for axis in axes:
            place, job.owner[axis] = divmod(place, axis.size)


@dataclass
class Leg:
    """All matrices that travel along one dimension of a mesh.

    Attributes:
        axis: the processes.
        number: the how many-th leg of their way there it is.
        jobs: those that this process has to do with.
        joins: whether any is in pieces along it; the others are copies there.
    """

    axis: Axis
    number: int
    jobs: list[Job]
    joins: bool

    def cut(self, job: Job) -> int | None:
        """The side of a matrix that is cut along it; None where there are copies."""
        return job.share.way[self.number][1]


class Owners:
    """The matrices of one pass, and the ways that they take.

    Args:
        jobs: the matrices, in the same order on every process.
        device: where what is sent has to be.
    """

    def __init__(self, jobs: Sequence[Job], device: torch.device) -> None:
        self.jobs = jobs
        self.device = device
        assign(jobs)
        self.legs: list[Leg] = []
        for number in range(max((len(job.share.way) for job in jobs), default=0)):
            found: dict[Axis, list[Job]] = {}
            for job in jobs:
                if number < len(job.share.way):
                    found.setdefault(job.share.way[number][0], []).append(job)
            for axis, own in found.items():
                here = [job for job in own if job.passes_here(number)]
                self.legs.append(Leg(axis, number, here, any(job.share.way[number][1] is not None for job in own)))

    def there(self, failed: float) -> float:
        """Bring all matrices to their owners.

        Args:
            failed: more than 0 where this process has failed and only takes part.

        Returns:
            More than 0 where some process has.
        """
        for leg in self.legs:
            if leg.joins:
                failed = self.join(leg, failed)
        return failed

    def back(self, failed: float) -> float:
        """Bring all parts back; see :meth:`there`."""
        for leg in reversed(self.legs):
            failed = self.part(leg, failed)
        return failed

    def join(self, leg: Leg, failed: float) -> float:
        """Every piece goes to the process whose place is the owner's."""
        axis, moving = leg.axis, [job for job in leg.jobs if leg.cut(job) is not None]
        sent = [[job for job in moving if job.owner[axis] == place] for place in range(axis.size)]
        mine = sent[axis.rank]
        shapes = [[job.share.extents(leg.number, place) for job in mine] for place in range(axis.size)]
        out = [[(job, job.share.extents(leg.number, axis.rank), job.piece) for job in own] for own in sent]
        found, failed = self.exchange(axis, out, [list(zip(mine, own, strict=True)) for own in shapes], failed)
        for job in moving:
            job.piece = None
        for i, job in enumerate(mine):
            job.present = sum(found[place][i][0] for place in range(axis.size))
            job.piece = torch.cat([found[place][i][1] for place in range(axis.size)], dim=leg.cut(job) or 0)
        return failed

    def part(self, leg: Leg, failed: float) -> float:
        """Every process gets its piece, or a copy, from the one whose place is the owner's."""
        axis = leg.axis
        mine = [job for job in leg.jobs if job.owner[axis] == axis.rank]
        out = [[(job, *piece_of(job, leg, place)) for job in mine] for place in range(axis.size)]
        own = [[job for job in leg.jobs if job.owner[axis] == place] for place in range(axis.size)]
        wanted = [[(job, job.share.extents(leg.number, axis.rank)) for job in jobs] for jobs in own]
        found, failed = self.exchange(axis, out, wanted, failed)
        for jobs, pieces in zip(own, found, strict=True):
            for job, (present, piece) in zip(jobs, pieces, strict=True):
                job.present, job.piece = present, piece
        return failed

    def work(self, asked: Callable[[Job], tuple[Any, ...]]) -> None:
        """Work on the matrices that are here, those of one kind together.

        Args:
            asked: for a matrix, the function of stacks, and the numbers that it is given.
        """
        stacks: dict[tuple[Any, ...], list[Job]] = {}
        for job in self.jobs:
            if job.passes_here(len(job.share.way)) and job.piece is not None and job.present:
                stacks.setdefault((job.shape, job.dtype, *asked(job)), []).append(job)
        for (_, _, function, numbers), jobs in stacks.items():
            stack = torch.stack([job.piece.to(job.share.param.device) for job in jobs if job.piece is not None])
            for job, matrix in zip(jobs, worked(function, stack, numbers), strict=True):
                job.piece = matrix

    def exchange(
        self,
        axis: Axis,
        sent: Sequence[Sequence[tuple[Job, tuple[int, int], torch.Tensor | None]]],
        wanted: Sequence[Sequence[tuple[Job, tuple[int, int]]]],
        failed: float,
    ) -> tuple[list[list[tuple[float, torch.Tensor]]], float]:
        """One all-to-all of pieces of matrices.

        Args:
            axis: among whom.
            sent: for each process the pieces that it gets, and their shapes; None for zeros.
            wanted: for each process the shapes of the pieces that come from it.
            failed: whether this process, or one of which it knows, has failed.

        Returns:
            From each process the pieces, each with the number of processes that have a gradient; and whether some
            process has failed.
        """
        going = [[(job, shape) for job, shape, _ in own] for own in sent]
        outgoing = torch.zeros(sum(map(length, going)), dtype=torch.uint8, device=self.device)
        start = 0
        for own in sent:
            numbers = torch.tensor([failed, *(job.present for job, _, _ in own)], dtype=torch.float64, device="cpu")
            outgoing[start : start + 8 * len(numbers)].view(torch.float64).copy_(numbers)
            at = start + padded(8 * len(numbers))
            for job, shape, piece in own:
                size = math.prod(shape) * job.dtype.itemsize
                if piece is not None:
                    outgoing[at : at + size].view(job.dtype).view(shape).copy_(piece.reshape(shape))
                at += padded(size)
            start = at
        sizes = list(map(length, wanted))
        incoming = torch.empty(sum(sizes), dtype=torch.uint8, device=self.device)
        dist.all_to_all_single(incoming, outgoing, sizes, list(map(length, going)), group=axis.group)
        messages = torch.split(incoming, sizes)
        heads = [m[: 8 * (1 + len(own))].view(torch.float64) for m, own in zip(messages, wanted, strict=True)]
        known = iter(torch.cat(heads).tolist())
        found: list[list[tuple[float, torch.Tensor]]] = []
        for expected, message in zip(wanted, messages, strict=True):
            failed += next(known)
            pieces, at = [], padded(8 * (1 + len(expected)))
            for job, shape in expected:
                size = math.prod(shape) * job.dtype.itemsize
                pieces.append((next(known), message[at : at + size].view(job.dtype).view(shape)))
                at += padded(size)
            found.append(pieces)
        return found, failed


def piece_of(job: Job, leg: Leg, place: int) -> tuple[tuple[int, int], torch.Tensor | None]:
    """What of a matrix goes back to a place along a dimension of its mesh, and its shape."""
    shape, side = job.share.extents(leg.number, place), leg.cut(job)
    if job.piece is None or side is None:
        return shape, job.piece
    start = sum(job.share.extents(leg.number, before)[side] for before in range(place))
    return shape, job.piece.narrow(side, start, shape[side])


def length(pieces: Sequence[tuple[Job, tuple[int, int]]]) -> int:
    """Bytes of a message: whether the sender has failed, for each piece how many have a gradient, and the pieces."""
    head = padded(8 * (1 + len(pieces)))
    return head + sum(padded(math.prod(shape) * job.dtype.itemsize) for job, shape in pieces)


def padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def worked(function: Callable[..., torch.Tensor], stack: torch.Tensor, numbers: Sequence[float]) -> torch.Tensor:
    """What a matrix function makes of a stack, in the stack's dtype.

    Raises:
        RuntimeError: it is of another shape.
    """
    result = function(stack, *numbers)
    if result.shape != stack.shape:
        raise RuntimeError(
            f"{function.__name__} was given a stack of shape {tuple(stack.shape)} and returned "
            f"{tuple(result.shape)}; a matrix function keeps the shape"
        )
    return result.to(stack.dtype).contiguous()
