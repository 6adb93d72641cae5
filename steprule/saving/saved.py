"""The dictionary form read back: its structure checked, before anyone asks whether it fits."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch

from steprule.portability.torch_private import DataDependentOutputException

__all__ = [
    "STEPS_TAKEN",
    "VERSION",
    "Parameter",
    "Record",
    "Saved",
    "as_number",
    "form",
    "gone",
    "highest_count",
    "memory_order",
    "read_saved",
    "shape_and_dtype",
]

VERSION = 1

STEPS_TAKEN = "steps taken"
"""Stands among a group's schedules, each under its hyperparameter's name: after how many steps they were saved."""

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Record:
    """What a dictionary of steprule says about one parameter; a slot that is no tensor has the shape None, ``order`` is
    its :func:`memory_order`."""

    shape: Shape
    dtype: torch.dtype
    slots: dict[str, Shape | None]
    order: Shape


@dataclass(frozen=True)
class Parameter:
    """One parameter of a saved dictionary."""

    label: str
    group: int
    entry: dict[str, Any]
    record: Record | None

    def as_it_lay(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes in the order of memory that they were made in, as far as the dictionary says it: files are in that of
        indices, and a scale is that of codes which lay beside each other."""
        if self.record is None or codes.shape != self.record.shape:
            return codes
        small = [d for d in range(codes.ndim) if d not in self.record.order]
        outward = [*small, *self.record.order]
        return codes.permute(outward).contiguous().permute([outward.index(d) for d in range(codes.ndim)])


@dataclass(frozen=True)
class Saved:
    """A saved dictionary, its structure checked.

    Attributes:
        algorithm: the optimizer's class name, where the dictionary says it.
        step: number of steps taken, where it says it.
        followed: for how many steps there were schedules.
        groups: the parameter groups.
        parameters: the parameters in order.
        names: their names.
        loose: what stands in the state under no parameter.
        frozen: the places of those that were frozen; None where the dictionary does not say it.
        weights: which the model had: of ``"training"`` or of ``"evaluation"``; None where there is no difference.
    """

    algorithm: str | None
    step: int | None
    followed: int | None
    groups: list[dict[str, Any]]
    parameters: list[Parameter]
    names: list[str] | None
    loose: dict[Any, Any]
    frozen: frozenset[int] | None
    weights: str | None = None


def read_saved(saved: Mapping[str, Any]) -> Saved:
    """The parts of a saved dictionary, in torch's form or in steprule's.

    Raises:
        TypeError: a part has the wrong type.
        KeyError: a part is not there.
        ValueError: the parts do not add up, or the version is unknown.
    """
    _expect(saved, Mapping, "the state dictionary")
    for key in ("state", "param_groups"):
        if key not in saved:
            raise KeyError(f"the state dictionary has no {key!r}")
    groups = _expect(saved["param_groups"], (list, tuple), "'param_groups'")
    ids = _ids(groups)
    listed = set(ids)
    entries = _expect(saved["state"], Mapping, "'state'")
    names = _names(groups, ids)
    section = _section(saved.get("steprule"), len(ids))
    strays = [key for key in entries if key not in listed and not isinstance(key, str)]
    if strays:
        raise ValueError(f"'state' has entries {strays[:8]!r} that no parameter group lists in its 'params'")
    labels = names if names else [f"parameter {i}" for i in range(len(ids))]
    parents = [i for i, group in enumerate(groups) for _ in group["params"]]
    records: Sequence[Record | None] = section.records or [None] * len(ids)
    parameters = [
        Parameter(label, parent, _entry(entries.get(key, {}), label), record)
        for key, label, parent, record in zip(ids, labels, parents, records, strict=True)
    ]
    loose = {key: value for key, value in entries.items() if key not in listed}
    groups, followed = _without_count(groups)
    return Saved(
        section.algorithm, section.step, followed, groups, parameters, names, loose, section.frozen, section.weights
    )


def _without_count(groups: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], int | None]:
    """The groups with nothing but schedules under "schedules", and after how many steps these were saved."""
    trimmed, counts = [dict(group) for group in groups], []
    for i, group in enumerate(trimmed):
        schedules = group.get("schedules")
        if isinstance(schedules, Mapping) and STEPS_TAKEN in schedules:
            counts.append(
                whole_number(schedules[STEPS_TAKEN], f"{STEPS_TAKEN!r} in the schedules of param_groups[{i}]")
            )
            group["schedules"] = {key: value for key, value in schedules.items() if key != STEPS_TAKEN}
    return trimmed, max(counts, default=None)


def _expect(value: Any, kinds: type | tuple[type, ...], what: str) -> Any:
    if not isinstance(value, kinds):
        wanted = " or ".join(kind.__name__.lower() for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
        raise TypeError(f"{what} must be a {wanted}, not {type(value).__name__}")
    return value


def _ids(groups: Sequence[Any]) -> list[Hashable]:
    ids: list[Hashable] = []
    for i, group in enumerate(groups):
        _expect(group, Mapping, f"param_groups[{i}]")
        for key in group:
            _expect(key, str, f"a key of param_groups[{i}]")
        if "params" not in group:
            raise KeyError(f"param_groups[{i}] has no 'params'")
        for key in _expect(group["params"], (list, tuple), f"param_groups[{i}]['params']"):
            if isinstance(key, bool) or not isinstance(key, (int, str)):
                raise TypeError(f"param_groups[{i}]['params'] must hold numbers or names, not {type(key).__name__}")
            ids.append(key)
    if len(set(ids)) != len(ids):
        twice = sorted({str(key) for key in ids if ids.count(key) > 1})
        raise ValueError(f"the saved groups list parameters twice: {', '.join(twice[:8])}")
    return ids


def _names(groups: Sequence[Mapping[str, Any]], ids: Sequence[Hashable]) -> list[str] | None:
    """The saved names in order; ids that are strings are names, as FullyShardedDataParallel saves them."""
    named = [group for group in groups if "param_names" in group]
    if not named:
        texts = [key for key in ids if isinstance(key, str)]
        return texts if texts and len(texts) == len(ids) else None
    names: list[str] = []
    for i, group in enumerate(groups):
        if "param_names" not in group:
            raise ValueError(f"param_groups[{i}] has no 'param_names' although other groups have them")
        own = _expect(group["param_names"], (list, tuple), f"param_groups[{i}]['param_names']")
        if len(own) != len(group["params"]) or not all(isinstance(name, str) for name in own):
            raise ValueError(
                f"param_groups[{i}]['param_names'] must be one string for each of its {len(group['params'])} parameters"
            )
        names += own
    return names


class _Section(NamedTuple):
    algorithm: str | None
    step: int | None
    records: list[Record] | None
    frozen: frozenset[int] | None
    weights: str | None = None


def _section(section: Any, size: int) -> _Section:
    """What stands under the key "steprule"; torch's own dictionaries have none.

    One that was made from torch's does not know the parameters.
    """
    if section is None:
        return _Section(None, None, None, None)
    _expect(section, Mapping, "'steprule'")
    for key in ("version", "algorithm", "step", "parameters"):
        if key not in section:
            raise KeyError(f"'steprule' of the state dictionary has no {key!r}")
    if type(section["version"]) is not int or section["version"] != VERSION:
        raise ValueError(
            f"the state dictionary has version {section['version']!r}, and this steprule reads version "
            f"{VERSION}: use the steprule that saved it, or a newer one"
        )
    algorithm = _expect(section["algorithm"], str, "'algorithm' of the state dictionary")
    step = whole_number(section["step"], "'step' of the state dictionary")
    frozen = _frozen_places(section.get("frozen"), size)
    weights = section.get("weights")
    if weights not in (None, "training", "evaluation"):
        raise ValueError(f"'weights' of the state dictionary must be 'training' or 'evaluation', not {weights!r}")
    if section["parameters"] is None:
        return _Section(algorithm, step, None, frozen, weights)
    parameters = _expect(section["parameters"], (list, tuple), "'parameters' of the state dictionary")
    if len(parameters) != size:
        raise ValueError(f"the state dictionary describes {len(parameters)} parameters, its groups list {size}")
    return _Section(algorithm, step, [_record(entry, i) for i, entry in enumerate(parameters)], frozen, weights)


def _frozen_places(places: Any, size: int) -> frozenset[int] | None:
    if places is None:
        return None
    found = _expect(places, (list, tuple), "'frozen' of the state dictionary")
    if not all(type(place) is int and 0 <= place < size for place in found):
        raise ValueError(f"'frozen' of the state dictionary must hold numbers of its {size} parameters, got {places!r}")
    return frozenset(found)


def _record(entry: Any, i: int) -> Record:
    what = f"the description of parameter {i}"
    _expect(entry, Mapping, what)
    for key in ("shape", "dtype", "slots"):
        if key not in entry:
            raise KeyError(f"{what} has no {key!r}")
    shape = _sizes(entry["shape"], what)
    if shape is None:
        raise TypeError(f"'shape' in {what} must be a list")
    dtype = getattr(torch, entry["dtype"], None) if isinstance(entry["dtype"], str) else None
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{what} has dtype {entry['dtype']!r}, which torch does not have")
    slots = _expect(entry["slots"], Mapping, f"'slots' in {what}")
    large = [d for d, size in enumerate(shape) if size > 1]
    order = _sizes(entry.get("order", large), what) or ()
    if sorted(order) != large:
        raise ValueError(f"{what} has 'order' {list(order)!r:.60}; it must name the dimensions {large} once each")
    return Record(
        shape,
        dtype,
        {_expect(slot, str, f"a slot in {what}"): _sizes(sizes, what) for slot, sizes in slots.items()},
        order,
    )


def memory_order(tensor: torch.Tensor) -> Shape:
    """The dimensions of more than one element, the one whose neighbours lie farthest apart first."""
    stride = tensor.stride()
    return tuple(sorted((d for d, size in enumerate(tensor.shape) if size > 1), key=lambda d: -stride[d]))


def _sizes(sizes: Any, what: str) -> Shape | None:
    if sizes is None:
        return None
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in _expect(sizes, (list, tuple), what)):
        raise ValueError(f"{what} has the shape {list(sizes)!r}; sizes are whole numbers from 0 on")
    return tuple(sizes)


def _entry(entry: Any, label: str) -> dict[str, Any]:
    _expect(entry, Mapping, f"the state of {label}")
    strange = [slot for slot in entry if not isinstance(slot, str)]
    if strange:
        raise TypeError(f"the state of {label} has slots {strange!r}; slot names are strings")
    return dict(entry)


def as_number(value: Any) -> float | None:
    """The real number in a number or in a tensor of one element, None for anything else.

    A whole number that no float reaches is not taken for a number.
    """
    if isinstance(value, torch.Tensor):
        if value.numel() != 1 or value.is_complex() or value.dtype == torch.bool or value.is_meta:
            return None
        try:
            value = value.item()
        except DataDependentOutputException:
            return 0.0  # a FakeTensor is a number that nobody knows
    if isinstance(value, bool) or (isinstance(value, int) and value.bit_length() > 1000):
        return None
    return value if isinstance(value, (int, float)) else None


def highest_count(entries: Iterable[Any], default: int = 0) -> int:
    """The number of updates that the parameter with the most has had, of all these states of parameters."""
    counts = (as_number(entry.get("step")) for entry in entries if isinstance(entry, Mapping))
    return max((int(found) for found in counts if found is not None and math.isfinite(found)), default=default)


def whole_number(value: Any, what: str) -> int:
    found = as_number(value)
    if found is None:
        raise TypeError(f"{what} must be a number, not {form(value)}")
    if not math.isfinite(found) or found < 0 or found != int(found):
        raise ValueError(f"{what} is {found}; it must be a whole number from 0 on")
    return int(found)


def gone(tensor: torch.Tensor) -> bool:
    """Whether numbers of a tensor are not there: its storage was resized, or it never had any."""
    if tensor.is_meta:
        return True
    if tensor.layout is not torch.strided or type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        return False
    last = int(tensor.storage_offset()) + sum(
        (int(n) - 1) * int(s) for n, s in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return bool(tensor.numel()) and tensor.untyped_storage().nbytes() < (last + 1) * tensor.element_size()


def form(value: Any) -> str:
    """A value in words: shape and dtype of a tensor, the type of anything else."""
    return shape_and_dtype(value.shape, value.dtype) if isinstance(value, torch.Tensor) else type(value).__name__


def shape_and_dtype(shape: Iterable[int], dtype: torch.dtype) -> str:
    """Shape and dtype in words.

    Example:
        >>> shape_and_dtype((3, 4), torch.float32)
        '(3, 4) float32'
    """
    return f"({', '.join(map(str, shape))}) {str(dtype).removeprefix('torch.')}"
