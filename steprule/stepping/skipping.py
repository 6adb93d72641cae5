"""Steps under GradScaler: whether they take its scale and its flag, and those that it skips, told before they begin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import torch

from steprule.portability.torch_private import FakeTensor, after_all, before_all

from .workings import workings

if TYPE_CHECKING:
    from steprule.optimizer import Optimizer

__all__ = ["TakesScale", "loss_of", "says_so", "skips", "watched"]


class TakesScale:
    """Whether GradScaler leaves scale and flag to the step, as with torch's fused implementations; it may be set."""

    @overload
    def __get__(self, optimizer: None, owner: type) -> TakesScale: ...

    @overload
    def __get__(self, optimizer: Optimizer, owner: type) -> bool: ...

    def __get__(self, optimizer: Optimizer | None, owner: type) -> TakesScale | bool:
        if optimizer is None:
            return self
        chosen: bool | None = vars(optimizer).get("_amp_scaling")
        return bool(optimizer.defaults["fused"]) and workings(optimizer).has_rule if chosen is None else chosen

    def __set__(self, optimizer: Optimizer, value: bool) -> None:
        vars(optimizer)["_amp_scaling"] = value


def skips(optimizer: Optimizer) -> bool:
    """Whether the step about to begin is one to skip.

    Where kernels can look at GradScaler's flag themselves they do, and nobody waits for the GPU; hooks must not see a
    step that is skipped, and so wait.
    """
    found_inf = optimizer.__dict__.get("found_inf")
    if found_inf is None:
        return False
    plan = workings(optimizer).planner.plan
    if plan is not None and plan.asynchronous and not watched(optimizer):
        return False
    return says_so(found_inf)


def says_so(found_inf: torch.Tensor | float) -> bool:
    """Whether GradScaler's flag is set: a plain 0 if it found no gradient; one without a value counts as not set."""
    if isinstance(found_inf, torch.Tensor):
        return not isinstance(found_inf, FakeTensor) and bool(found_inf.item())
    return bool(found_inf)


def watched(optimizer: Optimizer) -> bool:
    """Whether hooks stand around the step."""
    everywhere = before_all or after_all
    return bool(optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks or everywhere)


def loss_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a skipped step gives: the loss of its closure; None without one."""
    closure = args[0] if args else kwargs.get("closure")
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
