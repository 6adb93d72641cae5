"""A scheduler that does nothing, for trainers that insist on one."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["Native"]


class Native(LRScheduler):
    """A scheduler that leaves every rate as it is, to hand to a trainer that insists on one.

    A schedule given as ``lr`` is written by the optimizer itself, at each step; a torch scheduler beside it would write
    the same number, which the next step refuses. This one counts its steps and tells the rates. It leaves groups as
    they are but for ``"initial_lr"``, which torch's SequentialLR and others that go round a scheduler ask for.

    Args:
        optimizer: any :class:`torch.optim.Optimizer`.

    Raises:
        TypeError: it is not an optimizer.

    Example:
        >>> import torch, steprule
        >>> from steprule.schedules import Native, linear
        >>> weight = torch.ones(2, requires_grad=True)
        >>> optimizer = steprule.SGD([weight], lr=0.5 * linear(4))
        >>> scheduler = Native(optimizer)
        >>> for _ in range(3):
        ...     weight.sum().backward()
        ...     optimizer.step()
        ...     scheduler.step()
        >>> scheduler.get_last_lr()
        [0.25]
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"{type(optimizer).__name__} is not an Optimizer")
        self.optimizer = optimizer  # and no more of the base class, which wraps the optimizer's step
        self.base_lrs = self.get_lr()
        for group, rate in zip(optimizer.param_groups, self.base_lrs, strict=True):
            if "lr" in (group.get("schedules") or ()):
                group["initial_lr"] = rate  # SequentialLR makes it the rate, which only the schedule may change
            else:
                group.setdefault("initial_lr", rate)
        self.last_epoch = 0
        self._step_count = 1

    def step(self, epoch: int | None = None) -> None:
        """Count a step; with ``epoch``, go on from there. No rate changes."""
        self._step_count += 1
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch

    def _update_lr(self, epoch: int | None = None) -> None:  # what SequentialLR calls at a milestone
        self.step(epoch)

    def get_lr(self) -> list[Any]:
        """The rates of the groups as they are: those of the last step, or before it those of the first."""
        rates = [group["lr"] for group in self.optimizer.param_groups]
        return [rate.clone() if isinstance(rate, torch.Tensor) else rate for rate in rates]

    def get_last_lr(self) -> list[Any]:
        """The same as :meth:`get_lr`."""
        return self.get_lr()
