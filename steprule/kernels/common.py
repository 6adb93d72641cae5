"""Numbers that the whole optimizer has one of: kept as one tensor in the state of every parameter that uses them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from .between_passes import value
from .launch import Launch

__all__ = ["Common"]


class Common:
    """What all parameters have in common, from step to step.

    Each launch has a row of its reduced table for such a number, filled with it when a step begins. Its new value is
    that of the first parameter of the step, and every launch gets it.

    Args:
        launches: those of a step.

    Raises:
        RuntimeError: the rules of the parameters take such numbers at different points of a step.
    """

    def __init__(self, launches: Sequence[Launch]) -> None:
        points = {tuple((s.name, s.stage) for s in x.program.shared) for x in launches if x.program.shared}
        if len(points) > 1:
            found = " and ".join(", ".join(f"{n} before pass {i + 1}" for n, i in p) for p in sorted(points))
            raise RuntimeError(
                f"the rules of {launches[0].program.name} take numbers of the whole optimizer differently: {found}; "
                "make them for every group and every shape, before what differs between them"
            )
        self.takers = [launch for launch in launches if launch.program.shared]
        self.places: dict[str, list[tuple[Launch, int]]] = {}
        for launch in launches:
            for i, slot in enumerate(launch.program.reduced_slots):
                if slot.scope == "all":
                    self.places.setdefault(slot.name, []).append((launch, i))
        self.numbers: dict[str, torch.Tensor] = {}
        self.installed = False
        """Whether every state has the tensors of these numbers."""

    def begin(self, params: Iterable[torch.Tensor], state: Mapping[torch.Tensor, Any]) -> None:
        """A step begins: every launch learns the numbers, which the state of whoever has one says."""
        if not self.numbers:
            own = [state[p] for p in params if p in state]
            for name, places in self.places.items():
                launch, i = places[0]
                known = next((entry[name] for entry in own if entry.get(name) is not None), launch.kept_rows[i][:1])
                number = torch.as_tensor(known, dtype=torch.float64, device=launch.kept_rows.device)
                self.numbers[name] = number.detach().reshape(()).clone()
                for launch, i in places:
                    launch.kept_views[i] = [self.numbers[name]] * len(launch.params)
        for name, places in self.places.items():
            for launch, i in places:
                launch.kept_rows[i].copy_(self.numbers[name])

    def agree(self, stage: int) -> None:
        """Compute the new values that are known before a pass, each with those before it."""
        if stage == 0:
            for launch in self.takers:
                launch.small.clear()  # what a step left that failed
        first = self.takers[0] if self.takers else None
        for k, shared in enumerate(first.program.shared if first else ()):
            if shared.stage == stage and first is not None:
                found = value(first, shared.value)
                number = found[0] if isinstance(found, torch.Tensor) and found.ndim else found
                for launch in self.takers:
                    launch.put(launch.program.shared[k].row, number)

    def finish(self, params: Iterable[torch.Tensor], state: Mapping[torch.Tensor, Any]) -> None:
        """The step is done: keep the new values, for parameters too that had no part in it."""
        for name, places in self.places.items():
            written = [(launch, i) for launch, i in places if launch in self.takers] or places
            launch, i = written[0]
            self.numbers[name].copy_(launch.kept_rows[i][0])
        if self.installed:
            return
        self.installed = True
        if not self.numbers:
            return
        for p in params:
            for name, number in self.numbers.items():
                if name in state.get(p, ()):
                    state[p][name] = number
