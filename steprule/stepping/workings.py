"""What an Optimizer works with, beside the groups, the state and the defaults that torch gives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from steprule.grouping.membership import Members
from steprule.schedules import separate

from .counting import Count
from .options import NOT_HYPER
from .planning import Planner
from .roles import Roles

if TYPE_CHECKING:
    from steprule.optimizer import Optimizer

__all__ = ["Workings", "check_hyper", "workings"]


@dataclass
class Workings:
    """The parts of one optimizer; what a step, a load or a change of groups needs is asked of them.

    Attributes:
        roles: which algorithm and which modifiers a group has.
        has_rule: whether the optimizer's class gives an update rule.
        own_options: options that the rule has among its own hyperparameters, and applies itself.
        members: which parameters belong, and what they are called.
        planner: which Program serves which parameter, and until when.
        count: steps taken and skipped.
        nonfinite: what a step does about gradients that are not finite.
        tracked: the norms that are measured.
        guesses: what selectors had to guess, in words.
        scheduled: whether any group has a schedule.
        evaluates: whether the parameters are the weights to evaluate with.
        moved: the parameters that a first step has moved, with where they were.
        inside_step: whether a step of a subclass's own is under way.
    """

    roles: Roles
    has_rule: bool
    own_options: frozenset[str] = frozenset()
    members: Members = field(default_factory=Members)
    planner: Planner = field(default_factory=Planner)
    count: Count = field(default_factory=Count)
    nonfinite: str = "propagate"
    tracked: tuple[str, ...] = ()
    guesses: list[str] = field(default_factory=list)
    scheduled: bool = False
    evaluates: bool = False
    moved: list[tuple[torch.Tensor, torch.Tensor]] | None = None
    inside_step: bool = False


def workings(optimizer: Optimizer) -> Workings:
    """What an optimizer works with."""
    return optimizer._workings


def check_hyper(optimizer: Optimizer, hyper: Mapping[str, Any]) -> None:
    """:meth:`steprule.Optimizer.validate` hyperparameters among which there may be schedules.

    Raises:
        TypeError, ValueError: naming the hyperparameter.
    """
    present = {name: value for name, value in hyper.items() if name not in NOT_HYPER}
    separate(present, optimizer.steps_taken)
    workings(optimizer).roles.validate(present, optimizer.validate)
