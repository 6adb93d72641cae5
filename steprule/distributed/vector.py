"""Numbers of many parameters that are reduced over processes together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist

from .shares import Axis

__all__ = ["Vector"]


class Span(NamedTuple):
    """Some numbers of a vector: the processes over which they are to be reduced, and whether they are maxima."""

    place: slice
    axes: tuple[Axis, ...]
    largest: bool


class Vector:
    """A vector of float64, of which every process reduces what it has with what the others have in the same place.

    Args:
        every: the dimensions of meshes, in the order in which they are gone through.
    """

    def __init__(self, every: Sequence[Axis]) -> None:
        self.every = every
        self.blocks: list[Span] = []
        self.size = 0
        self.rounds: list[tuple[Axis, torch.Tensor, torch.Tensor]] | None = None

    def place(self, axes: tuple[Axis, ...], largest: bool = False, count: int = 1) -> slice:
        """Room for some numbers, whose sums or maxima are wanted."""
        found = slice(self.size, self.size + count)
        self.blocks.append(Span(found, axes, largest))
        self.size += count
        return found

    def numbers(self, axis: Axis, largest: bool) -> torch.Tensor:
        """The places of all sums, or all maxima, over one dimension of a mesh."""
        own = [b.place for b in self.blocks if b.largest is largest and axis in b.axes]
        ranges = [torch.arange(place.start, place.stop) for place in own]
        return torch.cat([torch.empty(0, dtype=torch.long), *ranges])

    def reduce(self, values: torch.Tensor) -> None:
        """Reduce numbers in place. Sums and maxima travel together: in what is summed up, every process has a place of
        its own for its maxima."""
        if self.rounds is None:
            axes = [axis for axis in self.every if any(axis in block.axes for block in self.blocks)]
            own = [(axis, self.numbers(axis, False), self.numbers(axis, True)) for axis in axes]
            self.rounds = [(axis, sums.to(values.device), maxima.to(values.device)) for axis, sums, maxima in own]
        for axis, sums, maxima in self.rounds:
            sent = values.new_zeros(len(sums) + axis.size * len(maxima))
            sent[: len(sums)] = values[sums]
            places = sent[len(sums) :].view(axis.size, len(maxima))
            places[axis.rank] = values[maxima]
            dist.all_reduce(sent, group=axis.group)
            values[sums] = sent[: len(sums)]
            if len(maxima):
                values[maxima] = places.amax(0)
