"""What of an Optimizer goes into a pickle or a copy, and how one gets up from it, of earlier versions too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.optim.optimizer import required

from steprule.grouping.membership import Members

from .evaluation import exchanged
from .options import OPTIONS
from .planning import Planner
from .roles import Roles
from .skipping import Verdicts

if TYPE_CHECKING:
    from steprule.optimizer import Optimizer

__all__ = ["kept", "renew"]

KEPT = ("_evaluates", "_guesses", "_own_options", "_roles", "_tracked", "_nonfinite", "_skipped")

ABSENT: dict[str, Any] = {
    "_guesses": [],
    "_own_options": frozenset(),
    "_steps": 0,
    "_tracked": (),
    "_nonfinite": "propagate",
    "_skipped": 0,
}
"""What stands for an attribute that a pickle does not have."""


def kept(optimizer: Optimizer) -> dict[str, Any]:
    """The attributes that are pickled beside those that torch keeps."""
    steps = optimizer.steps_taken
    optimizer._planner.settle()
    own = {name: vars(optimizer)[name] for name in KEPT}
    return {**own, "_steps": steps, "_frozen": list(optimizer._members.held.values())}


def renew(optimizer: Optimizer) -> None:
    """Make what is not pickled anew, once attributes, groups and state are there."""
    own = vars(optimizer)
    optimizer.defaults = {**OPTIONS, **optimizer.defaults}
    own.update({**ABSENT, **own})
    if "_members" not in own:
        optimizer._members = Members()
    optimizer._members.held.update((id(p), p) for p in own.pop("_frozen", ()))
    if "_roles" not in own:
        optimizer._roles = Roles(optimizer)
    optimizer._evaluates, optimizer._moved = own.get("_evaluates", exchanged(optimizer.state)), None
    lock = own["_planner"].lock if "_planner" in own else None
    optimizer._planner = Planner(lock)  # the same lock, for which another thread may wait
    optimizer._planner.begin_at(optimizer._steps, optimizer.param_groups, optimizer.state)
    optimizer._verdicts = Verdicts()
    optimizer._scheduled = any(group.get("schedules") for group in optimizer.param_groups)
    for group in optimizer.param_groups:
        for name, default in optimizer._roles.filling(group, optimizer.defaults).items():
            if default is not required:
                group.setdefault(name, default)
    optimizer._members.seen = {}
    optimizer._members.keep_names(optimizer.param_groups)
