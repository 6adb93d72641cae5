"""The parameters of a launch that have a gradient in one step, where others of them have none."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import Any

import numpy as np

from steprule.kernels.shared_numbers import SharedNumbers
from steprule.rule.program import GRAD

from .llvm import LLVMLaunch

__all__ = ["AwakeLaunch", "part_of"]


def part_of(launch: LLVMLaunch, known: bool) -> AwakeLaunch | None:
    """Look everything up, as :meth:`Launch.refresh` does: the parameters of a launch that have a gradient now.

    Args:
        launch: the launch.
        known: whether nothing has to be looked up, since it has just been made or taken up.

    Returns:
        None if more has changed than which they are.
    """
    grads = [p.grad for p in launch.params]
    awake = [g is not None for g in grads]
    if not (known or launch.stands(launch.held, *launch.params, *launch.filled(grads), *launch.every_slot)):
        return None
    return AwakeLaunch(launch, np.flatnonzero(awake), awake, list(compress(grads, awake)))


class AwakeLaunch(LLVMLaunch):
    """One step of those parameters of a launch that have a gradient: its tables, and fewer chunks.

    Args:
        whole: the launch.
        places: which of its parameters.
        awake: for each of its parameters, whether it is among them.
        grads: their gradients.
    """

    def __init__(self, whole: LLVMLaunch, places: Any, awake: Sequence[bool], grads: list[Any]) -> None:
        self.__dict__.update(whole.__dict__)
        self.whole, self.among = whole, places
        self.entries = list(compress(whole.entries, awake))
        self.params = list(compress(whole.params, awake))
        self.owners = self.params
        self.grads = self.given = grads
        self.firsts = list(compress(whole.firsts, awake))
        # what an entry says of its gradient may be of a plan made since
        self.strange = np.flatnonzero(np.isin(places, whole.strange)).tolist() if whole.strange else []
        self.asleep = np.ones(len(awake), bool)
        self.asleep[places] = False

    def begin(self) -> None:
        """Lay the chunks and sort the numbers of this step."""
        self.whole.wake()
        fresh: Any = self.whole.fresh
        self.rows = self.numbers_now(fresh[self.among].tolist())
        self.sort_rows()
        chunks = self.whole.chunks
        self.lay(chunks[~self.asleep[chunks[:, 0]]])

    def numbers_now(self, new: list[bool]) -> list[SharedNumbers]:
        if not self.counted and not self.program.uses_size and len(set(self.firsts)) == len(set(new)) == 1:
            members = list(range(len(self.entries)))
            return [SharedNumbers(self.firsts[0], members, 0.0, new[0], [], (), self.params[0].dtype)]
        return self.classify(new, self.numbers[:, self.among])

    def send_numbers(self, table: Any) -> None:
        self.scalars[self.among] = table

    def send_shared(self, numbers: tuple[float, ...]) -> None:
        self.scalars[self.among] = numbers

    def send_gradients(self, pointers: list[int]) -> None:
        self.pointers[GRAD, self.among] = pointers

    def commit(self) -> None:
        whole = self.whole
        if self.counted:
            if self.program.uses_step:
                self.numbers[0, self.among] += 1.0
            for row in self.rows if self.updated else ():
                self.store_updates(row)
            whole.expected = self.numbers.tobytes()
        if not self.program.uses_step:
            whole.done += 1
            whole.missed[self.asleep] += 1
        assert whole.fresh is not None
        whole.fresh[self.among] = False

    def places_of(self, row: SharedNumbers) -> Any:
        return self.among[row.members]

    def install(self, state: Any) -> None:
        self.whole.install(state)

    def refresh(self) -> bool:
        return False
