"""What goes around a step: torch's hooks, the profiler, torch.compile, schedules and counting."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from steprule.portability.torch_private import FakeTensor, after_all, before_all, not_compiled, profiling

from .skipping import loss_of, skips, watched
from .two_points import go_back
from .workings import workings

if TYPE_CHECKING:
    from steprule.optimizer import Optimizer

__all__ = ["asks_for_state", "counted_step", "hooked", "not_compiled"]

is_dynamo_compiling = torch.compiler.is_dynamo_compiling


def hooked(step: Callable[..., Any]) -> Callable[..., Any]:
    """``step`` with torch's pre and post hooks around it, visible to the profiler, and not compiled by torch."""

    @functools.wraps(step)
    def wrapper(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        if is_dynamo_compiling():
            return eagerly(self, args, kwargs)
        if profiling():
            with torch.autograd.profiler.record_function(f"Optimizer.step#{type(self).__name__}.step"):
                return run(self, args, kwargs)
        return run(self, args, kwargs)

    def run(self: Optimizer, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        works = self._workings
        if works.inside_step:
            return step(self, *args, **kwargs)
        if "found_inf" in self.__dict__ and skips(self):
            go_back(self)
            works.count.skipped += 1
            return loss_of(args, kwargs)
        asked, left_out, taken = False, None, works.count.taken
        if kwargs or watched(self):
            asked, left_out = begins_state(self, kwargs), self.skipped if watched(self) else None
            args, kwargs = before(self, args, kwargs)
        out = step(self, *args, **kwargs)
        members = self._workings.members  # the step may have loaded another state
        if members.unchecked:
            members.check(self.param_groups, type(self).__name__)
        self._optimizer_step_code()
        if asked:
            self._workings.count.taken = taken
        if watched(self) and (left_out is None or self._workings.count.skipped <= left_out):
            after(self, args, kwargs)
        return out

    def before(self: Optimizer, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        for pre_hook in [*before_all.values(), *self._optimizer_step_pre_hooks.values()]:
            result = pre_hook(self, (self, *args), kwargs)
            if result is not None:
                if not isinstance(result, tuple) or len(result) != 2:
                    raise RuntimeError(
                        f"{step} must return None or a tuple of (new_args, new_kwargs), but got {result}."
                    )
                (_, *args), kwargs = result
        return args, kwargs

    def after(self: Optimizer, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        for post_hook in [*self._optimizer_step_post_hooks.values(), *after_all.values()]:
            post_hook(self, (self, *args), kwargs)

    eagerly = not_compiled(run)
    wrapper.hooked = True  # type: ignore[attr-defined]
    return wrapper


def begins_state(optimizer: Optimizer, kwargs: Mapping[str, Any]) -> bool:
    """Whether a step :func:`asks_for_state`; if so what goes before it is done."""
    if not asks_for_state(optimizer, kwargs):
        return False
    optimizer._begin_state()
    return True


def asks_for_state(optimizer: Optimizer, kwargs: Mapping[str, Any]) -> bool:
    """Whether a step is to make state only, and none to count: torch.distributed.checkpoint takes one, with rates and
    gradients of 0, wherever it finds none, and so each time that it saves plain SGD."""
    if (
        optimizer.state
        or kwargs != {"closure": None}
        or any(group.get("lr", 0) != 0 for group in optimizer.param_groups)
    ):
        return False
    gradients = [
        getattr(p.grad, "_local_tensor", p.grad)
        for group in optimizer.param_groups
        for p in group["params"]
        if p.grad is not None
    ]
    return not any(isinstance(g, FakeTensor) or bool(g.any()) for g in gradients)


def counted_step(step: Callable[..., Any]) -> Callable[..., Any]:
    """A ``step`` of a subclass's own: schedules are written before it, it counts as one, and hooks run around it alone,
    not around the steps of classes above that it calls."""

    @functools.wraps(step)
    def wrapper(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        works = workings(self)
        before, left_out, outermost = works.count.taken, works.count.skipped, not works.inside_step
        if works.scheduled:
            works.planner.timetable.write(self.param_groups, before)
        works.inside_step = True
        try:
            out = step(self, *args, **kwargs)
        finally:
            workings(self).inside_step = not outermost  # the step may have loaded another state
        count = workings(self).count
        if count.skipped == left_out:
            count.taken = max(count.taken, before + 1)
        return out

    wrapper.own = True  # type: ignore[attr-defined]
    return wrapper
