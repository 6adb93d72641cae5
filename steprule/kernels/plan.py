"""The launches of one step, and the order in which their passes and reductions run."""

from __future__ import annotations

import functools
import math
import operator
from collections import Counter
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from steprule.kernels.cpu.awake import part_of
from steprule.portability.torch_private import FakeTensor, dispatch_modes, foreach_norm, increment_version
from steprule.rule.functions import input_key
from steprule.rule.program import Program

from .answers import Answers
from .between_passes import compute_between
from .common import Common
from .gradients import leave_unscaled
from .launch import NO_MODE, Launch
from .part import Exchanger

__all__ = ["Plan", "PlanInTurns"]


class Plan:
    """What a step does while nothing but numbers and gradients change.

    Args:
        launches: which kernels run over which parameters.
        groups: the parameter groups as they are.
        programs: the Programs that serve each group's parameters.
        exchange: how reductions go on over other processes; None where they need not.
    """

    def __init__(
        self,
        launches: Sequence[Launch],
        groups: Sequence[Mapping[str, Any]],
        programs: Sequence[Collection[Program]],
        exchange: Exchanger | None = None,
    ) -> None:
        reduced = {over_all(launch.program) for launch in launches} - {()}
        if len(reduced) > 1:
            found = " and ".join(", ".join(f"{kind} in pass {stage + 1}" for kind, stage in r) for r in sorted(reduced))
            raise RuntimeError(
                f"the rules of {launches[0].program.name} reduce different things over all parameters: {found}; make "
                "the reductions for every group and every shape, before what differs between them"
            )
        self.launches = self.whole = launches
        """Those of the step, and all; they differ where parameters have no gradient that had one before."""
        self.params = [p for group in groups for p in group["params"]]
        self.lengths = [len(group["params"]) for group in groups]
        self.programs = programs
        self.answers = Answers(groups, programs)
        self.exchange = exchange
        served = {id(p) for launch in launches for p in launch.owners}
        self.updated = self.ever_updated = [
            *(p for launch in launches for p in launch.owners),
            *(p for launch in launches if launch.shares for p in launch.params),
        ]
        self.idle = [p for p in self.params if id(p) not in served]
        self.stages = max((len(launch.program.phases) for launch in launches), default=0)
        if exchange is not None:
            self.stages = max(self.stages, exchange.stages)
        self.common = Common(launches)
        self.simple = (
            (exchange is None or not exchange.stages)
            and not self.common.places
            and all(
                len(x.program.phases) == 1
                and not (
                    x.program.reductions or x.program.given or x.program.phases[0].matrices or any(x.program.between)
                )
                for x in launches
            )
        )
        self.thinned = False
        """Whether parameters have lost their gradients that all had one in the step before."""
        self.patient = exchange is None and bool(launches) and all(x.patient for x in launches)
        """Whether parameters may be left out of a step."""
        programs_here = [*(x.program for x in launches), *(exchange.programs if exchange is not None else ())]
        self.awaits = any("awaited" in dict(program.tracked) for program in programs_here)
        """Whether the step is left, once the first pass has found that gradients are not finite."""
        self.torn = False
        """Whether a step has begun to change parameters or state and is not done: it is under way, or broke off."""
        self.known: list[Any] | None = None
        """The states of all parameters after the first step."""
        self.asynchronous = bool(launches) and all(launch.asynchronous for launch in launches)
        self.valueless = bool(launches) and launches[0].valueless
        self.mode = check_kinds(launches)
        """The FakeTensorMode that the passes run in; None for real tensors."""
        self.on_gpu = not self.valueless and any(launch.params[0].is_cuda for launch in launches)

    def current(
        self,
        groups: Sequence[Mapping[str, Any]],
        state: Mapping[torch.Tensor, Any],
    ) -> bool:
        """Whether the plan still fits: same parameters, same state, same kind of gradients, same answers."""
        if not self.fits(groups, state):
            return False
        if self.launches is not self.whole:
            return self.wake() or (self.gather() and all([x.refresh() for x in self.launches]))  # noqa: C419 (faster)
        if all([x.refresh() for x in self.launches]):  # noqa: C419
            return True
        self.thinned = self.patient and self.wake()
        return self.thinned

    def gather(self) -> bool:
        """Let all launches be those of the step, with all of their parameters."""
        self.launches, self.updated = self.whole, self.ever_updated
        return True

    def wake(self, known: bool = False) -> bool:
        """Let the step be over those parameters that have a gradient now; False if all or none have, or more has
        changed than that.

        Args:
            known: whether all launches have just been made or taken up.
        """
        alike, parts = self.answers.alike, []
        for launch in self.whole:
            if alike is not launch.alike:
                launch.share_numbers(alike)
            if (part := part_of(launch, known)) is None:  # type: ignore[arg-type]
                return False
            parts += [part] if part.entries else []
        if not parts or sum(len(x.entries) for x in parts) == sum(len(x.entries) for x in self.whole):
            return False
        for part in parts:
            part.begin()
            part.whole.let_go()
        self.launches = sorted(parts, key=lambda part: self.order[id(part.params[0])]) if len(parts) > 1 else parts
        self.updated = [p for part in parts for p in part.params]
        return True

    @functools.cached_property
    def order(self) -> dict[int, int]:
        """Where each parameter stands among all."""
        return {id(p): i for i, p in enumerate(self.params)}

    def known_inputs(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What a step is given, as its Programs call it.

        Raises:
            ValueError: no rule reads it.
        """
        arrays = {name for launch in self.launches for name, _ in launch.program.given}
        numbers = {key for launch in self.launches for key in launch.program.inputs}
        for name in given:
            if self.launches and name not in arrays and input_key(name) not in numbers:
                raise ValueError(f"inputs[{name!r}] is read by no rule; given({name!r}) in update() reads it")
        return {name if name in arrays else input_key(name): value for name, value in given.items()}

    def take_up(
        self, groups: Sequence[Mapping[str, Any]], state: Mapping[torch.Tensor, Any], before: Plan | None = None
    ) -> bool:
        """Whether the plan fits again, after steps by others, which may have counted in tensors of their own.

        Args:
            groups: the parameter groups as they are.
            state: that of the parameters.
            before: the plan of the step before.
        """
        ran = {id(launch.entries[0]): launch for launch in before.whole} if before is not None else {}
        self.gather()
        if self.patient and all(p.grad is None for p in self.updated):
            return False
        if self.torn or not self.fits(groups, state):
            return False
        for launch in self.launches:
            other = ran.get(id(launch.entries[0]))
            if not ((other is not None and launch.goes_on(other)) or launch.take_up(groups)):
                return False
        self.common = Common(self.launches)
        return self.wake(known=True) if self.patient and any(p.grad is None for p in self.ever_updated) else True

    def may_return(self, groups: Sequence[Mapping[str, Any]], state: Mapping[torch.Tensor, Any]) -> bool:
        """Whether the plan may fit again: its parameters and arrays are still the optimizer's."""
        params = [p for group in groups for p in group["params"]]
        known = self.known
        return (
            len(params) == len(self.params)
            and all(map(operator.is_, params, self.params))
            and known is not None
            and len(state) == len(known)
            and all(map(operator.is_, state.values(), known))
            and all(launch.arrays_are_kept() for launch in self.whole)
        )

    def fits(self, groups: Sequence[Mapping[str, Any]], state: Mapping[torch.Tensor, Any]) -> bool:
        """Whether parameters and answers are those that the plan was made for."""
        members = [group["params"] for group in groups]
        if list(map(len, members)) != self.lengths:
            return False
        if not all(map(operator.is_, chain.from_iterable(members), self.params)):
            return False
        if not self.answers.hold(groups):
            return False
        for p in self.idle:
            if p.grad is not None:
                return False
        known = self.known
        return known is not None and len(state) == len(known) and all(map(operator.is_, state.values(), known))

    def run(
        self,
        groups: Sequence[Mapping[str, Any]],
        inputs: dict[str, Any],
        state: MutableMapping[torch.Tensor, Any],
    ) -> list[str]:
        """Do the step. The launches have just been made or refreshed.

        Returns:
            Nothing; or, if the step was left and nothing has changed, the parameters whose gradients are not finite.
        """
        if found := self.passes(groups, inputs, state):
            return found
        if "grad_scale" in inputs:
            for launch in self.launches:
                leave_unscaled(launch.params, launch.given, launch.grads, inputs)
        for launch in self.launches:
            launch.commit()
            if not launch.installed:
                launch.install(state)
            launch.let_go()
        if self.common.places or not self.common.installed:
            self.common.finish(self.params, state)
        if self.known is None:
            self.known = list(state.values())
        self.torn = False
        return []

    def count_writes(self) -> None:
        """Let the parameters that were updated count as written to, as torch's own operations do."""
        increment_version(self.updated)
        if self.mastered:
            for launch in self.launches:
                launch.note_versions()

    @functools.cached_property
    def mastered(self) -> bool:
        """Whether something stands beside any of the parameters."""
        return any(launch.program.master is not None for launch in self.whole)

    def passes(
        self,
        groups: Sequence[Mapping[str, Any]],
        inputs: dict[str, Any],
        state: MutableMapping[torch.Tensor, Any],
    ) -> list[str]:
        """Run over the parameters: nothing is counted, and states get no slots that they don't have.

        Returns:
            As :meth:`run`.
        """
        if self.on_gpu and torch.cuda.is_current_stream_capturing():
            self.check_capture(groups)
        if dispatch_modes():
            check_recording(self.launches)
        for launch in self.launches:
            launch.inputs, launch.given = inputs, launch.grads
            if launch.program.inputs or launch.program.given:
                launch.take_given()
        alike = self.answers.alike
        for launch in self.launches:
            if alike is not launch.alike:
                launch.share_numbers(alike)
            launch.advance(groups)
        if self.valueless:
            self.common.begin(self.params, state)
            for launch in self.launches:
                launch.imagine()
            return []
        if self.mode is None:
            return self.computed(state)
        with self.mode:
            return self.computed(state)

    def computed(self, state: MutableMapping[torch.Tensor, Any]) -> list[str]:
        """Do the passes, once the launches have their numbers.

        Returns:
            The names of parameters whose gradients are not finite, where that is awaited: then nothing was written.
        """
        if self.exchange is not None:
            self.exchange.agree()
        if self.simple:
            self.torn = True
            for launch in self.launches:
                launch.run(0)
        else:
            for launch in self.launches:
                launch.small.clear()  # what a step left that failed
            self.common.begin(self.params, state)
            for stage in range(self.stages):
                self.common.agree(stage)
                self.run_stage(stage)
                if stage == 0 and self.awaits and (found := self.not_finite()):
                    self.leave()
                    return found
            self.common.agree(self.stages)
            if self.exchange is not None:
                self.exchange.add_up_lines(None, self.launches)
            for launch in self.launches:
                compute_between(launch, len(launch.program.phases))
        return []

    def not_finite(self) -> list[str]:
        """The names of the parameters whose gradients are not finite, if the norm of all says that there are any."""
        known = self.tracked("awaited")
        norm = known[0][1][0] if known else self.exchange.total_of("awaited") if self.exchange is not None else 0.0
        if isinstance(norm, FakeTensor) or math.isfinite(norm):
            return []
        found = [
            e.name for launch in self.launches for e, g in zip(launch.entries, launch.grads, strict=True) if bad(g)
        ]
        return found or (["of another process"] if self.exchange is not None else [])

    def flag(self, found: torch.Tensor | None) -> torch.Tensor:
        """One number on the device: not zero where a gradient is not finite, or where ``found`` is not zero."""
        grads = [g.coalesce().values() if g.layout == torch.sparse_coo else g for x in self.launches for g in x.grads]
        grads = [torch.view_as_real(g) if g.is_complex() else g for g in grads if g.numel()]
        device = self.params[0].device
        largest = [norm.to(device, torch.float64) for norm in foreach_norm(grads, math.inf)] if grads else []
        bad = torch.zeros((), device=device, dtype=torch.bool) if found is None else found.to(device) != 0
        if largest:
            bad = bad | torch.stack(largest).isfinite().all().logical_not()
        flag = bad.reshape(()).to(torch.float32)
        return flag if self.exchange is None else self.exchange.largest(flag)

    def leave(self) -> None:
        """Let go of what a step holds that is not done."""
        for launch in self.launches:
            launch.drop_temporaries()
            launch.small.clear()
            launch.let_go()

    def check_capture(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Refuse to be captured in a CUDA graph where a replay would not do what the step does.

        Raises:
            RuntimeError: if a group that counts steps is not ``capturable``, or torch operations serve a parameter.
        """
        for launch in self.launches:
            # where no number depends on the step, those of the host are right in every replay
            if launch.counted and not all(groups[entry.group]["capturable"] for entry in launch.entries):
                raise RuntimeError(
                    f"Attempting CUDA graph capture of step() for an instance of {launch.program.name} but "
                    "param_groups' capturable is False."
                )
            for entry in launch.entries:
                if groups[entry.group].get("schedules"):
                    raise RuntimeError(
                        f"a step over parameter {entry.name} can't be captured in a CUDA graph, for its group has "
                        f"schedules ({', '.join(map(str, groups[entry.group]['schedules']))}): every replay would take "
                        "the numbers of this step. Give a tensor on the GPU, lr=torch.tensor(0.1, device='cuda'), and "
                        "fill it before each replay"
                    )
            if not launch.asynchronous:
                raise RuntimeError(
                    f"a step over parameter {launch.entries[0].name} can't be captured in a CUDA graph, for its "
                    f"numbers live on the host: {launch.backend} serves it ({launch.reason})"
                )

    def run_stage(self, stage: int) -> None:
        shared: dict[int, list[tuple[Launch, int]]] = {}
        running = [launch for launch in self.launches if stage < len(launch.program.phases)]
        if self.exchange is not None:
            self.exchange.add_up_lines(stage, running)
        # what a person's function of matrices raises, it raises before anything is written
        for launch in sorted(running, key=lambda launch: launch.changes[stage]):
            compute_between(launch, stage)
            self.torn = self.torn or launch.changes[stage]
            launch.run_stage(stage)
        if self.exchange is not None:
            self.exchange.reduce(stage, running)
            self.exchange.matrices(stage, running)
        for launch in running:
            program = launch.program
            rows = [len(program.inputs) + i for i, r in enumerate(program.reductions) if r.scope == "all"]
            done = {row for row, _ in program.phases[stage].reductions}
            for order, row in enumerate(rows):
                if row in done:
                    shared.setdefault(order, []).append((launch, row))
        for order, places in shared.items():
            first, row = places[0]
            kind = first.program.reductions[row - len(first.program.inputs)].kind
            values = [launch.total(row) for launch, row in places if not (self.exchange and launch.shares)]
            if self.exchange is not None:
                values += self.exchange.totals(order)
            value = reduced_over_launches(kind, values)
            for launch, row in places:
                launch.put(row, value)

    def tracked(self, name: str) -> list[tuple[Launch, Any]]:
        """The values of a tracked reduction: for each launch that has it, one float64 for each tensor."""
        return [
            (launch, launch.reduced(row))
            for launch in self.launches
            for key, row in launch.program.tracked
            if key == name
        ]


def check_kinds(launches: Sequence[Launch]) -> Any:
    """The FakeTensorMode of all tensors; None where they are real.

    Raises:
        RuntimeError: some are fake and some are not, or autograd is to follow the step over some of the fake ones only.
    """
    names = {(x.mode is not NO_MODE, x.valueless): x.entries[0].name for x in launches}
    fake, real = ([name for (kind, _), name in names.items() if kind is wanted] for wanted in (True, False))
    if fake and real:
        raise RuntimeError(f"parameter {fake[0]} is a FakeTensor, parameter {real[0]} is not: a step is over one kind")
    if len(fake) == 2:
        raise RuntimeError(
            f"parameters {fake[0]} and {fake[1]} are FakeTensors, and one alone has differentiable=True: give it to "
            "all groups or to none"
        )
    return launches[0].mode if fake else None


class PlanInTurns(Plan):
    """What a step does where a parameter stands several times in a group: it is updated as often, one update after the
    other, each counted. As in torch, all of them are its first update if the step began without a state."""

    def __init__(self, launches: Sequence[Launch], *args: Any) -> None:
        super().__init__(launches, *args)
        seen: Counter[int] = Counter()
        self.turns: dict[int, list[Launch]] = {}
        for launch in launches:
            self.turns.setdefault(seen[id(launch.params[0])], []).append(launch)
            seen.update(map(id, launch.params))
        twice = [entry.name for launch in self.turns.get(1, ()) for entry in launch.entries]
        if twice and self.exchange is not None and self.exchange.stages:
            raise RuntimeError(
                f"parameter {twice[0]} stands more than once in a group, and processes exchange what is reduced of "
                "parameters, each once; list it once"
            )
        if twice and any(over_all(launch.program) for launch in launches):
            raise RuntimeError(
                f"parameter {twice[0]} stands more than once in a group, and the step reduces over all parameters (as "
                "clip_norm does), where it is not clear how often it counts; list it once"
            )

    def current(self, groups: Any, state: Any) -> bool:
        return False

    def run(self, groups: Sequence[Any], inputs: dict[str, Any], state: MutableMapping[torch.Tensor, Any]) -> list[str]:
        done: list[Launch] = []
        for turn, launches in self.turns.items():
            now = [again(launch, groups, state) for launch in launches] if turn else launches
            if turn and "grad_scale" in inputs:  # the first turn has left gradients unscaled
                inputs = {**inputs, "grad_scale": torch.ones_like(inputs["grad_scale"])}
            part = Plan(now, groups, self.programs)
            try:
                part.run(groups, inputs, state)
            finally:
                self.torn = self.torn or part.torn
            done += now
            self.torn = True
        self.launches = self.whole = done
        self.torn = False
        return []


def check_recording(launches: Sequence[Launch]) -> None:
    """Refuse to run under ``make_fx`` what it can't see.

    Raises:
        RuntimeError: a kernel would update a parameter, and the graph lack the update.
    """
    compiled = [launch for launch in launches if launch.backend != "eager"]
    if compiled and get_proxy_mode() is not None:
        raise RuntimeError(
            f"make_fx can't record the step over parameter {compiled[0].entries[0].name}: {compiled[0].backend} serves "
            "it, which writes to memory behind torch's back; backend='eager' takes torch operations"
        )


def again(launch: Launch, groups: Sequence[Any], state: Mapping[torch.Tensor, Any]) -> Launch:
    """A launch for a later turn, made from the state that the turns before it left."""
    turns = zip(launch.entries, launch.new, strict=True)
    entries = [entry.later(state.get(entry.owner, {}), new) for entry, new in turns]
    return type(launch)(launch.program, entries, groups, launch.reason)


def over_all(program: Program) -> tuple[tuple[str, int], ...]:
    """The reductions over all parameters: of what kind each is, and which pass computes it."""
    stages = {row: stage for stage, phase in enumerate(program.phases) for row, _ in phase.reductions}
    rows = enumerate(program.reductions, len(program.inputs))
    return tuple((r.kind, stages[row]) for row, r in rows if r.scope == "all")


def reduced_over_launches(kind: str, values: Sequence[Any]) -> Any:
    """One number from each launch to one for all, in the order of the launches, where the first tensor is."""
    device = next((value.device for value in values if isinstance(value, torch.Tensor)), None)
    if device is None:
        return functools.reduce(larger_of if kind == "max_abs" else operator.add, values)
    tensors = [torch.as_tensor(value, dtype=torch.float64, device=device) for value in values]
    return functools.reduce(torch.maximum if kind == "max_abs" else torch.add, tensors)


def bad(gradient: torch.Tensor) -> bool:
    values = gradient.coalesce().values() if gradient.layout == torch.sparse_coo else gradient
    return not bool(torch.isfinite(values).all())


def larger_of(a: float, b: float) -> float:
    return a if a != a or a > b else b
