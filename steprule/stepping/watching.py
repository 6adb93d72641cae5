"""A look, in the first two steps, for parameters that train and get no gradient."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from steprule.grouping.globs import fold

from .planning import LOOKS, called
from .workings import workings

if TYPE_CHECKING:
    from steprule.optimizer import Optimizer

__all__ = ["look_for_untrained"]


def look_for_untrained(optimizer: Optimizer, stacklevel: int) -> None:
    """Warn, once, of parameters that had no gradient in both of two steps; called where a plan was made.

    After the first step that leaves some out the plan is taken for outdated, so that the next one comes by here, and
    no other step has to.
    """
    works = workings(optimizer)
    planner, params = works.planner, [p for group in optimizer.param_groups for p in group["params"]]
    without = {id(p) for p in params if p.requires_grad and p.grad is None and not optimizer.state.get(p)}
    planner.looks += 1
    if planner.looks < LOOKS:
        planner.without = without
        if without and planner.exchange is None and not planner.beside and any(p.grad is not None for p in params):
            planner.asked = None
        else:
            planner.looks = LOOKS
        return
    missed = without & planner.without
    if not missed or not any(p.grad is not None for p in params):
        return
    works.members.keep_names(optimizer.param_groups)
    names = [
        called(group, index, position).strip("'")
        for index, group in enumerate(optimizer.param_groups)
        for position, p in enumerate(group["params"])
        if id(p) in missed
    ]
    named = len(names) < 9 or not all("param_names" in group for group in optimizer.param_groups)
    warnings.warn(
        f"{', '.join(names if named else fold(names))}: no gradient in two steps. Backward does not reach them, and "
        "they stay as they are; if that is meant, optimizer.freeze(...) says so. optimizer.untrained() looks at every "
        "parameter",
        stacklevel=stacklevel,
    )
