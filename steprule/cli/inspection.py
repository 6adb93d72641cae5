"""What can be said about the state of an optimizer in a file, and about the difference of two."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from steprule.names import match
from steprule.saving.saved import Parameter, as_number

from .state_files import StateFile, StoredTensor, in_numbers

__all__ = [
    "Difference",
    "Differences",
    "ParameterRow",
    "Stats",
    "differences",
    "group_values",
    "name_of",
    "rows",
    "stats",
    "summary",
]

_NOT_HYPERPARAMETERS = ("params", "param_names", "schedules")


class Stats(NamedTuple):
    """Of the numbers in a tensor: the Euclidean norm, and how many are NaN and infinite."""

    norm: float
    nan: int
    inf: int


def stats(tensor: StoredTensor) -> Stats:
    """The statistics of a tensor, computed in float64 piece by piece."""
    square, nan, inf = 0.0, 0, 0
    for piece in tensor.pieces():
        real = torch.view_as_real(piece) if piece.is_complex() else piece
        floating = real if real.dtype in (torch.float32, torch.float64) else real.double()
        norm = float(torch.linalg.vector_norm(floating, dtype=torch.float64))
        square += norm * norm
        if not math.isfinite(norm):
            nan += int(floating.isnan().sum())
            inf += int(floating.isinf().sum())
    return Stats(math.sqrt(square), nan, inf)


def _real(piece: torch.Tensor) -> torch.Tensor:
    return (torch.view_as_real(piece) if piece.is_complex() else piece).double()


@dataclass(frozen=True)
class ParameterRow:
    """One parameter.

    Attributes:
        name: its name, or its number.
        group: the index of its group.
        shape: its shape, None where nothing in the file says it.
        step: number of its updates, where the algorithm counts them.
        state: number of bytes of its state.
        weight: of the parameter itself, where the file has it.
        slots: of each slot that is an array.
        values: the slots that are single numbers or no tensors.
    """

    name: str
    group: int
    shape: tuple[int, ...] | None
    step: float | None
    state: int
    weight: Stats | None
    slots: dict[str, Stats]
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return 0 if self.shape is None else math.prod(self.shape)

    @property
    def found(self) -> list[Stats]:
        return [*self.slots.values(), *([] if self.weight is None else [self.weight])]

    @property
    def nan(self) -> int:
        return sum(one.nan for one in self.found)

    @property
    def inf(self) -> int:
        return sum(one.inf for one in self.found)


def rows(file: StateFile, wanted: re.Pattern[str]) -> list[ParameterRow]:
    """A row for each parameter whose name is wanted, in the order of the file."""
    found = [(name_of(parameter), parameter) for parameter in file.saved.parameters]
    return [_row(name, parameter, file) for name, parameter in found if wanted.fullmatch(name)]


def name_of(parameter: Parameter) -> str:
    """Its name, or its number."""
    return parameter.label.removeprefix("parameter ")


def _row(name: str, parameter: Parameter, file: StateFile) -> ParameterRow:
    tensors = [value for value in parameter.entry.values() if isinstance(value, StoredTensor)]
    weight = file.model.get(name)
    values = _scalar_values(parameter)
    return ParameterRow(
        name,
        parameter.group,
        shape_of(parameter, weight),
        as_number(values.get("step")),
        sum(tensor.nbytes for tensor in tensors),
        stats(weight) if isinstance(weight, StoredTensor) else None,
        {slot: stats(tensor) for slot, tensor in _arrays(parameter, weight).items()},
        values,
    )


def shape_of(parameter: Parameter, weight: StoredTensor | None) -> tuple[int, ...] | None:
    """The parameter's shape: as it was saved, or else that of its largest slot."""
    if parameter.record is not None:
        return parameter.record.shape
    if weight is not None:
        return weight.shape
    shapes = [value.shape for value in parameter.entry.values() if isinstance(value, StoredTensor)]
    return max(shapes, key=math.prod, default=None)


def jsonable(value: Any) -> Any:
    """Small values as JSON has them."""
    if isinstance(value, StoredTensor):
        return value.tensor().item() if value.numel == 1 else f"tensor of shape {list(value.shape)}"
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def group_values(file: StateFile) -> list[dict[str, Any]]:
    """The hyperparameters of each group, as JSON has them."""
    return [
        {key: jsonable(value) for key, value in group.items() if key not in _NOT_HYPERPARAMETERS}
        for group in file.saved.groups
    ]


def schedules(file: StateFile) -> list[dict[str, Any]]:
    """The descriptions of the schedules of each group."""
    return [jsonable(group.get("schedules") or {}) for group in file.saved.groups]


def summary(file: StateFile, table: Iterable[ParameterRow]) -> dict[str, Any]:
    """Everything, as JSON has it."""
    tensors = [v for p in file.saved.parameters for v in p.entry.values() if isinstance(v, StoredTensor)]
    weights = [v for v in file.model.values() if isinstance(v, StoredTensor)]
    counts = [as_number(jsonable(parameter.entry.get("step"))) for parameter in file.saved.parameters]
    counts.append(file.saved.followed)
    shapes = [shape_of(p, file.model.get(name_of(p))) for p in file.saved.parameters]
    return {
        "file": str(file.path),
        "kind": file.kind,
        "version": file.version,
        "algorithm": file.saved.algorithm or file.guessed,
        "guessed": file.guessed is not None,
        "step": file.saved.step if file.saved.step is not None else max(filter(None, counts), default=None),
        "parameters": len(file.saved.parameters),
        "numbers": sum(math.prod(shape) for shape in shapes if shape is not None),
        "bytes": {
            "file": file.path.stat().st_size,
            "state": sum(tensor.nbytes for tensor in tensors),
            "model": sum(tensor.nbytes for tensor in weights),
        },
        "groups": [
            {
                "parameters": [name_of(p) for p in file.saved.parameters if p.group == i],
                "hyperparameters": hyper,
                "schedules": scheduled,
            }
            for i, (hyper, scheduled) in enumerate(zip(group_values(file), schedules(file), strict=True))
        ],
        "others": {key: jsonable(value) for key, value in file.others.items()},
        "table": [as_json(row) for row in table],
    }


def as_json(row: ParameterRow) -> dict[str, Any]:
    shape = None if row.shape is None else list(row.shape)
    weight = None if row.weight is None else row.weight._asdict()
    slots = {slot: found._asdict() for slot, found in row.slots.items()}
    one = {"name": row.name, "group": row.group, "shape": shape, "bytes": row.state, "weight": weight}
    return {**one, "slots": slots, "values": row.values}


class Difference(NamedTuple):
    """How a tensor differs between two files.

    Attributes:
        name: the parameter.
        slot: the slot, or ``"weight"``.
        largest: the largest absolute difference, NaN where only one of the two is NaN somewhere.
        relative: the norm of the difference over the norm in the first file.
        shapes: the two shapes, where they differ; the numbers are NaN then.
    """

    name: str
    slot: str
    largest: float
    relative: float
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None


@dataclass(frozen=True)
class Differences:
    """What differs between two files.

    Attributes:
        facts: kind, algorithm, step, ... with both values.
        changes: the parameters by what differs in their hyperparameters and step counts: ``"lr: 0.1 -> 0.01"``.
        only: names of the parameters (or ``"name: slot"``) that only the first and only the second has.
        tensors: the tensors that differ.
        parameters: number of parameters that both have.
        compared: number of tensors that both have.
    """

    facts: dict[str, tuple[Any, Any]]
    changes: dict[str, list[str]]
    only: tuple[list[str], list[str]]
    tensors: list[Difference]
    parameters: int
    compared: int

    @property
    def none(self) -> bool:
        return not (self.facts or self.changes or any(self.only) or self.tensors)


def differences(a: StateFile, b: StateFile, wanted: re.Pattern[str]) -> Differences:
    """What differs between two files, parameters matched by name where both have names, otherwise by position."""
    facts = {
        "algorithm": (a.algorithm, b.algorithm),
        "step": (summary(a, ())["step"], summary(b, ())["step"]),
        "groups": (len(a.saved.groups), len(b.saved.groups)),
        "tensors of a model": (len(a.model), len(b.model)),
    }
    pairs, only = _pairs(a, b, wanted)
    changes: dict[str, list[str]] = {}
    both = group_values(a), group_values(b)
    tensors: list[Difference] = []
    compared = 0
    for name, one, other in pairs:
        here, there = both[0][one.group] | _scalar_values(one), both[1][other.group] | _scalar_values(other)
        for change in _changes(here, there):
            changes.setdefault(change, []).append(name)
        first, second = _stored_tensors(name, one, a, b), _stored_tensors(name, other, b, a)
        only[0].extend(f"{name}: {slot}" for slot in first if slot not in second)
        only[1].extend(f"{name}: {slot}" for slot in second if slot not in first)
        shared = [slot for slot in first if slot in second]
        for slot in shared:
            if first[slot].dtype != second[slot].dtype:
                changes.setdefault(f"{slot}: {first[slot].dtype} -> {second[slot].dtype}", []).append(name)
        compared += len(shared)
        found = (_difference(name, slot, first[slot], second[slot]) for slot in shared)
        tensors += [difference for difference in found if difference is not None]
    return Differences({k: v for k, v in facts.items() if v[0] != v[1]}, changes, only, tensors, len(pairs), compared)


def _pairs(
    a: StateFile, b: StateFile, wanted: re.Pattern[str]
) -> tuple[list[tuple[str, Parameter, Parameter]], tuple[list[str], list[str]]]:
    first, second = a.saved.parameters, b.saved.parameters
    if a.saved.names is not None and b.saved.names is not None:
        places = match(a.saved.names, b.saved.names)
    else:
        places = [i if i < len(second) else None for i in range(len(first))]
    named = [(name_of(p), p, place) for p, place in zip(first, places, strict=True) if wanted.fullmatch(name_of(p))]
    lost = [name for name, _, place in named if place is None]
    new = [name_of(p) for i, p in enumerate(second) if i not in set(places) and wanted.fullmatch(name_of(p))]
    return [(name, p, second[place]) for name, p, place in named if place is not None], (lost, new)


def _changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    keys = dict.fromkeys([*a, *b])
    return [
        f"{key}: {plain_value(a.get(key, '-'))} -> {plain_value(b.get(key, '-'))}"
        for key in keys
        if a.get(key) != b.get(key)
    ]


def plain_value(value: Any) -> str:
    """A hyperparameter as a person reads it."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _stored_tensors(name: str, parameter: Parameter, file: StateFile, other: StateFile) -> dict[str, StoredTensor]:
    weight = file.model.get(name) if other.model else None
    found = {"weight": weight, **_arrays(parameter, weight)}
    return {slot: tensor for slot, tensor in found.items() if isinstance(tensor, StoredTensor)}


def _arrays(parameter: Parameter, weight: Any = None) -> dict[str, StoredTensor]:
    found = {slot: value for slot, value in in_numbers(parameter, weight).items() if isinstance(value, StoredTensor)}
    return {slot: tensor for slot, tensor in found.items() if tensor.shape}


def _scalar_values(parameter: Parameter) -> dict[str, Any]:
    arrays = _arrays(parameter)
    return {slot: jsonable(value) for slot, value in in_numbers(parameter).items() if slot not in arrays}


def _difference(name: str, slot: str, a: StoredTensor, b: StoredTensor) -> Difference | None:
    if a.shape != b.shape:
        return Difference(name, slot, math.nan, math.nan, (a.shape, b.shape))
    largest, square, whole = 0.0, 0.0, 0.0
    for one, other in _aligned(a, b):
        apart = (one - other).abs().masked_fill_((one == other) | (one.isnan() & other.isnan()), 0.0)
        largest = max(largest, float(apart.max())) if not apart.isnan().any() else math.nan
        square += float(apart.square().sum())
        whole += float(one.square().sum())
    if largest == 0.0:
        return None
    return Difference(name, slot, largest, math.sqrt(square / whole) if whole else math.inf)


def _aligned(a: StoredTensor, b: StoredTensor) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    if a.stride == b.stride and a.numel:
        return ((_real(one), _real(other)) for one, other in zip(a.pieces(), b.pieces(), strict=True))
    return [(_real(a.tensor()), _real(b.tensor()))] if a.numel else []
