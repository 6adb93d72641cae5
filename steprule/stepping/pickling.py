"""What of an Optimizer goes into a pickle or a copy, and how one gets up from it, of earlier versions too."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch.optim.optimizer import required

from .counting import Count
from .evaluation import exchanged
from .options import OPTIONS
from .planning import Planner
from .roles import Roles
from .workings import Workings, workings

if TYPE_CHECKING:
    from steprule.optimizer import Optimizer

__all__ = ["pickled", "unpickle"]

KEPT = {
    "_roles": "roles",
    "_own_options": "own_options",
    "_nonfinite": "nonfinite",
    "_tracked": "tracked",
    "_guesses": "guesses",
    "_evaluates": "evaluates",
}
"""What parts of an optimizer are called in a pickle."""


def pickled(optimizer: Optimizer) -> dict[str, Any]:
    """What is pickled beside what torch keeps."""
    works = workings(optimizer)
    count = works.count.settled()
    works.planner.settle()
    own = {name: getattr(works, part) for name, part in KEPT.items()}
    return {**own, "_steps": count.taken, "_skipped": count.skipped, "_frozen": list(works.members.held.values())}


def unpickle(optimizer: Optimizer, has_rule: bool) -> None:
    """Make what is not pickled anew, once attributes, groups and state are there.

    Args:
        optimizer: what comes out of a pickle, or has been given another state.
        has_rule: whether its class gives an update rule.
    """
    own, groups = vars(optimizer), optimizer.param_groups
    optimizer.defaults = {**OPTIONS, **optimizer.defaults}
    said = {part: own.pop(name) for name, part in KEPT.items() if name in own}
    before: Workings | None = own.get("_workings")
    if before is None:
        before = Workings(said["roles"] if "roles" in said else Roles(optimizer), has_rule)
    said.setdefault("evaluates", before.evaluates if "_workings" in own else exchanged(optimizer.state))
    count = Count(own.pop("_steps", before.count.taken), own.pop("_skipped", before.count.skipped))
    scheduled = any(group.get("schedules") for group in groups)
    planner = Planner(before.planner.lock)  # the same lock, for which another thread may wait
    works = replace(before, planner=planner, count=count, scheduled=scheduled, moved=None, **said)
    works.members.held.update((id(p), p) for p in own.pop("_frozen", ()))
    works.planner.begin_at(count.taken, groups, optimizer.state)
    optimizer._workings = works
    for group in groups:
        for name, default in works.roles.filling(group, optimizer.defaults).items():
            if default is not required:
                group.setdefault(name, default)
    works.members.seen = {}
    works.members.keep_names(groups)
