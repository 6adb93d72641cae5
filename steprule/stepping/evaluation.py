"""The weights that a model is evaluated with, where modifiers keep other ones than are trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from steprule.distributed.shares import Share, look_up
from steprule.kernels.choose import launches
from steprule.kernels.entry import Entry
from steprule.kernels.plan import Plan
from steprule.portability.torch_private import increment_version, unset_fake_temporarily
from steprule.rule.chain import evaluated
from steprule.rule.modifier import Modifier, declared_slots
from steprule.rule.program import Program
from steprule.rule.slot import array
from steprule.rule.trace import Rule, trace

from .options import NOT_HYPER
from .planning import beside, called, entry_of
from .roles import Roles
from .workings import workings

if TYPE_CHECKING:
    from steprule.optimizer import Optimizer

__all__ = ["TRAINED", "eval", "evaluating", "exchanged", "put_back", "refuse_evaluation", "train"]

Group = dict[str, Any]

TRAINED = "trained_weights"
"""The slot that keeps what is trained while other weights are evaluated."""


def eval(optimizer: Optimizer) -> None:
    """Put the weights to evaluate with into the model, where modifiers keep other ones than are trained.

    Those of :class:`steprule.modifiers.EMA`, ``Lookahead`` and ``ScheduleFree`` are such; of several in a group
    the last one's count. The weights that are trained are kept in the state, and saved with it, until
    :meth:`train` puts them back; a step in between is an error.

    Raises:
        RuntimeError: a step is half done, between :meth:`first_step` and :meth:`second_step`.
    """
    works = workings(optimizer)
    if works.moved is not None:
        raise RuntimeError("a step is half done: call second_step() before eval()")
    if not works.evaluates:
        with unset_fake_temporarily(), works.planner.writing():
            exchange(works.roles, optimizer.param_groups, optimizer.state)
        works.evaluates = True
        works.planner.outdated()


def train(optimizer: Optimizer, mode: bool = True) -> None:
    """Put the weights that are trained into the model again, after :meth:`eval`.

    Args:
        mode: False is :meth:`eval`, as in :meth:`torch.nn.Module.train`.
    """
    works = workings(optimizer)
    if not mode:
        optimizer.eval()
    elif works.evaluates:
        with works.planner.writing():
            back(optimizer.state)
        works.evaluates = False
        works.planner.outdated()


@contextmanager
def evaluating(optimizer: Optimizer) -> Iterator[None]:
    """The weights to evaluate with, as long as the block lasts; see :meth:`eval`.

    Example:
        >>> import torch
        >>> from steprule import SGD
        >>> from steprule.modifiers import EMA
        >>> weight = torch.zeros(1, requires_grad=True)
        >>> optimizer = SGD([weight], lr=1.0, modifiers=[EMA(0.75)])
        >>> weight.grad = torch.ones(1)
        >>> optimizer.step()
        >>> with optimizer.evaluating():
        ...     weight.item()
        -0.25
    """
    before = workings(optimizer).evaluates
    optimizer.eval()
    try:
        yield
    finally:
        if not before:
            optimizer.train()


def refuse_evaluation() -> NoReturn:
    """Refuse a step while the weights are those to evaluate with."""
    raise RuntimeError(
        "the weights in the model are those to evaluate with: call optimizer.train() before the next backward"
    )


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
    own = {**declared_slots([modifier]), **dict(slots)}
    known: dict[str, Any] = dict(modifiers=around, ndim=p.ndim, master=beside(group, p.dtype), parted=False)
    return trace(rule, hyper, own, name=type(modifier).__name__, **known)


def back(state: MutableMapping[torch.Tensor, Any]) -> None:
    """Put the weights that are trained into the parameters again."""
    kept = [(p, entry.pop(TRAINED)) for p, entry in state.items() if isinstance(entry, dict) and TRAINED in entry]
    put_back(kept)


def put_back(kept: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Copy tensors back to where they came from."""
    pairs = list(kept)
    if pairs:
        with torch.no_grad():
            for p, value in pairs:
                p.detach().copy_(value)
        increment_version([p for p, _ in pairs])
