"""An entry: one parameter, its gradient and its state, and what was found out about them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch

from steprule.rule.program import Program
from steprule.rule.slot import Slot

from .layout import real, same_layout
from .overlaps import unlike_memory
from .part import Part
from .stand_ins import Look, stand_in
from .tensor_guards import still

__all__ = ["NO_GRAD", "Entry", "Group", "State", "asked_of"]

State = dict[str, Any]
Group = Mapping[str, Any]


def asked_of(group: Group) -> tuple[Any, ...]:
    """What a group asks of the kernels that serve its parameters."""
    return group.get("backend"), group.get("differentiable")


NO_GRAD = torch.empty(0, device="cpu")


@dataclass
class Entry:
    """One parameter that has a gradient in this step; what was found out about it is kept from plan to plan.

    Where several processes hold it, parameter and gradient are what is here of them, and the state is the whole's.
    """

    param: torch.Tensor
    grad: torch.Tensor
    state: State
    group: int
    name: str
    is_new: bool | None = None
    """Whether this counts as its first update; None: if its state is empty."""
    uncounted: int = 0
    """How many updates it has had that no ``step`` in its state counts."""
    part: Part | None = None
    """How the parameter is spread over processes; None where this one has all of it."""
    kind: tuple[Any, ...] = field(default=(), init=False)
    """What the parameters of a launch have in common."""
    program: Program = field(init=False, repr=False, compare=False)
    options: tuple[Any, ...] = field(init=False, repr=False, compare=False)
    """What its group asks of the kernel, as :func:`asked_of` gives it."""
    tangled: bool = field(default=False, init=False)
    """Whether its memory overlaps that of another parameter, or of a gradient."""
    still: Callable[..., bool] = field(init=False, repr=False, compare=False)
    """Whether parameter, gradient and slots look as they did when the slots were adopted."""
    numel: int = field(init=False, repr=False, compare=False)
    """How many real numbers the parameter holds: twice its elements for a complex one."""
    strange: bool = field(init=False, repr=False, compare=False)
    """Whether the gradient lies in memory in another way than the parameter."""
    implicit: bool = field(init=False, repr=False, compare=False)
    """Whether the gradient may be a view that says otherwise than its memory: conjugated, negative or zero."""
    grad_look: Look | None = field(default=None, init=False, repr=False, compare=False)
    """How a gradient looked that was dense."""
    slots: list[torch.Tensor] | None = field(default=None, init=False)
    """The array slots, once they are adopted."""
    names: Sequence[str] = field(init=False, repr=False, compare=False)
    """What the adopted slots are called in the state."""
    kept: list[Any] = field(init=False, repr=False, compare=False)
    """What stands in the state under these names: the slots, or the tensors that these are parts of."""
    pointers: list[int] = field(init=False, repr=False, compare=False)
    """Where the parameter and the adopted slots lie in memory."""
    version: int | None = field(default=None, init=False, repr=False, compare=False)
    """How often the parameter was written to when it was last updated, where something stands beside it."""

    @property
    def owner(self) -> torch.Tensor:
        """The parameter as the groups hold it."""
        return self.param if self.part is None else self.part.whole

    @property
    def version_now(self) -> int:
        """How often the parameter was written to until now; in inference mode nobody counts."""
        return 0 if self.owner.is_inference() else int(self.owner._version)

    def note_version(self) -> None:
        """It has been updated, and counts as written to: whoever writes to it from here on is another."""
        self.version = self.version_now

    @property
    def origin(self) -> int:
        """The place of its first element in the memory of the whole parameter, a complex one seen as real."""
        origin = 0 if self.part is None else self.part.origin
        return (origin or 0) * (2 if self.param.is_complex() else 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the whole parameter, a complex one seen as real."""
        if self.part is None:
            return tuple(real(self.param).shape)
        return (*self.part.shape, 2) if self.param.is_complex() else self.part.shape

    def found(self, slot: Slot) -> Any:
        """What stands in the state for a slot, as far as it is here; None where nothing does.

        Raises:
            RuntimeError: it is a tensor that can be no state.
        """
        value = self.state.get(slot.name)
        if not isinstance(value, torch.Tensor):
            return value
        if wrong := unlike_memory(value, self.owner):
            raise RuntimeError(
                f"state {slot.name!r} of parameter {self.name} {wrong}; replace it with a plain tensor, or delete it "
                "to start anew"
            )
        if self.part is None:
            return value
        return self.part.held(value, slot, self.name)

    def settle(self, program: Program, options: tuple[Any, ...], kind: tuple[Any, ...]) -> None:
        """Note what was asked for, and what parameter, gradient and state, as they are, were found to be good for."""
        p, g = self.param, self.grad
        self.program, self.options, self.kind, self.slots = program, options, kind, None
        self.version = None if program.master is None else self.version
        self.numel = real(p).numel()
        self.grad_look = (tuple(g.shape), g.stride(), g.dtype) if g.layout == torch.strided else None
        self.strange = g.layout == torch.strided and not same_layout(g, p)
        self.implicit = g.is_complex() or g.is_neg() or g._is_zerotensor()

    def adopted(self, names: Sequence[str], slots: list[torch.Tensor]) -> None:
        self.names, self.slots = names, slots
        self.kept = slots if self.part is None else [self.state.get(name) for name in names]
        self.pointers = list(map(torch.Tensor.data_ptr, (self.param, *slots)))
        self.still = still([self.param, self.grad, *slots])

    def holds(self, program: Program, options: tuple[Any, ...]) -> bool:
        """Whether what was found out still holds; of a gradient that is not there, if it comes as the last did."""
        return (
            self.slots is not None
            and self.program is program
            and not program.line_slots
            and self.options == options
            and self.still(self.param, self.stand_in() if self.grad is NO_GRAD else self.grad, *self.slots)
            and all(map(operator.is_, map(self.state.get, self.names), self.kept))
            and list(map(torch.Tensor.data_ptr, (self.param, *self.slots))) == self.pointers
        )

    def stand_in(self) -> torch.Tensor:
        """What looks as the last gradient did, if it was dense."""
        return NO_GRAD if self.grad_look is None else stand_in(self.grad_look)

    def meet(self, grad: torch.Tensor, state: State | None) -> None:
        """A step begins with this gradient and the state that there is; None: none, or it was deleted."""
        if state is None and self.state:  # deleted, to start anew
            self.uncounted, self.version = 0, None
        if state is not self.state:
            self.is_new = None
        if state is not None or self.state:
            self.state = {} if state is None else state
        self.grad = grad

    def count(self, updates: int) -> None:
        """Count updates that no launch has counted: in the state, if it holds ``step``, or here."""
        if updates and "step" in self.state:
            self.state["step"] = self.state["step"] + updates
        else:
            self.uncounted += updates

    def later(self, state: State, is_new: bool) -> Entry:
        """The same with another state, whose slots are not adopted yet."""
        entry = copy(self)
        entry.state, entry.is_new, entry.slots = state, is_new, None
        return entry
