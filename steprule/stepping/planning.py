"""Which Program serves which parameter, and until when."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from steprule.distributed.exchange import Exchange, Member
from steprule.distributed.flat import is_flat, refuse_flat
from steprule.distributed.shares import Share, look_up, share_of
from steprule.kernels.choose import choose, launches
from steprule.kernels.entry import NO_GRAD, Entry
from steprule.kernels.launch import Launch
from steprule.kernels.plan import Plan, PlanInTurns
from steprule.kernels.tracking import parts
from steprule.portability.forking import at_fork
from steprule.portability.torch_private import unset_fake_temporarily
from steprule.rule import links
from steprule.rule.holding import Hold
from steprule.rule.master import Master
from steprule.rule.modifier import Modifier
from steprule.rule.program import Program
from steprule.rule.slot import Slot
from steprule.rule.trace import Rule, trace
from steprule.schedules import Timetable
from steprule.storage import FORMATS, formats_of, master_for

from .options import NOT_HYPER, check_capturable, check_fused

__all__ = ["LOOKS", "Algorithm", "Asked", "Planner", "admit", "beside", "called", "entry_of"]

Group = dict[str, Any]

Asked = tuple[bool, bool, tuple[str, ...], bool]
"""What is asked of every Program of a step: whether gradients are scaled, whether any group clips, what is tracked,
whether nothing may be written before all gradients are known to be finite."""


@dataclass(frozen=True)
class Algorithm:
    """What a class of optimizers says of its updates.

    Attributes:
        name: that of the class.
        update: the rule.
        slots: the declared slots.
        own: the options that the rule applies itself.
        fused: whether it takes torch's switch ``fused``.
        refuse: raises for a parameter that it is not for.
        modifiers: what goes around the rule.
    """

    name: str
    update: Rule
    slots: Mapping[str, Slot]
    own: frozenset[str]
    fused: bool
    refuse: Callable[[torch.Tensor], None]
    modifiers: tuple[Modifier, ...] = ()

    @property
    def called(self) -> tuple[str, ...]:
        """What tells it from others."""
        return (self.name, *(m.name for m in self.modifiers))


BROKEN_OFF = (
    "a step broke off after it had begun to change parameters: some are updated and some are not, and it is not "
    "counted, so that to take it again would update some twice. Load a checkpoint; or, to go on from here all the "
    "same, optimizer.load_state_dict(optimizer.state_dict())"
)


LOOKS = 2
"""The steps in which somebody looks for parameters that train and have no gradient."""
PLANS = 4
"""How many plans are kept: as many states of flags as may come in turns."""
PROGRAMS = 256
"""How many Programs are kept; those of a plan live with it."""


class Planner:
    """Keeps what was traced and found out from step to step: Programs, entries, and the plan of the last step.

    Args:
        lock: that of the planner in whose place it comes, if there is one.
    """

    def __init__(self, lock: Any = None) -> None:
        self.timetable = Timetable()
        self.plan: Plan | None = None
        self.asked: Asked | None = None
        """What the plan was made for."""
        self.programs: list[tuple[tuple[Asked, tuple[str, ...]], Program]] = []
        self.recent: list[tuple[Asked, Plan]] = []
        """The last plans, one of which may fit again: flags and sets of gradients come in turns."""
        self.entries: list[Entry] = []
        self.shares: list[Share] = []
        """What is here of the parameters that several processes hold."""
        self.exchange: Exchange | None = None
        """What they tell each other in a step."""
        self.beside: list[Launch] = []
        """What of a step in backward counts beside the plan; another list once all plans are outdated."""
        self.flagged = False
        """Whether a flag on the device leaves a step out, so that nobody has to wait for it."""
        self.agreed: set[str] = set()
        self.looks = 0
        """In how many steps somebody looked for parameters without a gradient: :func:`.watching.look_for_untrained`."""
        self.without: set[int] = set()
        """The identities of those found in the first of them."""
        self.lock = threading.RLock() if lock is None else lock
        """Held by the thread that takes a step."""
        PLANNERS.add(self)

    def begin(self) -> None:
        """A step begins.

        Raises:
            RuntimeError: the one before broke off half way.
        """
        if self.plan is not None and self.plan.torn:
            raise RuntimeError(BROKEN_OFF)
        if self.shares:
            look_up(self.shares)
        if self.exchange is not None:
            self.exchange.begin()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The optimizer itself writes to parameters, as long as the block lasts; what stands beside them stays."""
        known = [(entry, entry.version_now) for entry in self.entries if entry.version is not None]
        try:
            yield
        finally:
            for entry, before in known:
                entry.version = (entry.version or 0) + entry.version_now - before

    def abandon(self, error: BaseException) -> None:
        """The step has failed: let the processes know that wait for this one."""
        if self.exchange is not None and isinstance(error, Exception):
            self.exchange.abandon(error)
        if self.plan is not None and self.plan.torn and hasattr(error, "add_note"):
            error.add_note(BROKEN_OFF)

    def twin(self, groups: Sequence[Group], state: Mapping[torch.Tensor, Any]) -> Planner:
        """One for the same parameters with a copy of their state, which knows how many updates they have had."""
        self.settle()
        twin = Planner()
        twin.looks, twin.agreed = LOOKS, set(self.agreed)
        twin.know(groups)
        counts = {id(entry.owner): entry.uncounted for entry in self.entries}
        for entry in twin.entries:
            entry.uncounted = counts.get(id(entry.owner), 0)
        return twin

    def outdated(self) -> None:
        """The plan no longer fits; one that broke off is kept, for it must not be forgotten."""
        self.settle()
        self.timetable = Timetable()
        if self.plan is not None and not self.plan.torn:
            self.plan = None
        self.recent.clear()
        self.beside = []

    def settle(self) -> None:
        """Another plan will follow: what this one has counted is told to the entries."""
        for launch in [*(self.plan.whole if self.plan is not None else ()), *self.beside]:
            launch.tell()

    def begin_at(self, step: int, groups: Sequence[Group], state: Mapping[torch.Tensor, Any]) -> None:
        """Parameters whose state does not count their updates have had so many; those without a state, none that
        anybody knows of."""
        self.entries = []
        self.know(groups)
        for entry in self.entries:
            own = state.get(entry.owner)
            entry.uncounted = step if own and "step" not in own else 0

    def recall(self, groups: Sequence[Group], state: Mapping[torch.Tensor, Any], asked: Asked) -> Plan | None:
        """A plan of one of the last steps that fits now, if there is one."""
        self.settle()
        for k, (known, plan) in enumerate(self.recent):
            if known == asked and plan is not self.plan and plan.take_up(groups, state, self.plan):
                self.recent.insert(0, self.recent.pop(k))
                self.plan, self.asked = plan, asked
                self.flagged = plan.asynchronous
                return plan
        return None

    def make(
        self,
        algorithms: Sequence[Algorithm],
        groups: Sequence[Group],
        state: MutableMapping[torch.Tensor, Any],
        asked: Asked,
    ) -> Plan:
        """The plan for the gradients that are present now.

        Args:
            algorithms: what updates each group.
            groups: the parameter groups.
            state: the state of the parameters.
            asked: what the step asks of every Program.

        Raises:
            RuleError: the rule is wrong.
            RuntimeError, AssertionError: a parameter, gradient or state can't be served; it is named.
        """
        self.settle()
        self.recent = [(own, plan) for own, plan in self.recent if plan.may_return(groups, state)]
        entries, absent = self.present(groups, state)
        known = [self.by_dimensions(a, group, asked) for a, group in zip(algorithms, groups, strict=True)]
        self.exchange = self.exchanged(known)
        for entry in entries:
            admit(entry, algorithms[entry.group], groups[entry.group])
        if groups and not entries:
            # a rule that is wrong says so without a gradient
            self.program(algorithms[0], groups[0], asked, torch.empty(1))
        programs = [known[entry.group](entry.param) for entry in entries]
        served: list[dict[int, Program]] = [{} for _ in groups]
        for entry, program in zip(entries, programs, strict=True):
            refuse_flat(entry.owner, program, entry.name)
            served[entry.group][id(program)] = program
        params = [id(p) for group in groups for p in group["params"]]
        kind = Plan if len(set(params)) == len(params) else PlanInTurns
        resting = []
        if kind is Plan and self.exchange is None and entries and not self.beside:
            resting = [(place, e, known[e.group](e.param)) for place, e in absent]
        found = launches(programs, entries, groups, resting)
        for launch in found if resting else ():
            for entry in launch.entries:
                served[entry.group][id(launch.program)] = launch.program
        plan = kind(found, groups, [list(own.values()) for own in served], self.exchange)
        self.plan, self.asked = plan, asked
        self.flagged = plan.asynchronous and self.exchange is None
        if any(entry.grad is NO_GRAD for launch in found for entry in launch.entries):
            plan.wake(known=True)
        if kind is Plan and self.exchange is None:
            self.recent = [(asked, plan), *self.recent][:PLANS]
        return plan

    def present(
        self, groups: Sequence[Group], state: Mapping[torch.Tensor, Any]
    ) -> tuple[list[Entry], list[tuple[int, Entry]]]:
        """The parameters that have a gradient; and those that had one before, each with how many stand before it."""
        self.know(groups)
        places = ((index, i) for index, group in enumerate(groups) for i in range(len(group["params"])))
        present: list[Entry] = []
        absent = []
        for entry, (index, position) in zip(self.entries, places, strict=True):
            part = entry.part
            if part is not None:
                entry.param, entry.group, entry.name = part.param, index, called(groups[index], index, position)
            grad = entry.param.grad if part is None else part.grad
            if grad is not None:
                entry.group, entry.name = index, called(groups[index], index, position)
                entry.meet(grad, state.get(entry.owner))
                present.append(entry)
            elif entry.slots is not None and state.get(entry.owner) is (entry.state or None):
                entry.group, entry.name, entry.grad = index, called(groups[index], index, position), NO_GRAD
                absent.append((len(present), entry))
        return present, absent

    def know(self, groups: Sequence[Group]) -> None:
        """Let the entries be those of the groups' parameters."""
        params = [p for group in groups for p in group["params"]]
        if len(self.entries) == len(params) and all(e.owner is p for e, p in zip(self.entries, params, strict=True)):
            return
        known = {id(entry.owner): entry.uncounted for entry in self.entries}
        self.entries = [entry_of(p) for p in params]
        for entry in self.entries:
            entry.uncounted = known.get(id(entry.owner), 0)
        self.shares = [entry.part for entry in self.entries if isinstance(entry.part, Share)]
        look_up(self.shares)

    def exchanged(self, programs: Sequence[Callable[[torch.Tensor], Program]]) -> Exchange | None:
        """What processes tell each other of the parameters that they share, with and without gradients."""
        if not self.shares:
            return None
        shared = [entry for entry in self.entries if isinstance(entry.part, Share)]
        members = [Member(e.part, programs[e.group](e.param), e.name) for e in shared]  # type: ignore[arg-type]
        return Exchange(members, self.agreed)

    def check_flat(self, algorithm: Algorithm, group: Group, index: int, asked: Asked) -> None:
        """Refuse flat parameters of FSDP for a rule that has to know more than their elements."""
        for position, p in enumerate(group["params"]):
            if is_flat(p):
                refuse_flat(p, self.program(algorithm, group, asked, p), called(group, index, position))

    def by_dimensions(self, algorithm: Algorithm, group: Group, asked: Asked) -> Callable[[torch.Tensor], Program]:
        """The Programs for a group's parameters, by their dtype and the number of their dimensions; most rules have one
        for all."""

        @functools.cache
        def known(dtype: torch.dtype, ndim: int) -> Program:
            return self.program_for(algorithm, group, asked, dtype, ndim)

        return lambda p: known(p.dtype, p.ndim)

    def program(self, algorithm: Algorithm, group: Group, asked: Asked, p: torch.Tensor) -> Program:
        """The Program for a parameter of a group."""
        return self.program_for(algorithm, group, asked, p.dtype, p.ndim)

    def program_for(self, algorithm: Algorithm, group: Group, asked: Asked, dtype: torch.dtype, ndim: int) -> Program:
        """The Program for a group's parameters of a dtype and so many dimensions: one traced before, while its answers
        stay."""
        key, master = (asked, algorithm.called), beside(group, dtype)
        for k in range(len(self.programs) - 1, -1, -1):
            known, program = self.programs[k]
            if (known, program.master) == (key, master) and program.ndim in (None, ndim) and program.serves(group):
                self.programs.append(self.programs.pop(k))  # the latest at the end
                return program
        with unset_fake_temporarily():
            program = trace(
                algorithm.update,
                {name: value for name, value in group.items() if name not in NOT_HYPER},
                algorithm.slots,
                name=algorithm.name,
                modifiers=around(algorithm, *asked),
                ndim=ndim,
                master=master,
            )
        self.programs.append((key, program))
        del self.programs[:-PROGRAMS]
        return program

    def slots_of(self, algorithm: Algorithm, group: Group, param: torch.Tensor) -> dict[str, Slot]:
        """The slots that a parameter of this group has once it was updated."""
        program = self.program(algorithm, group, (False, False, (), False), param)
        counted = {"step": Slot("scalar")} if program.uses_step else {}
        return counted | {slot.name: slot for slot in program.state}

    def kernels(self, algorithm: Algorithm, group: Group, state: Mapping[torch.Tensor, Any], asked: Asked) -> list[str]:
        """The kernels that serve a group's parameters; those without a gradient as if it were like them."""
        program = self.by_dimensions(algorithm, group, asked)
        entries = [entry_of(p, state.get(p, {})) for p in group["params"] if not is_lazy(p)]
        look_up(entry.part for entry in entries if isinstance(entry.part, Share))
        for entry in entries:
            grad = entry.param.grad if entry.part is None else entry.part.grad
            entry.grad = entry.param if grad is None else grad
        return list(dict.fromkeys(choose(program(e.param), e, group)[0].backend for e in entries))


def around(algorithm: Algorithm, scaled: bool, clipped: bool, tracked: Sequence[str], awaited: bool) -> list[Modifier]:
    """What goes around a rule, in the order in which it acts."""
    own, measured = algorithm.own, parts(tracked)
    after = [name for name in measured if name != "grad_norm"]
    return [
        *([links.Unscale()] if scaled else []),
        *([links.MeasureGradient()] if "grad_norm" in measured else []),
        *([links.Clip("clip_norm" not in own)] if clipped else []),
        *([links.Await()] if awaited else []),
        *([] if "maximize" in own else [links.Negate()]),
        *([] if "l1" in own else [links.Penalize()]),
        links.Settled(("algorithm", "modifiers", "master")),
        *algorithm.modifiers,
        *([links.TakenOver(own)] if own else []),
        *([links.MeasureUpdate(after)] if after else []),
        Hold(formats_of, NOISY, "8bit", algorithm.name),
    ]


def beside(group: Mapping[str, Any], dtype: torch.dtype) -> Master | None:
    """What stands beside a group's parameters of a dtype."""
    return master_for(group.get("master"), str(dtype).removeprefix("torch."))


NOISY = frozenset(name for name, found in FORMATS.items() if found.noisy)


def admit(entry: Entry, algorithm: Algorithm, group: Group) -> None:
    """Refuse a parameter of a kind that an algorithm, or an option of its group, is not for."""
    algorithm.refuse(entry.owner)
    if group["capturable"]:
        check_capturable(entry)
    if group["fused"] and algorithm.fused:
        check_fused(entry)


def entry_of(param: torch.Tensor, state: dict[str, Any] | None = None) -> Entry:
    """A parameter that has no gradient yet."""
    part = share_of(param)
    return Entry(param if part is None else part.param, NO_GRAD, {} if state is None else state, 0, "", part=part)


def called(group: Mapping[str, Any], index: int, position: int) -> str:
    """What a person calls a parameter."""
    names = group.get("param_names")
    return repr(names[position]) if names else f"{position} of group {index}"


PLANNERS: weakref.WeakSet[Planner] = weakref.WeakSet()


def renew_locks() -> None:
    """In a forked child there is no thread that another step is under way in."""
    for planner in list(PLANNERS):
        planner.lock = threading.RLock()


at_fork(after_in_child=renew_locks)
