"""The reductions of a step over parameters that several processes hold: one vector, and one collective for each pass
and dimension of a mesh.

Every process lays out the vector by groups and rules alone, never by the gradients that it happens to have, so that all
take part in the same collectives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from steprule.kernels.launch import Launch
from steprule.rule.program import Program

from .agreement import agree, raise_told
from .shares import Axis, Share

__all__ = ["Exchange", "Member"]


class Member(NamedTuple):
    """A parameter that is a DTensor, with the Program that serves it once it has a gradient."""

    share: Share
    program: Program
    name: str


class Vector:
    """Numbers that are reduced together.

    Args:
        axes: the processes over which each number is to be reduced.
        largest: which of them are maxima; the others are sums.
        every: all axes, in the order in which they are gone through.
        device: where what is sent has to be.
    """

    def __init__(
        self, axes: Sequence[tuple[Axis, ...]], largest: Sequence[bool], every: Sequence[Axis], device: torch.device
    ) -> None:
        self.size = len(axes)
        self.rounds: list[tuple[Axis, torch.Tensor, torch.Tensor]] = []
        for axis in every:
            own = [i for i, among in enumerate(axes) if axis in among]
            sums, maxima = ([i for i in own if largest[i] is kind] for kind in (False, True))
            if own:
                self.rounds.append((axis, indices(sums, device), indices(maxima, device)))

    def reduce(self, values: torch.Tensor) -> None:
        """Reduce numbers in place. Sums and maxima travel together: in what is summed up, every process has a place of
        its own for its maxima."""
        for axis, sums, maxima in self.rounds:
            sent = values.new_zeros(len(sums) + axis.size * len(maxima))
            sent[: len(sums)] = values[sums]
            places = sent[len(sums) :].view(axis.size, len(maxima))
            places[axis.rank] = values[maxima]
            dist.all_reduce(sent, group=axis.group)
            values[sums] = sent[: len(sums)]
            if len(maxima):
                values[maxima] = places.amax(0)


def indices(numbers: Sequence[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.long, device=device)


class Stage:
    """What is exchanged after one pass: which number of the vector is whose.

    Args:
        number: which pass it is.
        members: the parameters.
        every: all axes.
        device: where what is sent has to be.

    Attributes:
        tensors: by parameter and row of the reduced table, the number that is the parameter's own.
        totals: by reduction over all parameters, and by the axes over which parameters are cut, their number.
        present: by parameter, on how many processes it has a gradient.
        largest: which numbers are maxima.
    """

    FAILED = 0

    def __init__(self, number: int, members: Sequence[Member], every: Sequence[Axis], device: torch.device) -> None:
        self.axes: list[tuple[Axis, ...]] = [tuple(every)]
        self.largest = [False]
        self.tensors: dict[tuple[int, int], int] = {}
        self.totals: dict[int, dict[tuple[Axis, ...], int]] = {}
        self.present: dict[int, int] = {}
        for share, program, _ in members:
            if number == 0 and share.axes and needs_all(program):
                self.present[id(share)] = self.place(share.axes)
            for row, order in rows_of(program, number):
                largest = program.reductions[row - len(program.inputs)].kind == "max_abs"
                if order is not None:
                    own = self.totals.setdefault(order, {})
                    if share.axes not in own:
                        own[share.axes] = self.place(share.axes, largest)
                elif share.axes:
                    self.tensors[id(share), row] = self.place(share.axes, largest)
        self.vector = Vector(self.axes, self.largest, every, device)

    def place(self, axes: tuple[Axis, ...], largest: bool = False) -> int:
        """A new number of the vector."""
        self.axes.append(axes)
        self.largest.append(largest)
        return len(self.axes) - 1

    @property
    def crosses(self) -> bool:
        """Whether there is anything that other processes have to do with."""
        return any(self.axes[1:])


def rows_of(program: Program, stage: int) -> list[tuple[int, int | None]]:
    """The rows of the reduced table that a pass computes, and of those over all parameters, which of these it is."""
    if stage >= len(program.phases):
        return []
    over_all = [i for i, r in enumerate(program.reductions, len(program.inputs)) if r.scope == "all"]
    rows = sorted(row for row, _ in program.phases[stage].reductions)
    return [(row, over_all.index(row) if row in over_all else None) for row in rows]


def needs_all(program: Program) -> bool:
    """Whether all processes have to have a gradient of a parameter if one has: not where it is only reduced with all
    others, to which a part without one adds nothing."""
    return any(r.scope == "tensor" for r in program.reductions)


class Exchange:
    """What the processes that share parameters tell each other in a step; see :class:`steprule.kernels.part.Exchange`.

    Args:
        members: the parameters that are DTensors, in the order of the groups, with and without gradients.
        agreed: descriptions of what all processes are known to have in common.
    """

    def __init__(self, members: Sequence[Member], agreed: set[str]) -> None:
        self.members = members
        self.agreed = agreed
        self.axes = list(dict.fromkeys(axis for m in members for axis in m.share.axes))
        self.device = device_of(members)
        depth = max((len(m.program.phases) for m in members), default=0)
        self.layout = [Stage(i, members, self.axes, self.device) for i in range(depth)]
        self.order = [i for i, stage in enumerate(self.layout) if stage.crosses]
        """The passes after which something is exchanged."""
        self.stages = self.order[-1] + 1 if self.order else 0
        self.places: dict[tuple[int, int], torch.Tensor] = {}
        self.left = list(self.order)
        """Those of them that are still to come in this step."""
        self.unknown = True
        """Whether it is still to be found out that all have the same."""
        self.failed: torch.Tensor | None = None
        self.found: dict[int, list[torch.Tensor]] = {}

    # -- the course of a step ------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A step begins."""
        self.left, self.failed = list(self.order), None

    def agree(self) -> None:
        """Make sure, once, that the others are about to do the same; all is prepared."""
        if self.unknown:
            description = self.description()
            text = "\n".join(description)
            if text not in self.agreed:
                agree(self.axes, description, self.device)
                self.agreed.add(text)
            self.unknown = False

    def reduce(self, stage: int, launches: Sequence[Launch]) -> None:
        layout = self.layout[stage] if stage < len(self.layout) else None
        if layout is None:
            return
        values = torch.zeros(len(layout.axes), dtype=torch.float64, device=self.device)
        own = [launch for launch in launches if launch.shares]
        for launch in own:
            for row, order in rows_of(launch.program, stage):
                if order is not None:
                    self.add(layout, layout.totals[order][launch.shares[0].axes], launch.total(row), values)
                elif launch.shares[0].axes:
                    values[self.places_of(launch, row, layout)] = launch.reduced(row).to(self.device)
            here = [layout.present[id(part)] for part in launch.shares if id(part) in layout.present]
            if here:
                values[here] = 1.0
        if stage in self.order:
            self.collect(stage, values)
        for launch in own:
            for row, order in rows_of(launch.program, stage):
                if order is None and launch.shares[0].axes:
                    own_values = values[self.places_of(launch, row, layout)]
                    launch.put_each(row, own_values.to(launch.params[0].device))
        for order, numbers in layout.totals.items():
            self.found[order] = [values[i] for i in numbers.values()]

    def add(self, layout: Stage, place: int, total: Any, values: torch.Tensor) -> None:
        number = torch.as_tensor(total, dtype=torch.float64, device=self.device)
        values[place] = torch.maximum(values[place], number) if layout.largest[place] else values[place] + number

    def places_of(self, launch: Launch, row: int, layout: Stage) -> torch.Tensor:
        key = id(launch), row
        if key not in self.places:
            found = [layout.tensors[id(part), row] for part in launch.shares]
            self.places[key] = indices(found, self.device)
        return self.places[key]

    def totals(self, order: int) -> list[Any]:
        return self.found.get(order, [])

    def collect(self, stage: int, values: torch.Tensor, error: BaseException | None = None) -> None:
        """Reduce over the other processes. With the last numbers of a step, before the pass that writes parameters, it
        is looked at whether all are well; until then who has failed takes part with zeros."""
        layout = self.layout[stage]
        self.left.remove(stage)
        values[Stage.FAILED] = float(error is not None)
        layout.vector.reduce(values)
        self.failed = values[Stage.FAILED] if self.failed is None else self.failed + values[Stage.FAILED]
        if layout.present:
            self.check_present(layout, values)
        if not self.left and self.failed.item():
            raise_told(self.axes, error)

    def check_present(self, layout: Stage, values: torch.Tensor) -> None:
        """Refuse to go on where some processes have a gradient of a parameter and others have none.

        Raises:
            RuntimeError: naming the parameter.
        """
        counts = values[list(layout.present.values())].tolist()
        shares = {id(m.share): m for m in self.members}
        for found, key in zip(counts, layout.present, strict=True):
            member = shares[key]
            size = math.prod(axis.size for axis in member.share.axes)
            if 0 < found < size:
                self.left = []
                raise RuntimeError(
                    f"parameter {member.name} ({member.share.where}) has a gradient on {found:g} of {size} ranks, and "
                    f"{member.program.name} reduces over all of it; let every rank have one, of zeros where it has "
                    "nothing to add"
                )

    def abandon(self, error: BaseException) -> None:
        """Take part in what is still to be exchanged in this step, which has failed here, and let the others know."""
        if self.left:
            self.agree()
        for stage in list(self.left):
            values = torch.zeros(len(self.layout[stage].axes), dtype=torch.float64, device=self.device)
            self.collect(stage, values, error)

    def description(self) -> list[str]:
        """What all processes have to have in common."""
        lines = [
            f"{m.program.name} for parameter {m.name} of shape {m.share.shape}, {m.share.where}" for m in self.members
        ]
        return lines + [f"{len(self.layout[i].axes)} numbers to exchange after pass {i + 1}" for i in self.order]


def device_of(members: Sequence[Member]) -> torch.device:
    """Where the processes of the parameters' meshes can exchange numbers."""
    kinds = {m.share.whole.device_mesh.device_type for m in members}
    kind = "cpu" if kinds <= {"cpu"} else next(iter(kinds - {"cpu"}))
    return torch.device(kind, torch.get_device_module(kind).current_device()) if kind != "cpu" else torch.device("cpu")
