"""Tensors that share a launch and are run one by one, as their gradients come."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from steprule.kernels.entry import Entry, Group
from steprule.kernels.shared_numbers import SharedNumbers
from steprule.kernels.tensor_guards import still
from steprule.rule.program import GRAD, OF_ITS_OWN, Program

from .llvm import LLVMLaunch
from .pool import ALONE, run_on_threads
from .source import FRAME, TABLES

__all__ = ["SinglyLaunch", "runs_singly"]

ROW_OF_CHUNKS = 4 * 8
"""Bytes of a row of the chunk table."""


def runs_singly(program: Program) -> bool:
    """Whether a tensor of a launch can be updated without a word of the others, in one pass."""
    return program.elementwise and all(name in OF_ITS_OWN for name in program.inputs)


class SinglyLaunch(LLVMLaunch):
    """A launch without gradients: each step begins with :meth:`refresh` and :meth:`advance`, then :meth:`run_one` takes
    a tensor whose gradient is there, and :meth:`commit` counts those that were taken.

    Its entries' gradients are read for their dtype alone; those that come have to be laid out as the parameters.
    """

    def __init__(self, program: Program, entries: Sequence[Entry], groups: Sequence[Group], reason: str) -> None:
        super().__init__(program, entries, groups, reason)
        self.taken: list[int] = []
        """The tensors that were updated since the last commit."""
        self.looks = [still([p, *slots]) for p, *slots in zip(self.params, *self.slots, *self.scales, strict=True)]
        self.grad_row = self.pointers[GRAD]
        own = np.unique(self.chunks[:, 0], return_index=True, return_counts=True)
        self.frames_of_one = np.zeros((len(entries), len(FRAME)), np.int64)
        self.frames_of_one[:] = self.frames[0]
        self.batches = [0] * len(entries)
        for i, first, count in zip(*(column.tolist() for column in own), strict=True):
            batch = max(1, min(count // 32, 8))
            self.frames_of_one[i, TABLES.index("chunks")] += first * ROW_OF_CHUNKS
            self.frames_of_one[i, -2:] = count, batch
            self.batches[i] = 0 if entries[i].numel < ALONE else -(-count // batch)
        self.frame_addresses = [frame.ctypes.data for frame in self.frames_of_one]

    def grad_pointers(self, strange: Sequence[int]) -> list[int]:
        return self.grads_at  # each is written when it is there

    def refresh(self) -> bool:
        """Look up parameters and state again; False if anything but numbers of the groups has changed."""
        return self.stands(self.held, *self.params, *self.every_slot)

    def run_one(self, i: int, grad: int) -> None:
        """Update one tensor, whose gradient lies at an address."""
        self.grad_row[i] = grad
        self.counter[0] = 0
        self.taken.append(i)
        batches = self.batches[i]
        if batches:
            run_on_threads(self.kernels[0], self.frame_addresses[i], batches)
        else:
            self.kernels[0](self.frame_addresses[i])

    def commit(self) -> None:
        """Count the tensors that were updated."""
        taken, self.taken = self.taken, []
        if len(taken) == len(self.params):
            super().commit()
        elif taken:
            self.commit_some(set(taken))

    def commit_some(self, taken: set[int]) -> None:
        """Count these tensors, which no longer share their numbers with the others."""
        self.tell()
        new = [False] * len(self.params)
        for row in self.rows:
            ours = [i for i in row.members if i in taken]
            for i in row.members:
                new[i] = row.is_new and i not in taken
            if ours and self.counted:
                own = SharedNumbers(
                    row.group, ours, row.step, False, list(row.slots), row.shape, row.dtype, (), row.updates
                )
                self.store_updates(own)
        for i in taken:
            if self.program.uses_step:
                self.numbers[0, i] += 1.0
            else:
                self.entries[i].count(1)
        self.expected = self.numbers.tobytes()
        self.rows = self.classify(new)
        self.sort_rows()
