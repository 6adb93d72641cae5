"""The reductions of a step over parameters that several processes hold: one vector, and one collective for each pass
and dimension of a mesh.

Every process lays out the vectors by groups and rules alone, never by the gradients that it happens to have, so that
all take part in the same collectives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from steprule.kernels.between_passes import reduces_before, value
from steprule.kernels.launch import Launch
from steprule.kernels.slots import computed_in
from steprule.rule.expression import Level
from steprule.rule.program import Program

from .agreement import agree, raise_told
from .owners import Job, Owners
from .shares import Axis, Share
from .vector import Vector

__all__ = ["Exchange", "Member"]

END = -1
"""In place of a pass: what comes after the last."""
AFTER, THERE, BACK = -1, -2, -3
"""In place of a turn before a pass: what is reduced after it, and the ways of whole matrices."""


class Member(NamedTuple):
    """A parameter that is a DTensor, with the Program that serves it once it has a gradient."""

    share: Share
    program: Program
    name: str


class Round:
    """What is exchanged at once: which numbers of the vector are whose.

    Args:
        every: all dimensions of meshes along which parameters are cut.

    Attributes:
        own: by parameter and what is reduced of it, its numbers.
        totals: by reduction over all parameters, and by the axes over which parameters are cut, their number.
        present: by parameter, on how many processes it has a gradient.
    """

    def __init__(self, every: Sequence[Axis]) -> None:
        self.vector = Vector(every)
        self.failed = self.vector.place(tuple(every))
        self.own: dict[tuple[int, Any], slice] = {}
        self.totals: dict[int, dict[tuple[Axis, ...], slice]] = {}
        self.largest: set[int] = set()
        self.present: dict[int, slice] = {}
        self.indices: dict[tuple[int, Any], torch.Tensor] = {}

    @property
    def crosses(self) -> bool:
        """Whether there is anything that other processes have to do with."""
        return any(block.axes for block in self.vector.blocks[1:])

    def of(self, launch: Launch, row: int, device: torch.device) -> torch.Tensor:
        """The places of what is reduced of a launch's parameters, one number for each."""
        key = id(launch), row
        if key not in self.indices:
            found = [self.own[id(share), row].start for share in launch.shares]
            self.indices[key] = torch.tensor(found, dtype=torch.long, device=device)
        return self.indices[key]


def after_pass(number: int, members: Sequence[Member], every: Sequence[Axis]) -> Round:
    """What is exchanged after a pass: one number for each parameter, one for all, or those of rows and columns."""
    found = Round(every)
    for share, program, _ in members:
        if number == 0 and share.axes and needs_all(program):
            found.present[id(share)] = found.vector.place(share.axes)
        for row, order in rows_of(program, number):
            largest = program.reductions[row - len(program.inputs)].kind == "max_abs"
            if order is not None:
                own = found.totals.setdefault(order, {})
                if share.axes not in own:
                    own[share.axes] = found.vector.place(share.axes, largest)
                if largest:
                    found.largest.add(order)
            elif share.axes:
                found.own[id(share), row] = found.vector.place(share.axes, largest)
        for k, level in sums_of(program, number):
            axes = share.across(level)
            if axes:
                largest = program.sums[k].kind == "max_abs"
                found.own[id(share), ("sums", k)] = found.vector.place(axes, largest, share.lines(level))
    return found


def before_pass(number: int, turn: int, members: Sequence[Member], every: Sequence[Axis]) -> Round:
    """What is exchanged before a pass: reductions of what is known of rows or columns, the ``turn``-th of each rule."""
    found = Round(every)
    for share, program, _ in members:
        for op in small_reduces(program, number)[turn : turn + 1]:
            level, into = program.small[program.small[op].args[0]].level, program.small[op].level
            axes = share.along(level, into)
            if axes:
                largest = program.small[op].detail == "max_abs"
                found.own[id(share), ("small", op)] = found.vector.place(axes, largest, share.lines(into))
    return found


def jobs_of(member: Member, stage: int) -> list[Job]:
    """The whole matrices that are worked on after a pass."""
    share, program, name = member
    if stage >= len(program.phases):
        return []
    found = []
    for step in program.phases[stage].matrices:
        share.check_matrix(program.name, name)
        dtype = getattr(torch, step.dtype) if step.dtype else computed_in(share.param.dtype)
        found.append(Job(share, name, step.operand, dtype))
    return found


def rows_of(program: Program, stage: int) -> list[tuple[int, int | None]]:
    """The rows of the reduced table that a pass computes, and of those over all parameters, which of these it is."""
    if stage >= len(program.phases):
        return []
    over_all = [i for i, r in enumerate(program.reductions, len(program.inputs)) if r.scope == "all"]
    rows = sorted(row for row, _ in program.phases[stage].reductions)
    return [(row, over_all.index(row) if row in over_all else None) for row in rows]


def sums_of(program: Program, stage: int) -> list[tuple[int, Level]]:
    """The reductions over a dimension that a pass computes, and whether of rows or columns."""
    if stage >= len(program.phases):
        return []
    return sorted(((k, program.sums[k].level) for k, _ in program.phases[stage].sums), key=lambda found: found[0])


def small_reduces(program: Program, stage: int) -> tuple[int, ...]:
    """The reductions that are made of rows or columns right before a pass, or after the last."""
    if stage >= len(program.phases):
        return ()
    return reduces_before(program, len(program.phases) if stage == END else stage)


def needs_all(program: Program) -> bool:
    """Whether all processes have to have a gradient of a parameter if one has: not where it is only reduced with all
    others, to which a part without one adds nothing."""
    return program.by_lines or any(r.scope == "tensor" for r in program.reductions)


class Exchange:
    """What the processes that share parameters tell each other in a step; see :class:`steprule.kernels.part.Exchanger`.

    Args:
        members: the parameters that are DTensors, in the order of the groups, with and without gradients.
        agreed: descriptions of what all processes are known to have in common.
    """

    def __init__(self, members: Sequence[Member], agreed: set[str]) -> None:
        self.members = members
        self.programs: Sequence[Program] = [member.program for member in members]
        self.agreed = agreed
        self.axes = list(dict.fromkeys(axis for m in members for axis in m.share.axes))
        self.device = device_of(members)
        self.depth = max((len(m.program.phases) for m in members), default=0)
        self.rounds: dict[tuple[int, int], Round] = {}
        self.owners: dict[int, Owners] = {}
        self.course = list(self.plan())
        """What is exchanged in a step, in order: by the pass, and the turn before it or what it is after it."""
        self.stages = self.depth if self.course else 0
        before_end = [key for key in self.course if key[0] != END]
        self.checked = {*before_end[-1:], *self.course[-1:]}
        """With what it is looked at whether all are well: the last numbers before parameters are written, and the
        last of all."""
        self.left = list(self.course)
        """What is still to come in this step."""
        self.unknown = True
        """Whether it is still to be found out that all have the same."""
        self.failures: list[Any] = []
        self.known = {id(member.share): member for member in members}
        self.presence: list[tuple[Share, float]] = []
        """On how many processes parameters have gradients."""
        self.unsure: list[tuple[Round, torch.Tensor]] = []
        """Numbers of which it is still to be looked at whether all processes have gradients of the same parameters."""
        self.found: dict[int, list[torch.Tensor]] = {}

    def plan(self) -> Iterator[tuple[int, int]]:
        """Lay out what is exchanged in a step."""
        for stage in (*range(self.depth), END):
            for turn in range(max((len(small_reduces(m.program, stage)) for m in self.members), default=0)):
                self.rounds[stage, turn] = before_pass(stage, turn, self.members, self.axes)
                if self.rounds[stage, turn].crosses:
                    yield stage, turn
            if stage == END:
                return
            self.rounds[stage, AFTER] = after_pass(stage, self.members, self.axes)
            if self.rounds[stage, AFTER].crosses:
                yield stage, AFTER
            jobs = [job for m in self.members for job in jobs_of(m, stage)]
            if jobs:
                self.owners[stage] = Owners(jobs, self.device)
                if self.owners[stage].legs:
                    yield from ((stage, THERE), (stage, BACK))

    # -- the course of a step ------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A step begins."""
        self.left, self.failures, self.unsure, self.presence = list(self.course), [], [], []

    def agree(self) -> None:
        """Make sure, once, that the others are about to do the same; all is prepared."""
        if self.unknown:
            description = self.description()
            text = "\n".join(description)
            if text not in self.agreed:
                left, self.left = self.left, []  # with those that do something else nothing can be exchanged
                agree(self.axes, description, self.device)
                self.left = left
                self.agreed.add(text)
            self.unknown = False

    def add_up_lines(self, stage: int | None, launches: Sequence[Launch]) -> None:
        """Reduce what is known of rows or columns over the whole matrices, before a pass or (None) after the last."""
        number = END if stage is None else stage
        for turn in range(self.depth and max(len(small_reduces(m.program, number)) for m in self.members)):
            now = self.rounds[number, turn]
            if not now.crosses:
                continue
            values = self.fresh(now)
            for launch in launches:
                for op in small_reduces(launch.program, number)[turn : turn + 1] if launch.shares else ():
                    self.put(now, launch, ("small", op), value(launch, op), values)
            self.collect((number, turn), values)
            for launch in launches:
                for op in small_reduces(launch.program, number)[turn : turn + 1] if launch.shares else ():
                    self.take(now, launch, ("small", op), launch.small[op], values)

    def reduce(self, stage: int, launches: Sequence[Launch]) -> None:
        if stage >= self.depth:
            return
        now = self.rounds[stage, AFTER]
        values = self.fresh(now)
        own = [launch for launch in launches if launch.shares]
        for launch in own:
            axes = launch.shares[0].axes
            for row, order in rows_of(launch.program, stage):
                if order is not None:
                    place, total = now.totals[order][axes], torch.as_tensor(launch.total(row)).to(values)
                    join = torch.maximum if order in now.largest else torch.add
                    values[place] = join(values[place], total)
                elif axes:
                    values[now.of(launch, row, self.device)] = launch.reduced(row).to(self.device)
            for k, _ in sums_of(launch.program, stage):
                self.put(now, launch, ("sums", k), launch.lines.sums[k], values)
            for share in launch.shares:
                if id(share) in now.present:
                    values[now.present[id(share)]] = 1.0
        if now.crosses:
            self.collect((stage, AFTER), values)
        for launch in own:
            for row, order in rows_of(launch.program, stage):
                if order is None and launch.shares[0].axes:
                    launch.put_each(row, values[now.of(launch, row, self.device)].to(launch.params[0].device))
            for k, _ in sums_of(launch.program, stage):
                self.take(now, launch, ("sums", k), launch.lines.sums[k], values)
        for order, places in now.totals.items():
            self.found[order] = [values[place][0] for place in places.values()]

    def totals(self, order: int) -> list[Any]:
        return self.found.get(order, [])

    def total_of(self, name: str) -> float:
        for member in self.members:
            row = dict(member.program.tracked).get(name)
            orders = [order for i in range(self.depth) for r, order in rows_of(member.program, i) if r == row]
            if row is not None and orders and orders[0] is not None:
                return float(sum(self.totals(orders[0])))
        return 0.0

    def largest(self, flag: torch.Tensor) -> torch.Tensor:
        sent = flag.to(self.device)
        for axis in self.axes:
            dist.all_reduce(sent, op=dist.ReduceOp.MAX, group=axis.group)
        return sent.to(flag.device)

    def fresh(self, now: Round) -> torch.Tensor:
        return torch.zeros(now.vector.size, dtype=torch.float64, device=self.device)

    def put(self, now: Round, launch: Launch, what: Any, table: torch.Tensor, values: torch.Tensor) -> None:
        """Bring a launch's numbers, one parameter's after the other's, into the vector."""
        start = 0
        for share, count in zip(launch.shares, numbers_each(launch, what), strict=True):
            # of a part without elements no pass writes anything, and what the last step left still stands there
            if (place := now.own.get((id(share), what))) and share.param.numel():
                values[place] = table[start : start + count].to(self.device)
            start += count

    def take(self, now: Round, launch: Launch, what: Any, table: torch.Tensor, values: torch.Tensor) -> None:
        """Let a launch's numbers be what stands in the vector."""
        start = 0
        for share, count in zip(launch.shares, numbers_each(launch, what), strict=True):
            if place := now.own.get((id(share), what)):
                table[start : start + count] = values[place].to(table.device)
            start += count

    def matrices(self, stage: int, launches: Sequence[Launch]) -> None:
        if stage not in self.owners:
            return
        owners = self.owners[stage]
        places: dict[tuple[int, int], tuple[Launch, int]] = {}
        asked: dict[tuple[int, int], tuple[Any, ...]] = {}
        for launch in launches if any(launch.shares for launch in launches) else ():
            for step in launch.program.phases[stage].matrices if launch.shares else ():
                numbers = launch.matrix_numbers(step)
                for i, share in enumerate(launch.shares):
                    places[id(share), step.operand] = launch, i
                    asked[id(share), step.operand] = step.function, numbers[i]
        for job in owners.jobs:
            place = places.get((id(job.share), job.operand))
            job.present = float(place is not None)
            job.piece = None
            if place is not None:
                job.piece = place[0].operand_tensors(job.operand)[place[1]]
        self.travel((stage, THERE), owners.there)
        owners.work(lambda job: asked[id(job.share), job.operand])
        self.travel((stage, BACK), owners.back)
        for job in owners.jobs:
            place = places.get((id(job.share), job.operand))
            if place is not None and job.piece is not None:
                place[0].operand_tensors(job.operand)[place[1]] = job.piece.to(place[0].params[0].device)
            job.piece = None

    def travel(self, key: tuple[int, int], way: Callable[[float], float], error: BaseException | None = None) -> None:
        """Let matrices travel one way."""
        if key not in self.course:  # each is where it belongs
            return
        self.left.remove(key)
        self.failures.append(way(float(error is not None)))
        if key[1] == BACK:
            for job in self.owners[key[0]].jobs:
                self.presence.append((job.share, job.present))
        self.look(key, error)

    def collect(self, key: tuple[int, int], values: torch.Tensor, error: BaseException | None = None) -> None:
        """Reduce over the other processes; until it is looked at whether all are well, one that failed takes part with
        zeros."""
        now = self.rounds[key]
        self.left.remove(key)
        values[now.failed] = float(error is not None)
        now.vector.reduce(values)
        self.failures.append(values[now.failed])
        if now.present:
            self.unsure.append((now, values))
        self.look(key, error)

    def look(self, key: tuple[int, int], error: BaseException | None) -> None:
        """With the last numbers before parameters are written, and the last of all, see whether all are well."""
        if key not in self.checked:
            return None
        if any(self.failures):
            self.left = []
            return raise_told(self.axes, error)
        for now, values in self.unsure:
            found = torch.cat([values[place] for place in now.present.values()]).tolist()
            shares = [self.known[key].share for key in now.present]
            self.presence += zip(shares, found, strict=True)
        return self.check_present()

    def check_present(self) -> None:
        """Refuse to go on where some processes have a gradient of a parameter and others have none.

        Raises:
            RuntimeError: naming the parameter.
        """
        for share, count in self.presence:
            size = math.prod(axis.size for axis in share.axes)
            if 0 < count < size:
                self.left = []
                member = self.known[id(share)]
                raise RuntimeError(
                    f"parameter {member.name} ({share.where}) has a gradient on {count:g} of {size} ranks, and "
                    f"{member.program.name} reduces over all of it; let every rank have one, of zeros where it has "
                    "nothing to add"
                )

    def abandon(self, error: BaseException) -> None:
        """Take part in what is still to be exchanged in this step, which has failed here, and let the others know."""
        if self.left:
            self.agree()
        while self.left:
            key = self.left[0]
            if key in self.rounds:
                self.collect(key, self.fresh(self.rounds[key]), error)
                continue
            owners = self.owners[key[0]]
            for job in owners.jobs:
                job.present, job.piece = 0.0, None
            self.travel(key, owners.there if key[1] == THERE else owners.back, error)

    def description(self) -> list[str]:
        """What all processes have to have in common."""
        return [
            f"{m.program.name} for parameter {m.name} of shape {m.share.shape}, {m.share.where}, with "
            f"{len(m.program.phases)} passes that reduce {[(r.kind, r.scope) for r in m.program.reductions]}"
            for m in self.members
        ]


def numbers_each(launch: Launch, what: tuple[str, int]) -> list[int]:
    """How many numbers each parameter has: one for each row, column, matrix or channel."""
    kind, number = what
    level = launch.program.sums[number].level if kind == "sums" else launch.program.small[number].level
    starts = launch.lines.sides[level].starts
    return [int(n) for n in starts[1:] - starts[:-1]]


def device_of(members: Sequence[Member]) -> torch.device:
    """Where the processes of the parameters' meshes can exchange numbers."""
    kinds = {m.share.whole.device_mesh.device_type for m in members}
    kind = "cpu" if kinds <= {"cpu"} else next(iter(kinds - {"cpu"}))
    return torch.device(kind, torch.get_device_module(kind).current_device()) if kind != "cpu" else torch.device("cpu")
