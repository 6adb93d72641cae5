"""What one process holds of a parameter that several processes hold together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from steprule.rule.program import Program
from steprule.rule.slot import Slot

__all__ = ["Part"]


class Part(Protocol):
    """A process's part of a parameter: to the kernels a plain tensor, to everybody else the whole parameter.

    Attributes:
        whole: the parameter, as the groups hold it and as its state is found.
        param: what of it is here.
        grad: what of its gradient is here; None where it has none, and outside of a step.
        shape: that of the whole parameter.
        where: how it is spread, for a person to read.
        origin: the place of its first element in the memory of the whole parameter; None where what is here is not one
            piece of it.
        axes: the processes over which it is cut; what is reduced of it is reduced over these too.
    """

    whole: torch.Tensor
    param: torch.Tensor
    grad: torch.Tensor | None
    shape: tuple[int, ...]
    where: str
    axes: tuple[Any, ...]

    @property
    def origin(self) -> int | None: ...

    def held(self, value: torch.Tensor, slot: Slot, name: str) -> torch.Tensor:
        """What of a state's tensor is here.

        Raises:
            RuntimeError: it is spread in another way than the parameter.
        """
        ...

    def joined(self, tensor: torch.Tensor, slot: Slot, known: Any) -> torch.Tensor:
        """A tensor of the state of which ``tensor`` is what is here: what the state has already, if it is, or a new
        one."""
        ...


class Exchanger(Protocol):
    """How the reductions of a step go on over other processes.

    Attributes:
        stages: how many passes there are after which something is exchanged, whatever this process has to run.
        programs: what runs over parameters that are spread, on whichever process they have gradients.
    """

    stages: int
    programs: Sequence[Program]

    def agree(self) -> None:
        """Make sure that the others are about to do the same; all is prepared."""
        ...

    def add_up_lines(self, stage: int | None, launches: Sequence[Any]) -> None:
        """Compute what launches need of reductions over rows or columns before a pass or, with None, after the last."""
        ...

    def reduce(self, stage: int, launches: Sequence[Any]) -> None:
        """Make of what a pass's launches reduced over their parts what it is over the whole parameters."""
        ...

    def matrices(self, stage: int, launches: Sequence[Any]) -> None:
        """Do the matrix functions that stand behind a pass, on whole matrices of which no process has all."""
        ...

    def totals(self, order: int) -> list[Any]:
        """What parameters that are spread add to a reduction over all of them, after the pass that computes it."""
        ...

    def total_of(self, name: str) -> float:
        """What parameters that are spread add to a tracked reduction over all of them."""
        ...

    def largest(self, flag: torch.Tensor) -> torch.Tensor:
        """The largest of what all processes have."""
        ...
