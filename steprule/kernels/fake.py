"""Tensors that have sizes and no values, torch's FakeTensors: a step makes what it would hold, and computes nothing."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from steprule.portability.torch_private import FakeTensor

from .entry import Entry, Group, State
from .launch import Launch
from .slots import array_slots, slot_tensor

__all__ = ["FakeLaunch", "is_fake"]


def is_fake(tensor: torch.Tensor, name: str) -> bool:
    """Whether a parameter of that name has no values.

    Raises:
        RuntimeError: it has none, and ``make_fx`` records what is done with it.
    """
    if isinstance(tensor, FakeTensor) and get_proxy_mode() is not None:
        raise RuntimeError(
            f"make_fx can't record the step over parameter {name}, a FakeTensor, of which nothing is computed; record "
            "it over a real one, with tracing_mode='real' and backend='eager'"
        )
    return isinstance(tensor, FakeTensor)


class FakeLaunch(Launch):
    """Makes the state and counts the step, for those who estimate memory.

    Passes work on what is there, so nothing is left to do of them; matrix functions are called, for what they hold
    meanwhile.
    """

    backend = "fake"
    valueless = True

    def adopt_arrays(self, entry: Entry, group: Group) -> None:
        with self.mode:
            _, entry.slots = array_slots(self.program.slots, entry, group)

    def adopt_lines(self, groups: Sequence[Group]) -> None:
        slots = self.program.line_slots
        self.line_views = [[slot_tensor(slot, e, groups[e.group]) for e in self.entries] for slot in slots]

    def remember(self) -> None:
        self.expected, self.installed = self.numbers.tobytes(), False
        self.grad_dtype = self.grads[0].dtype
        reduced = [slot.name for slot in self.program.reduced_slots]
        self.counter_views = self.known(
            self.counted, self.zeros(len(self.counted), self.counters.dtype, self.counters.device)
        )
        self.kept_rows = self.zeros(len(reduced), torch.float64, self.params[0].device)
        self.kept_views = self.known(reduced, self.kept_rows)
        for entry in self.entries:
            entry.slots = None  # nothing is kept from plan to plan that would have to be looked at

    def hold(self, counting: Sequence[torch.Tensor], pointers: Sequence[int]) -> None:
        """Nothing: there is no memory."""

    def zeros(self, rows: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        with self.mode:
            return torch.zeros(rows, len(self.params), dtype=dtype, device=device)

    def known(self, names: Sequence[str], rows: torch.Tensor) -> list[list[torch.Tensor]]:
        """For each name one number for each tensor: what stands in the states, or else in a row."""
        found = [[own.get(name) for own in self.states] for name in names]
        return [
            [old if isinstance(old, FakeTensor) else new for old, new in zip(olds, row, strict=True)]
            for olds, row in zip(found, rows, strict=True)
        ]

    def refresh(self) -> bool:
        return False

    def goes_on(self, before: Launch) -> bool:
        return False

    def take_up(self, groups: Sequence[Group]) -> bool:
        return False

    def install(self, state: MutableMapping[torch.Tensor, State]) -> None:
        super().install(state)
        for row in self.rows if self.program.uses_step else ():
            for i in row.members:
                self.entries[i].uncounted = int(row.step)  # for what stands in the state says nothing

    def reduced(self, row: int) -> torch.Tensor:
        return self.zeros(1, torch.float64, self.params[0].device)[0]

    def imagine(self) -> None:
        """Do what of a step can be done without values."""
        with self.mode:
            for phase in self.program.phases if not self.shares else ():
                for step in phase.matrices:
                    self.matrices.make_room(step)
                    self.matrices.run(step, self.matrix_numbers)
        self.drop_temporaries()
