"""Large parameters, each updated by itself as soon as its gradient is there."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import is_lazy

from steprule.kernels.answers import Answers, AnswersOfOne
from steprule.kernels.choose import launches, overlaps
from steprule.kernels.cpu.llvm import LLVMLaunch
from steprule.kernels.cpu.singly import SinglyLaunch, runs_singly
from steprule.kernels.entry import Entry
from steprule.kernels.plan import Plan
from steprule.kernels.tensor_guards import still
from steprule.rule.program import Program

from .applying import asked_now
from .backward_refusals import refuse_program
from .planning import admit, called, entry_of
from .workings import workings

if TYPE_CHECKING:
    from steprule.optimizer import Optimizer

__all__ = ["LARGE", "Place", "Singles", "standing_alone"]

LARGE = 2**14
"""Elements of a parameter from which on it is updated by itself; the gradients of smaller ones are no memory to speak
of, and together they take less time."""


@dataclass
class Place:
    """One large parameter, and what updates it."""

    param: torch.Tensor
    group: int
    position: int
    """Its place among the parameters of all groups."""
    name: str
    round: int = 0
    """The step in which it was last updated."""
    plan: Plan | None = None
    """A plan for it alone; None where a launch that several share serves it, or before its first update."""
    launch: SinglyLaunch | None = None
    index: int = 0
    """Its place in that launch."""
    mastered: bool = False
    """Whether something stands beside it."""
    alike: Callable[..., bool] = field(default=lambda _: False, repr=False)
    """Whether a gradient looks like those that the launch is for."""
    grad_dtype: torch.dtype = torch.float32

    @property
    def torn(self) -> bool:
        """Whether an update that broke off may have changed the parameter."""
        return self.launch is not None or (self.plan is not None and self.plan.torn)


class Singles:
    """The large parameters of an optimizer.

    In the first step each gets a plan of its own, which makes its state. From then on those that one pass of machine
    code updates share a launch, whose numbers are computed for all at once, and of which each is run by itself.

    Args:
        optimizer: whose parameters they are.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.places: dict[int, Place] = {}
        self.forget()

    def forget(self) -> None:
        """Find the large parameters anew: groups have others."""
        groups = self.optimizer.param_groups
        self.params = [p for group in groups for p in group["params"]]
        self.lengths = [len(group["params"]) for group in groups]
        chosen, positions = {id(p) for p in standing_alone(self.params)}, iter(range(len(self.params)))
        self.places = {}
        for index, group in enumerate(groups):
            for i, (p, position) in enumerate(zip(group["params"], positions, strict=False)):
                if id(p) in chosen:
                    self.places[id(p)] = Place(p, index, position, called(group, index, i))
        self.drop()

    def drop(self) -> None:
        """Plan everything anew: all plans were given up."""
        self.beside = workings(self.optimizer).planner.beside
        self.launches: list[SinglyLaunch] = []
        self.answers: Answers | None = None
        """What groups say to the Programs of these launches."""
        self.settled = 0
        for place in self.places.values():
            place.plan = place.launch = None

    @property
    def dropped(self) -> bool:
        """Whether all plans were given up."""
        return self.beside is not workings(self.optimizer).planner.beside

    @property
    def outdated(self) -> bool:
        """Whether parameters are others than they were."""
        groups = self.optimizer.param_groups
        params = [p for group in groups for p in group["params"]]
        return [len(group["params"]) for group in groups] != self.lengths or not all(
            map(operator.is_, params, self.params)
        )

    # -- a step --------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Compute the numbers of this step; nothing has changed yet."""
        groups, planner = self.optimizer.param_groups, workings(self.optimizer).planner
        if self.launches and not self.fit():
            planner.settle()
            self.scatter()
        if any(place.plan is not None and self.ready(place) for place in self.places.values()):
            planner.settle()
            self.gather()
        self.share()
        for launch in self.launches:
            launch.inputs = {}
            launch.advance(groups)

    def update(self, place: Place, round: int) -> bool:
        """Update a parameter whose gradient is there.

        Args:
            place: the parameter.
            round: the number of the step.

        Returns:
            Whether it was done; its gradient may be of another kind than those before.
        """
        grad, launch = place.param.grad, place.launch
        if launch is not None:
            if grad is None or not place.alike(grad) or not (address := grad.data_ptr()):
                return False
            launch.run_one(place.index, address)
            return True
        optimizer = self.optimizer
        plan = place.plan
        if plan is None or not self.fits(place, plan):
            plan = self.planned(place, round)
        plan.run(optimizer.param_groups, {}, optimizer.state)
        return True

    def commit(self) -> None:
        """Count what was updated in launches that several share; plans of one parameter have done so."""
        for launch in self.launches:
            launch.commit()

    # -- plans of one parameter ----------------------------------------------------------------------------------

    def fits(self, place: Place, plan: Plan) -> bool:
        """Whether a parameter's own plan still fits."""
        launch = plan.launches[0]
        return (
            not plan.torn
            and plan.answers.hold(self.optimizer.param_groups)
            and self.keeps_state(launch.entries[0])
            and launch.refresh()
        )

    def keeps_state(self, entry: Entry) -> bool:
        found = self.optimizer.state.get(entry.owner)
        return found is entry.state or (found is None and not entry.state)

    def planned(self, place: Place, round: int) -> Plan:
        """A plan for one parameter that has a gradient.

        Raises:
            RuleError, RuntimeError: it can't be served; it is named.
        """
        optimizer, works = self.optimizer, workings(self.optimizer)
        groups, planner, group = optimizer.param_groups, works.planner, optimizer.param_groups[place.group]
        if self.settled != round:
            self.settled = round
            planner.settle()
            works.roles.adopt(groups)
            planner.know(groups)
        entry, grad = planner.entries[place.position], place.param.grad
        assert grad is not None
        entry.group, entry.name = place.group, place.name
        entry.meet(grad, optimizer.state.get(place.param))
        algorithm = works.roles.algorithm(group, optimizer)
        admit(entry, algorithm, group)
        program = planner.program(algorithm, group, asked_now(optimizer), place.param)
        refuse_program(program, place.name)
        launch = launches([program], [entry], groups)[0]
        plan = Plan([launch], [{**group, "params": [place.param]}], [[program]])
        plan.answers = AnswersOfOne(place.group, groups, launch.program)
        plan.known = []  # nobody asks it for those of the others
        self.beside[:] = [known for known in self.beside if place.plan is None or known not in place.plan.launches]
        self.beside.append(launch)
        place.plan, place.alike, place.grad_dtype = plan, still([grad]), grad.dtype
        place.mastered = program.master is not None
        return plan

    # -- launches that several share -----------------------------------------------------------------------------

    def ready(self, place: Place) -> bool:
        """Whether a parameter that has a plan of its own may share a launch, and its state is as that has left it."""
        assert place.plan is not None
        launch = place.plan.launches[0]
        entry = launch.entries[0]
        return (
            place.plan.answers.hold(self.optimizer.param_groups)
            and type(launch) is LLVMLaunch
            and not (launch.sparse or entry.strange or entry.implicit or place.plan.torn)
            and runs_singly(launch.program)
            and self.keeps_state(entry)
            and launch.states_are_kept()
            and list(map(torch.Tensor.data_ptr, launch.held)) == launch.held_pointers
            and launch.numbers.tobytes() == launch.expected
        )

    def gather(self) -> None:
        """Let all that can share launches; they go on with the state as it is."""
        groups, state = self.optimizer.param_groups, self.optimizer.state
        found: dict[Any, list[Place]] = {}
        for place in self.places.values():
            if place.plan is not None and self.ready(place):
                found.setdefault(place.plan.launches[0].entries[0].kind, []).append(place)
            elif place.launch is not None:
                found.setdefault(place.launch.entries[place.index].kind, []).append(place)
        made = []
        for kind, members in found.items():
            entries = [self.entry(place) for place in members]
            for entry, place in zip(entries, members, strict=True):
                entry.meet(torch.empty(1, dtype=place.grad_dtype), state.get(place.param))
            launch = SinglyLaunch(entries[0].program, entries, groups, kind[1])
            launch.install(state)
            launch.let_go()
            made.append((launch, members))
        self.launches = [launch for launch, _ in made]
        serving: list[dict[int, Program]] = [{} for _ in groups]
        for launch, members in made:
            for i, place in enumerate(members):
                place.plan, place.launch, place.index = None, launch, i
                serving[place.group][id(launch.program)] = launch.program
        self.answers = Answers(groups, [list(own.values()) for own in serving])
        alone = [place.plan.launches[0] for place in self.places.values() if place.plan is not None]
        self.beside[:] = [*self.launches, *alone]

    def entry(self, place: Place) -> Entry:
        if place.launch is not None:
            return place.launch.entries[place.index]
        assert place.plan is not None
        return place.plan.launches[0].entries[0]

    def fit(self) -> bool:
        """Whether launches still fit: the same state, the same answers."""
        return (
            self.answers is not None
            and self.answers.hold(self.optimizer.param_groups)
            and all(self.keeps_state(entry) for launch in self.launches for entry in launch.entries)
            and all([launch.refresh() for launch in self.launches])  # noqa: C419 (faster)
        )

    def share(self) -> None:
        """Let groups with the same numbers have them computed once."""
        alike = self.answers.alike if self.answers is not None else None
        for launch in self.launches:
            if alike is not None and alike is not launch.alike:
                launch.share_numbers(alike)

    def scatter(self) -> None:
        """Let all that share launches be planned anew."""
        for place in self.places.values():
            place.launch = None
        gone, self.launches, self.answers = set(map(id, self.launches)), [], None
        self.beside[:] = [launch for launch in self.beside if id(launch) not in gone]


def standing_alone(params: Sequence[torch.Tensor]) -> Iterable[torch.Tensor]:
    """The parameters that are large and share no memory, each of which stands once."""
    known = [p for p in params if not is_lazy(p)]
    entries = [entry_of(p) for p in known]
    for entry in entries:
        entry.grad = torch.empty(0)
    tangled, seen = overlaps(entries), [id(p) for p in known]
    twice = {key for key in seen if seen.count(key) > 1} if len(set(seen)) < len(seen) else set()
    return [p for p in known if p.numel() >= LARGE and id(p) not in tangled and id(p) not in twice]
