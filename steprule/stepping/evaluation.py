"""The weights that a model is evaluated with, where modifiers keep other ones than are trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import torch

from steprule.distributed.shares import Share, look_up
from steprule.kernels.choose import launches
from steprule.kernels.launch import Entry
from steprule.kernels.plan import Plan
from steprule.rule.chain import ascended, evaluated
from steprule.rule.links import Negate
from steprule.rule.modifier import Modifier, declared
from steprule.rule.program import Program, array
from steprule.rule.trace import Rule, trace

from .options import NOT_HYPER
from .planning import called, entry_of
from .roles import Roles

__all__ = ["TRAINED", "ascend", "back", "exchange", "exchanged", "restore"]

Group = dict[str, Any]

TRAINED = "trained_weights"
"""The slot that keeps what is trained while other weights are evaluated."""

increment_version = torch._C._increment_version


def exchanged(state: Mapping[Any, Any]) -> bool:
    """Whether evaluation weights stand in any parameter."""
    return any(isinstance(entry, Mapping) and TRAINED in entry for entry in state.values())


def exchange(roles: Roles, groups: Sequence[Group], state: MutableMapping[torch.Tensor, Any]) -> None:
    """Put the weights to evaluate with into the parameters, in one pass; those that are trained become a slot.

    A parameter that was never updated has nothing to exchange.
    """
    entries, programs = [], []
    for index, group in enumerate(groups):
        modifier = roles.evaluated(group)
        for position, p in enumerate(group["params"] if modifier else ()):
            entry = state.get(p)
            if entry and TRAINED not in entry:
                programs.append(evaluation_program(modifier, group, p))
                entries.append(standing(p, entry, index, called(group, index, position)))
    if not entries:
        return
    plan = planned(entries, programs, groups)
    for launch in plan.launches:
        for row in launch.rows:
            row.step -= 1.0  # the updates there were, not the next
    plan.passes(groups, {}, state)
    for launch in plan.launches:
        launch.install(state)
    increment_version(plan.updated)


def standing(p: torch.Tensor, state: dict[str, Any], group: int, name: str) -> Entry:
    """A parameter that is written without a gradient: its own memory stands in for one."""
    entry = entry_of(p, state)
    if isinstance(entry.part, Share):
        look_up([entry.part])
        entry.param = entry.part.param
    entry.grad, entry.group, entry.name, entry.is_new = entry.param, group, name, False
    return entry


def planned(entries: Sequence[Entry], programs: Sequence[Program], groups: Sequence[Group]) -> Plan:
    """A plan outside of a step, which processes do not exchange anything in.

    Raises:
        RuntimeError: they would have to.
    """
    for entry, program in zip(entries, programs, strict=True):
        if entry.part is not None and (program.reductions or program.sums):
            raise RuntimeError(
                f"{program.name} reduces over parameter {entry.name}, of which this process holds a part: it does not "
                "go together with sharded parameters"
            )
    return Plan(launches(programs, entries, groups), groups, [[] for _ in groups])


def evaluation_program(modifier: Modifier | None, group: Group, p: torch.Tensor) -> Program:
    assert modifier is not None
    dtype = None if p.is_complex() else str(p.dtype).removeprefix("torch.")
    return traced(evaluated(modifier, TRAINED), modifier, group, p, {TRAINED: array("parameter", dtype)})


def traced(rule: Rule, modifier: Modifier, group: Group, p: torch.Tensor, slots: Any = (), around: Any = ()) -> Program:
    hyper = {name: value for name, value in group.items() if name not in NOT_HYPER}
    own = {**declared([modifier]), **dict(slots)}
    return trace(rule, hyper, own, name=type(modifier).__name__, modifiers=around, ndim=p.ndim)


def back(state: MutableMapping[torch.Tensor, Any]) -> None:
    """Put the weights that are trained into the parameters again."""
    kept = [(p, entry.pop(TRAINED)) for p, entry in state.items() if isinstance(entry, dict) and TRAINED in entry]
    restore(kept)


def restore(kept: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Copy tensors back to where they came from."""
    pairs = list(kept)
    if pairs:
        with torch.no_grad():
            for p, value in pairs:
                p.detach().copy_(value)
        increment_version([p for p, _ in pairs])


def ascend(
    roles: Roles, groups: Sequence[Group], state: Mapping[torch.Tensor, Any]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Go to where the second gradient of a step is taken.

    Args:
        roles: which modifiers the groups have.
        groups: the parameter groups.
        state: the state of the parameters, which stays as it is.

    Returns:
        The parameters that were moved, with where they were.
    """
    entries, programs = [], []
    for index, group in enumerate(groups):
        modifier = roles.ascending(group)
        for position, p in enumerate(group["params"] if modifier else ()):
            if p.grad is not None and modifier is not None:
                programs.append(traced(ascended(modifier), modifier, group, p, around=[Negate()]))
                entry = standing(p, dict(state.get(p, {})), index, called(group, index, position))
                entry.grad = p.grad if entry.part is None else entry.grad
                entries.append(entry)
    moved = [(entry.param, entry.param.detach().clone()) for entry in entries]
    if entries:
        plan = planned(entries, programs, groups)
        plan.passes(groups, {}, dict(state))
        increment_version(plan.updated)
    return moved
