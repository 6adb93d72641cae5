"""The memory that training takes, before anything of it is there: weights, gradients, state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import is_lazy

from steprule.distributed.flat import is_flat
from steprule.distributed.shares import share_of
from steprule.kernels.slots import slot_bytes

from .evaluation import TRAINED
from .large_parameters import LARGE
from .planning import called
from .workings import workings

if TYPE_CHECKING:
    from steprule.optimizer import Optimizer

__all__ = ["GroupMemory", "Memory", "memory"]


@dataclass(frozen=True)
class GroupMemory:
    """Bytes of one parameter group.

    Attributes:
        params: what its parameters are called, as globs.
        weights: of the parameters.
        gradients: of those that train.
        slots: the state by slot.
        masters: of these, the slots that hold copies of the weights: averages, and weights in more bits.
    """

    params: tuple[str, ...]
    weights: int
    gradients: int
    slots: Mapping[str, int]
    masters: int

    @property
    def state(self) -> int:
        """All slots but those with copies of the weights."""
        return sum(self.slots.values()) - self.masters

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.state + self.masters


@dataclass(frozen=True)
class Memory:
    """Bytes that a model, its gradients and an optimizer's state take; ``print()`` shows a table.

    Attributes:
        optimizer: what the optimizer is called.
        groups: its parameter groups.
        ranks: over how many processes all is sharded; the bytes are those of the one that holds most.
        in_backward: the most that gradients take at once under ``step_in_backward``: those of the small parameters and
            of the largest. None on several ranks, where there is no such step.
    """

    optimizer: str
    groups: tuple[GroupMemory, ...]
    ranks: int
    in_backward: int | None

    @property
    def weights(self) -> int:
        return sum(group.weights for group in self.groups)

    @property
    def gradients(self) -> int:
        return sum(group.gradients for group in self.groups)

    @property
    def state(self) -> int:
        return sum(group.state for group in self.groups)

    @property
    def masters(self) -> int:
        return sum(group.masters for group in self.groups)

    @property
    def slots(self) -> dict[str, int]:
        """The state by slot, over all groups."""
        names = dict.fromkeys(name for group in self.groups for name in group.slots)
        return {name: sum(group.slots.get(name, 0) for group in self.groups) for name in names}

    @property
    def total(self) -> int:
        return sum(group.total for group in self.groups)

    def __str__(self) -> str:
        from steprule.display.bytes import memory_table  # rich takes a while to load
        from steprule.display.table import plain_text, terminal_width

        width = terminal_width()
        rows = [(g.params, (g.weights, g.gradients, g.state, g.masters, g.total)) for g in self.groups]
        title = self.optimizer + (f", on each of {self.ranks} ranks" if self.ranks > 1 else "")
        return plain_text(memory_table(title, rows, self.slots, self.in_backward), width)


def memory(optimizer: Optimizer, *, ranks: int = 1) -> Memory:
    """The memory that weights, gradients and state take once every parameter was updated.

    What stands in the state counts as it is; what is still to be made counts as it will be. Activations, and what
    kernels hold for a moment, are not in it. Parameters on the meta device, and those that a process holds a part of,
    count too.

    Args:
        ranks: over how many processes ``fully_shard`` will cut every parameter, along its first dimension; the bytes
            are then those of the process that holds most.

    Raises:
        ValueError: ``ranks`` is no positive number; parameters are sharded already, or their rule works on tables of
            whole matrices, which are not sharded.
        RuntimeError: the algorithm has no rule that says what its state is, or a parameter is lazy.

    Example:
        >>> import torch, steprule
        >>> with torch.device("meta"):
        ...     model = torch.nn.Linear(1000, 1000, bias=False)
        >>> found = steprule.AdamW(model).memory(ranks=4)
        >>> found.weights, found.gradients, found.slots
        (1000000, 1000000, {'step': 4, 'exp_avg': 1000000, 'exp_avg_sq': 1000000})
    """
    works = workings(optimizer)
    if not isinstance(ranks, int) or isinstance(ranks, bool) or ranks < 1:
        raise ValueError(f"ranks={ranks!r} is a number of processes, 1 or more")
    name = type(optimizer).__name__
    if not works.has_rule:
        raise RuntimeError(f"{name} has no update rule that would say what its state is")
    works.roles.adopt(optimizer.param_groups)
    works.members.keep_names(optimizer.param_groups)
    from steprule.display.table import globs  # rich takes a while to load

    groups, grads, named = [], [], globs(optimizer.param_groups)
    for index, group in enumerate(optimizer.param_groups):
        slots: dict[str, int] = {}
        weights = gradients = masters = 0
        for position, p in enumerate(group["params"]):
            label = called(group, index, position)
            shape = local_shape(p, ranks, label)
            size = numel(shape) * p.element_size()
            weights += size
            if not p.requires_grad:
                for slot, value in optimizer.state.get(p, {}).items():
                    slots[slot] = slots.get(slot, 0) + held(value, ranks)
                continue
            gradients += size
            grads.append((p.numel(), size))
            for slot, (taken, copy) in slots_of(optimizer, group, p, shape, ranks, label).items():
                slots[slot] = slots.get(slot, 0) + taken
                masters += taken * copy
        groups.append(GroupMemory(tuple(named[index]), weights, gradients, slots, masters))
    small = sum(size for numel, size in grads if numel < LARGE)
    largest = max((size for numel, size in grads if numel >= LARGE), default=0)
    return Memory(name, tuple(groups), ranks, small + largest if ranks == 1 else None)


def slots_of(
    optimizer: Optimizer, group: dict[str, Any], p: torch.Tensor, shape: Sequence[int], ranks: int, label: str
) -> dict[str, tuple[int, bool]]:
    """The bytes of each slot of a parameter, and whether it holds a copy of the weights."""
    works = workings(optimizer)
    planner, algorithm = works.planner, works.roles.algorithm(group, optimizer)
    program = planner.program(algorithm, group, (False, False, (), False), p)
    if ranks > 1 and program.tables:
        raise ValueError(
            f"{program.name} works on tables of whole matrices, but parameter {label} would be sharded: it does not go "
            "together with fully_shard"
        )
    own: Mapping[str, Any] = optimizer.state.get(p, {})
    found: dict[str, tuple[int, bool]] = {}
    reduced = {slot.name for slot in program.reduced_slots}
    for name, slot in planner.slots_of(algorithm, group, p).items():
        known = own.get(name)
        there = known is not None and ranks == 1
        taken = held(known, 1) if there else slot_bytes(slot, p, shape, name in reduced)
        found[name] = taken, slot.initial == "parameter" or slot.beside is not None
    others = {name: (held(value, ranks), name == TRAINED) for name, value in own.items() if name not in found}
    return found | others


def local_shape(p: torch.Tensor, ranks: int, label: str) -> tuple[int, ...]:
    """What of a parameter one process holds.

    Raises:
        ValueError: it is sharded already.
        RuntimeError: its shape is not known yet.
    """
    if is_lazy(p):
        raise RuntimeError(f"parameter {label} is lazy: its shape is not known before the first forward")
    part = share_of(p)
    if ranks > 1 and (part is not None or is_flat(p)):
        raise ValueError(f"parameter {label} is sharded already: call memory() without ranks for what is here")
    if part is not None:
        return tuple(p.to_local().shape)  # type: ignore[attr-defined]
    return (-(-p.shape[0] // ranks), *p.shape[1:]) if p.ndim else ()


def held(value: Any, ranks: int) -> int:
    """Bytes of what stands in a state; of a DTensor what is here."""
    if not isinstance(value, torch.Tensor):
        return 0
    local = value.to_local() if hasattr(value, "to_local") else value
    rows = -(-local.shape[0] // ranks) if local.ndim else 1
    return (rows * numel(local.shape[1:]) if local.ndim else 1) * local.element_size()


def numel(shape: Sequence[int]) -> int:
    """Elements of a shape."""
    return torch.Size(shape).numel()
