"""Steps that take gradients at two points: the way to the second, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from steprule.portability.torch_private import increment_version, unset_fake_temporarily
from steprule.rule.chain import ascended
from steprule.rule.links import Negate

from .evaluation import planned, put_back, refuse_evaluation, standing, traced
from .planning import called
from .roles import Roles
from .workings import workings

if TYPE_CHECKING:
    from steprule.optimizer import Optimizer

__all__ = ["first_step", "go_back", "second_step", "take_second"]

Group = dict[str, Any]


def first_step(optimizer: Optimizer, zero_grad: bool = False) -> None:
    """Go to where the second gradient is taken, by a modifier such as :class:`steprule.modifiers.SAM`.

    Args:
        zero_grad: whether the gradients are set to None afterwards.

    Raises:
        RuntimeError: no modifier needs a second gradient, the first step was taken already, or the weights are
            those to evaluate with.
    """
    works = workings(optimizer)
    if not any(map(works.roles.ascending, optimizer.param_groups)):
        raise RuntimeError("first_step() is for modifiers that take gradients at two points, such as SAM; call step()")
    if works.moved is not None:
        raise RuntimeError(
            "first_step() has been taken already: call second_step() after the second backward, or go_back(), which "
            "belongs behind GradScaler's step (it leaves the step out where the second backward overflows)"
        )
    if works.evaluates:
        refuse_evaluation()
    with unset_fake_temporarily(), works.planner.writing():
        works.moved = ascend(works.roles, optimizer.param_groups, optimizer.state)
    if zero_grad:
        optimizer.zero_grad()


def second_step(optimizer: Optimizer, zero_grad: bool = False) -> None:
    """Go back and take the step, with the gradients that are there now.

    Args:
        zero_grad: whether the gradients are set to None afterwards.

    Raises:
        RuntimeError: there was no :meth:`first_step`.
    """
    if workings(optimizer).moved is None:
        raise RuntimeError("second_step() comes after first_step() and another backward")
    optimizer.step()
    if zero_grad:
        optimizer.zero_grad()


def take_second(optimizer: Optimizer, closure: Callable[[], Any] | None) -> None:
    """Get the gradients of a step's second point, for the groups that need them, and go back.

    Raises:
        RuntimeError: a modifier needs them, and there is neither a closure nor a first step.
    """
    works = workings(optimizer)
    needing = [m for group in optimizer.param_groups if (m := works.roles.ascending(group))]
    if not needing:
        return
    if closure is not None:
        optimizer.first_step(zero_grad=True)
        with torch.enable_grad():
            closure()
    if works.moved is None:
        raise RuntimeError(
            f"{type(needing[0]).__name__} takes gradients at two points: give step() a closure, or, as with "
            "GradScaler, whose step() takes none, call first_step() after the first backward and second_step() after "
            "the second"
        )
    go_back(optimizer)


def go_back(optimizer: Optimizer) -> None:
    """Put the weights back that :meth:`first_step` has moved, where no step has followed; otherwise do nothing.

    Call it after ``scaler.step(optimizer)``: where the second backward overflows, GradScaler leaves the step out. With
    ``fused=True`` the step goes back by itself.
    """
    works = workings(optimizer)
    moved, works.moved = works.moved, None
    if moved is not None:
        with works.planner.writing():
            put_back(moved)


def ascend(
    roles: Roles, groups: Sequence[Group], state: Mapping[torch.Tensor, Any]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Move the parameters of groups whose modifiers need it, in one pass.

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
