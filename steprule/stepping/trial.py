"""Steps that are taken to see what they do, and leave no trace."""

from __future__ import annotations

import copy
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from steprule.schedules import plateaus

from .counting import Count
from .workings import workings

if TYPE_CHECKING:
    from steprule.optimizer import Optimizer

__all__ = ["trial"]


@contextmanager
def trial(optimizer: Optimizer, models: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Afterwards parameters, gradients, state, groups, counts, buffers and random generators are as before, to the bit.

    The optimizer steps with copies of its state, so that its own are the same tensors before and after; parameters
    and buffers are copied back.

    Args:
        optimizer: what takes steps in the block.
        models: whose buffers are kept beside the parameters of the optimizer.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    buffers = [buffer for model in models for buffer in model.buffers()]
    kept = [(tensor, tensor.detach().clone()) for tensor in (*params, *buffers)]
    grads = [(p, p.grad) for p in params]
    put_back = [*map(kept_group, optimizer.param_groups), kept_numbers()]
    attributes = dict(vars(optimizer))
    works = workings(optimizer)
    works.planner.settle()
    with works.planner.writing():  # to the parameters, which end as they began
        try:
            optimizer.state = defaultdict(dict, {p: copy.deepcopy(own) for p, own in optimizer.state.items()})
            planner, count = works.planner.twin(optimizer.param_groups, optimizer.state), works.count
            optimizer._workings = replace(works, planner=planner, count=Count(count.taken, count.skipped))
            yield
        finally:
            vars(optimizer).clear()
            vars(optimizer).update(attributes)
            with torch.no_grad():
                for tensor, before in kept:
                    tensor.copy_(before)
            for p, grad in grads:
                p.grad = grad
            for back in put_back:
                back()


def kept_group(group: dict[str, Any]) -> Callable[[], None]:
    """What makes a group, and what its schedules have seen and written, what they are now."""
    content, schedules = dict(group), group.get("schedules")
    written = {} if schedules is None else dict(schedules.written)
    seen = [(tracker, dict(vars(tracker))) for tracker in plateaus((schedules or {}).values())]

    def back() -> None:
        group.clear()
        group.update(content)
        if schedules is not None:
            schedules.written.clear()
            schedules.written.update(written)
        for tracker, known in seen:
            vars(tracker).clear()
            vars(tracker).update(known)

    return back


def kept_numbers() -> Callable[[], None]:
    """What makes every generator of random numbers what it is now."""
    own, of_numpy, of_torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    of_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]

    def back() -> None:
        random.setstate(own)
        np.random.set_state(of_numpy)
        torch.set_rng_state(of_torch)
        if of_cuda:
            torch.cuda.set_rng_state_all(of_cuda)

    return back
