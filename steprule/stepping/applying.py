"""One step, once the gradients are there: a plan that fits, its passes, and the count."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from steprule.kernels.plan import Plan
from steprule.portability.torch_private import increment_version, unset_fake_temporarily

from .planning import LOOKS, Asked
from .skipping import says_so, watched
from .watching import look_for_untrained
from .workings import workings

if TYPE_CHECKING:
    from steprule.optimizer import Optimizer

__all__ = ["asked_now", "made_plan", "update_all", "update_all_fake"]


def update_all(optimizer: Optimizer, given: Mapping[str, Any] | None = None) -> None:
    """Update every parameter that has a gradient.

    Args:
        optimizer: the optimizer, whose lock is held.
        given: what the rule reads beside gradients.
    """
    works = workings(optimizer)
    own = optimizer.__dict__
    groups, scale, found_inf = optimizer.param_groups, own.get("grad_scale"), own.get("found_inf")
    if not isinstance(found_inf, torch.Tensor):
        found_inf = None  # a plain 0, of a scaler that has found no gradient
    if works.scheduled:
        works.planner.timetable.write(groups, optimizer.steps_taken)
    asked, planner = asked_now(optimizer, scale is not None), works.planner
    planner.begin()
    try:
        plan = planner.plan
        if plan is None or asked != planner.asked or not plan.current(groups, optimizer.state):
            plan = planner.recall(groups, optimizer.state, asked) or made_plan(optimizer, asked)
            works.members.doubt()
            if planner.looks < LOOKS:
                look_for_untrained(optimizer, stacklevel=6)
        elif plan.thinned:
            plan.thinned = False
            works.members.doubt()
        inputs: dict[str, Any] = {} if scale is None else {"grad_scale": scale}
        if given:
            inputs |= plan.known_inputs(given)
        if works.nonfinite == "skip" and not asked[-1]:
            found_inf = plan.flag(found_inf)
        if found_inf is not None:
            if plan.asynchronous:
                inputs["found_inf"] = found_inf
            elif says_so(found_inf):
                works.count.skipped += 1
                return
        bad = plan.run(groups, inputs, optimizer.state)
    except BaseException as error:
        planner.abandon(error)
        raise
    if bad:
        leave_out(optimizer, bad)
        return
    plan.count_writes()
    if scale is not None:
        increment_version([p.grad for p in plan.updated if p.grad is not None])
    works.count.taken += 1
    if found_inf is not None and plan.asynchronous:
        works.count.verdicts.add(found_inf)


def update_all_fake(optimizer: Optimizer, given: Mapping[str, Any] | None) -> None:
    """:func:`update_all` under FakeTensorMode: tables of numbers are real; parameters that are fake stay so."""
    with unset_fake_temporarily(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        update_all(optimizer, given)


def leave_out(optimizer: Optimizer, names: Sequence[str]) -> None:
    """Say of a step that was not done that gradients of these parameters are not finite."""
    works = workings(optimizer)
    if works.nonfinite == "raise":
        raise RuntimeError(
            f"gradients are not finite: of parameter {', '.join(names)}. Nothing has changed; nonfinite='skip' "
            "leaves such steps out, 'propagate' takes them"
        )
    works.count.skipped += 1


def asked_now(optimizer: Optimizer, scaled: bool = False) -> Asked:
    """What a step asks of every Program."""
    works = workings(optimizer)
    clipped = any([group["clip_norm"] for group in optimizer.param_groups])  # noqa: C419 (a list is faster)
    nonfinite = works.nonfinite
    awaited = nonfinite == "raise" or (nonfinite == "skip" and (not works.planner.flagged or watched(optimizer)))
    return scaled, clipped, works.tracked, awaited


def made_plan(optimizer: Optimizer, asked: Asked) -> Plan:
    """The plan for the gradients that are present now."""
    works = workings(optimizer)
    groups, roles = optimizer.param_groups, works.roles
    works.members.keep_names(groups)
    roles.adopt(groups)
    return works.planner.make([roles.algorithm(group, optimizer) for group in groups], groups, optimizer.state, asked)
