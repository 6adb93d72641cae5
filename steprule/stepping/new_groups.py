"""A group that comes in: it is filled up and checked before torch takes it, and known here afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from steprule.distributed.flat import is_flat
from steprule.grouping.membership import refuse_members
from steprule.grouping.overrides import laid
from steprule.grouping.params import refuse_group
from steprule.schedules import separate

from .applying import asked_now
from .options import NOT_HYPER
from .workings import check_hyper, workings

if TYPE_CHECKING:
    from steprule.optimizer import Optimizer

__all__ = ["fill", "filling_defaults", "take_in"]


def fill(optimizer: Optimizer, group: dict[str, Any]) -> None:
    """Name a new group's parameters and lay its hyperparameters over the defaults, all of them checked.

    Raises:
        KeyError, TypeError, ValueError: as :meth:`steprule.Optimizer.add_param_group`; what is no group is torch's.
    """
    if not isinstance(group, dict):
        return
    refuse_group(group)
    params, defaults, roles = group["params"], optimizer.defaults, workings(optimizer).roles
    if "nonfinite" in group:
        raise TypeError("nonfinite is an option of the whole optimizer, not of a group")
    if not isinstance(params, (torch.Tensor, set)):
        group["params"] = list(params.named_parameters() if isinstance(params, nn.Module) else params)
        refuse_members(group["params"], optimizer.param_groups, defaults["differentiable"])
    given = {name: value for name, value in group.items() if name not in NOT_HYPER}
    group.update(laid(roles.lay, defaults, given))
    check_hyper(optimizer, {**defaults, **roles.needed_by(group), **group})


@contextmanager
def filling_defaults(optimizer: Optimizer, group: Any) -> Iterator[None]:
    """The defaults are those that this group lacks: torch fills it up with them, and it may be of another algorithm."""
    own = optimizer.defaults
    try:
        optimizer.defaults = workings(optimizer).roles.filling(group, own) if isinstance(group, dict) else own
        yield
    finally:
        optimizer.defaults = own


def take_in(optimizer: Optimizer) -> None:
    """Know the last group, which has just been made: its schedules, its names, what updates it.

    Raises:
        RuntimeError, TypeError, ValueError: its algorithm is not for its parameters; it is in no more.
    """
    works = workings(optimizer)
    group, index = optimizer.param_groups[-1], len(optimizer.param_groups) - 1
    roles, planner = works.roles, works.planner
    try:
        roles.player(group, optimizer).accept(group)
    except (RuntimeError, TypeError, ValueError):
        optimizer.param_groups.pop()
        raise
    roles.sign(optimizer.param_groups)
    group["schedules"] = separate(group, optimizer.steps_taken)
    works.scheduled |= bool(group["schedules"])
    works.members.keep_names(optimizer.param_groups)
    planner.outdated()
    if any(map(is_flat, group["params"])):
        planner.check_flat(roles.algorithm(group, optimizer), group, index, asked_now(optimizer))
