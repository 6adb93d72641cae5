"""A Program as torch operations on one tensor at a time: the reference, for any device, layout and dtype."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from steprule.rule.expression import Level
from steprule.rule.host import evaluate
from steprule.rule.program import (
    FIRST_SLOT,
    GRAD,
    IN_PARTS,
    OF_ITS_OWN,
    PARAM,
    WORDS,
    Operation,
    Phase,
    Program,
    Store,
)

from .coding import decoded, encode
from .entry import Entry, Group
from .launch import Launch
from .layout import dense, real
from .operations import MIXED, apply, in_parts, integer, rounded_at_random, upper_half
from .shared_numbers import SharedNumbers
from .slots import computed_in, first_number

__all__ = ["EagerLaunch"]

T = TypeVar("T")


def in_mode(method: Callable[..., T]) -> Callable[..., T]:
    """A method that makes tensors: beside fake ones, which autograd is to follow, it makes fake ones."""

    @functools.wraps(method)
    def wrapper(self: EagerLaunch, *args: Any) -> T:
        with self.mode:
            return method(self, *args)

    return wrapper


class EagerLaunch(Launch):
    """Runs each tensor by itself.

    With ``differentiable=True`` in its group, a parameter's update can be differentiated: hyperparameters that are
    tensors stay in the graph, and state is replaced rather than written to.
    """

    backend = "eager"

    def __init__(self, program: Program, entries: Sequence[Entry], groups: Sequence[Group], reason: str) -> None:
        super().__init__(program, entries, groups, reason)
        self.adopt_slots(groups)

    @in_mode
    def adopt_slots(self, groups: Sequence[Group]) -> None:
        shape = len(self.program.reduced_slots), len(self.entries)
        self.adopt_reduced(torch.zeros(shape, dtype=torch.float64, device=self.params[0].device), groups)

    def take_up(self, groups: Sequence[Group]) -> bool:
        if self.differentiable or not super().take_up(groups):
            return False
        self.adopt_slots(groups)
        return True

    def refresh(self) -> bool:
        # a differentiable step replaces the state, and so is planned anew
        return not self.differentiable and super().refresh()

    @in_mode
    def advance(self, groups: Any) -> None:
        self.refuse_grads_without_memory()
        super().advance(groups)
        self.differentiable = bool(groups[self.entries[0].group].get("differentiable"))
        self.values: list[tuple[Any, ...]] = [()] * len(self.params)
        self.followed: dict[int, list[Any]] = {}
        """By a tensor's place, the new values of its scalar slots where autograd follows them."""
        for row in self.rows:
            for i in row.members:
                self.values[i] = self.graph(row, groups[row.group], i) if self.differentiable else row.scalars
        self.table: list[list[Any]] = [
            self.own_numbers(name) if name in OF_ITS_OWN else [self.inputs[name]] * len(self.params)
            for name in self.program.inputs
        ]
        self.table += [[None] * len(self.params) for _ in (*self.program.reductions, *self.program.shared)]
        if self.differentiable:
            self.kept_views = [
                [wide_number(first_number(slot, e, groups), e.param.device) for e in self.entries]
                for slot in self.program.reduced_slots
            ]
        self.table += self.kept_views

    def commit(self) -> None:
        super().commit()
        for i, updates in self.followed.items():
            for index, value in zip(self.updated, updates, strict=True):
                self.counter_views[index + self.program.uses_step][i] = value

    def graph(self, row: SharedNumbers, group: Any, i: int) -> tuple[Any, ...]:
        """A tensor's scalars, computed so that gradients reach hyperparameters and slots that are tensors."""
        names = [slot.name for slot in self.program.scalar_slots]
        own = {k: self.states[i].get(name) for k, name in enumerate(names)}
        own = {k: value for k, value in own.items() if isinstance(value, torch.Tensor) and value.requires_grad}

        def leaf(e: Any) -> Any:
            if e.op == "hyper":
                value = group
                for key in e.detail:
                    value = value[key]
                return value
            if e.op == "slot":
                index = names.index(e.detail)
                return own.get(index, row.slots[index])
            return {"step": row.step + 1.0, "is_new": row.is_new}[e.op] if e.op != "size" else row.size(e.detail)

        def stored(value: Any) -> Any:
            return value if isinstance(value, torch.Tensor) else self.stored(value)

        operations = {**MIXED, "stored": stored}
        if own:
            self.followed[i] = [evaluate(u, leaf, operations) for u in self.program.updates if u is not None]
        return tuple(evaluate(e, leaf, operations) for e in self.program.scalars)

    def run(self, stage: int) -> None:
        phase = self.program.phases[stage]
        with torch.set_grad_enabled(self.differentiable):
            for i in range(len(self.params)):
                if self.sparse:
                    self.run_rows(phase, i)
                else:
                    self.run_tensor(phase, i)

    def operands(self, i: int) -> list[torch.Tensor]:
        slots = [slot[i] for slot in self.slots]
        for k, scales in zip(self.coded, self.scales, strict=True):
            slots[k] = decoded(slots[k], scales[i])
        shape = self.params[i].shape
        return [self.params[i], self.grads[i], *slots, *(t[i].reshape(shape) for t in self.temporaries)]

    def run_tensor(self, phase: Phase, i: int) -> None:
        tensors = self.operands(i)
        values = self.compute(phase, i, [real(t) for t in tensors], lambda: places(real(tensors[PARAM])))
        coded = {k + FIRST_SLOT: scales for k, scales in zip(self.coded, self.scales, strict=True)}
        for operand, value in phase.stores:
            if operand in coded:
                o = phase.operations[value]
                numbers = torch.as_tensor(values[value], device=tensors[operand].device).expand(tensors[operand].shape)
                bits = values[o.args[1]] if o.op == "noisy" else None
                encode(numbers, self.slots[operand - FIRST_SLOT][i], coded[operand][i], bits)
        kept = [(o, own(phase, values, v, tensors[o].dtype)) for o, v in phase.stores if o not in coded]
        for operand, value in kept:
            self.store(tensors[operand], operand, i, value)

    def run_rows(self, phase: Phase, i: int) -> None:
        """A sparse gradient: only the rows that it holds take part."""
        grad = self.grads[i].coalesce()
        index = tuple(grad.indices())
        tensors = self.operands(i)
        rows = [grad.values() if o == GRAD else t[index] for o, t in enumerate(tensors)]
        values = self.compute(phase, i, [real(t) for t in rows], lambda: places(real(tensors[PARAM]))[index])
        for operand, value in phase.stores:
            if operand == GRAD:
                continue  # the plan unscales it
            target = real(tensors[operand])
            rounded = own(phase, values, value, target.dtype)
            target[index] = torch.as_tensor(rounded, dtype=target.dtype, device=target.device)

    def compute(
        self, phase: Phase, i: int, operands: list[torch.Tensor], where: Callable[[], torch.Tensor]
    ) -> list[Any]:
        dtype = computed_in(self.params[i].dtype)
        values: list[Any] = []
        for operation in phase.operations:
            args = [values[a] for a in operation.args]
            if operation.op in WORDS:
                values.append(integer(operation.op, operation.detail, args, where))
            elif operation.op in IN_PARTS:
                values.append(in_parts(operation.op, operation.detail, args))
            elif operation.op == "drawn":
                values.append((args[0] >> operation.detail).to(dtype))
            else:
                values.append(self.value(operation, args, i, operands, dtype))
        for row, value in phase.reductions:
            kind = self.program.reductions[row - len(self.program.inputs)].kind
            array = values[value]
            if not isinstance(array, torch.Tensor) or array.shape != operands[PARAM].shape:
                array = torch.as_tensor(array, device=operands[PARAM].device).expand(operands[PARAM].shape)
            self.table[row][i] = self.reduce(kind, array)
        for index, value in phase.sums:
            kind, dim = self.program.sums[index].kind, int(self.program.sums[index].scope)
            array = torch.as_tensor(values[value], device=operands[PARAM].device).expand(operands[PARAM].shape)
            level = Level.ROW if dim == -1 else Level.COLUMN
            self.lines.part(self.lines.sums[index], level, i).copy_(self.reduce(kind, array, dim).flatten())
        return values

    def value(self, o: Operation, args: list[Any], i: int, operands: list[torch.Tensor], dtype: torch.dtype) -> Any:
        if o.op == "read":
            tensor = operands[o.detail]
            if not tensor.is_floating_point():
                return tensor.to(torch.int64)
            copy = self.differentiable and o.detail == PARAM
            return tensor.clone() if copy and tensor.dtype == dtype else tensor.to(dtype)
        if o.op == "scalar":
            number = self.values[i][o.detail]
            return float(number) if isinstance(number, bool) else number
        if o.op == "reduced":
            return self.table[o.detail][i]
        if o.op == "constant":
            return o.detail
        if o.op == "noisy":
            return args[0]
        if o.op == "stored":
            held = torch.as_tensor(args[0], dtype=dtype, device=operands[PARAM].device)
            return held.to(operands[o.detail].dtype).to(dtype)
        if o.op == "line":
            return self.lines.broadcast(self.lines.read[o.detail], o.level, i, self.params[i].shape)
        return apply(o.op, args, dtype if o.level is Level.ARRAY else torch.float64)

    @staticmethod
    def reduce(kind: str, array: torch.Tensor, dim: int | None = None) -> torch.Tensor:
        if kind == "max_abs":
            empty = (array.numel() if dim is None else array.shape[dim]) == 0
            return (array.sum(dim) if empty else array.abs().amax(() if dim is None else dim)).double()
        wide = array.double()
        return (wide if kind == "sum" else wide * wide).sum(dim)

    def store(self, tensor: torch.Tensor, operand: int, i: int, value: Any) -> None:
        if self.differentiable and operand not in (PARAM, GRAD) and operand - 2 < len(self.slots):
            shaped = torch.as_tensor(value, device=tensor.device).to(real(tensor).dtype).expand_as(real(tensor))
            new = torch.view_as_complex(shaped.contiguous()) if tensor.is_complex() else shaped
            self.slots[operand - 2][i] = new
        elif operand == GRAD and 0 in tensor.stride():  # one number that stands for many is replaced
            new = torch.as_tensor(value, device=tensor.device).to(tensor.dtype).expand_as(tensor)
            self.grads = [new if j == i else grad for j, grad in enumerate(self.grads)]
        elif isinstance(value, torch.Tensor):
            real(tensor).copy_(value.reshape(real(tensor).shape) if value.numel() == real(tensor).numel() else value)
        else:
            real(tensor).copy_(torch.as_tensor(value, dtype=torch.float64, device=tensor.device))

    def total(self, row: int) -> Any:
        kind = self.program.reductions[row - len(self.program.inputs)].kind
        stacked = self.reduced(row)
        return stacked.max() if kind == "max_abs" else stacked.sum()

    def put(self, row: int, value: Any) -> None:
        self.table[row] = [value] * len(self.params)

    def put_each(self, row: int, values: torch.Tensor) -> None:
        self.table[row] = list(values)

    def reduced(self, row: int) -> Any:
        device = self.params[0].device
        return torch.stack([torch.as_tensor(v, dtype=torch.float64, device=device) for v in self.table[row]])

    def column(self, index: int) -> torch.Tensor:
        device = self.params[0].device
        return torch.stack([torch.as_tensor(v[index], dtype=torch.float64, device=device) for v in self.values])

    def keep(self, stores: Sequence[tuple[Store, Any]]) -> None:
        if not self.differentiable:
            return super().keep(stores)
        first = len(self.table) - len(self.kept_views)
        for store, value in stores:
            row = torch.as_tensor(value, dtype=torch.float64, device=self.params[0].device).expand(len(self.params))
            self.kept_views[store.index - first] = list(row)
        return None


def own(phase: Phase, values: Sequence[Any], number: int, dtype: torch.dtype) -> Any:
    """A value of a phase as it will be stored, in memory of its own: it may be an operand that the phase is about to
    replace."""
    value, o = values[number], phase.operations[number]
    if o.op == "noisy":
        return rounded_at_random(value, values[o.args[1]], dtype)
    if o.op == "upper":
        return upper_half(value)
    operand = o.op in ("read", "where") and isinstance(value, torch.Tensor)
    return value.clone() if operand else value


def wide_number(value: Any, device: torch.device) -> torch.Tensor:
    """A number as a 0-dim float64 tensor; one that is a tensor stays in autograd's graph."""
    return torch.as_tensor(value, dtype=torch.float64, device=device).reshape(())


def places(tensor: torch.Tensor) -> torch.Tensor:
    """Where each element stands in the tensor's memory; in what is not dense, where it would stand in a row."""
    line = torch.arange(tensor.numel(), device=tensor.device)
    return line.as_strided(tensor.shape, tensor.stride()) if dense(tensor) else line.view(tensor.shape)
