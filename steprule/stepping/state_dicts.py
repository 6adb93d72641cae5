"""An Optimizer's state dictionary: packed, and loaded by way of a plan in which everything is checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from steprule.distributed.placing import placed
from steprule.distributed.shares import is_spread, joined_as
from steprule.kernels.coding import CODES, decoded, encoded, in_full, is_code, scale_count, scale_name
from steprule.kernels.layout import dense
from steprule.kernels.masters import is_form
from steprule.kernels.masters import joined as whole_weights
from steprule.kernels.slots import asked_dtype, fresh
from steprule.rule.master import MASTER
from steprule.rule.slot import Slot
from steprule.saving.joined import joined
from steprule.saving.loading import Loading, prepare, restoring
from steprule.saving.state_dict import StateDict, pack

from .counting import Count
from .evaluation import exchanged
from .workings import check_hyper, workings

if TYPE_CHECKING:
    from steprule.optimizer import Optimizer

__all__ = ["install", "packed", "plan_load"]


class Holding:
    """How slots are held here, for what is loaded."""

    scale_name = staticmethod(scale_name)
    dtype = staticmethod(asked_dtype)
    encoded = staticmethod(encoded)
    is_code = staticmethod(is_code)
    is_form = staticmethod(is_form)

    @staticmethod
    def numbers(codes: torch.Tensor, scales: Any) -> torch.Tensor | None:
        """What codes stand for; None where the scales are not theirs."""
        count = scale_count(CODES[codes.dtype], codes.numel())
        if not isinstance(scales, torch.Tensor) or (scales.shape, scales.dtype) != ((count,), torch.bfloat16):
            return None
        return decoded(codes, scales.to(codes.device)) if dense(codes) else None


HELD = Holding()


def packed(optimizer: Optimizer, full: bool = False) -> StateDict:
    """The optimizer as a dictionary, between torch's hooks."""
    works = workings(optimizer)
    for pre_hook in optimizer._optimizer_state_dict_pre_hooks.values():
        pre_hook(optimizer)
    members, groups, name = works.members, optimizer.param_groups, type(optimizer).__name__
    works.planner.settle()
    members.keep_names(groups)
    if members.unchecked:
        members.check(groups, name, stacklevel=6)  # two frames are those of not_compiled
    differ = works.evaluates or any(map(works.roles.evaluated, groups))
    weights = ("evaluation" if works.evaluates else "training") if differ else None
    done, frozen = optimizer.steps_taken, members.frozen
    state: Any = optimizer.state
    if full:
        state = {p: numbers(p, entry) if isinstance(entry, dict) else entry for p, entry in state.items()}
    form = pack(groups, state, algorithm=name, step=done, frozen=frozen, weights=weights)
    for post_hook in optimizer._optimizer_state_dict_post_hooks.values():
        changed = post_hook(optimizer, form)
        form = form if changed is None else changed
    return form


def numbers(p: torch.Tensor, entry: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter's state with numbers in place of codes, and its weights in float32 in that of their corrections."""
    held, found = entry.get(MASTER), in_full(entry)
    if not isinstance(held, torch.Tensor) or held.is_floating_point():
        return found
    if not is_spread(held):
        return {**found, MASTER: whole_weights(p, held)}
    here: Any = (p, held)
    local = whole_weights(*(tensor._local_tensor for tensor in here))
    return {**found, MASTER: joined_as(local, p, tuple(p.shape), here[1].placements)}


def plan_load(optimizer: Optimizer, saved: Any, **options: Any) -> Loading:
    """What :meth:`steprule.Optimizer.load_state_dict` would make of the optimizer, everything checked.

    Args:
        optimizer: the optimizer, which stays as it is.
        saved: one state dictionary, or several.
        **options: see :class:`steprule.saving.loading.LoadOptions`.
    """
    works = workings(optimizer)
    members, roles, planner = works.members, works.roles, works.planner
    members.keep_names(optimizer.param_groups)
    if isinstance(saved, (list, tuple)):
        return plan_load(optimizer, joined(saved, optimizer.param_groups), **options)

    def check(group: Mapping[str, Any]) -> None:
        check_hyper(optimizer, {**roles.filling(group, optimizer.defaults), **group})

    def slots(group: dict[str, Any], p: torch.Tensor) -> dict[str, Slot]:
        return planner.slots_of(roles.algorithm(group, optimizer), group, p)

    known: dict[str, Any] = dict(check=check, slots=slots if works.has_rule else None, frozen=members.frozen)
    known |= dict(fresh=fresh, held=HELD, placed=placed)
    return prepare(optimizer, saved, step=optimizer.steps_taken, **known, **options)


def install(optimizer: Optimizer, plan: Loading) -> None:
    """Make the optimizer what was planned; where that raises it is as it was."""
    with restoring(optimizer):
        optimizer._workings = replace(workings(optimizer), count=Count(plan.step, workings(optimizer).count.skipped))
        plan.install(optimizer)
    works = workings(optimizer)
    works.planner.begin_at(plan.step, optimizer.param_groups, optimizer.state)
    works.evaluates = exchanged(optimizer.state) if plan.weights is None else plan.weights == "evaluation"
    works.members.held.update((id(p), p) for _, p in plan.frozen)
