"""Whether the saved state of one parameter fits that parameter, and the state it becomes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import torch

from steprule.saved_state import Parameter, Shape, described, form, number

__all__ = ["Fitting", "Kind", "LoadResult", "Misshapen", "fit", "is_flat", "kinds"]

Kind: TypeAlias = Literal["array", "scalar", "other"]

_STRENGTH: tuple[Kind, ...] = ("other", "scalar", "array")
_TORCH_SCALARS = ("step", "mu_product", "eta", "mu")
_FLAT = ("d", "prev_flat_grad", "old_dirs", "old_stps")  # of LBFGS: vectors over all parameters


class Misshapen(NamedTuple):
    """A value that does not fit: what it belongs to, what was saved, and what is needed here."""

    name: str
    saved: str
    current: str

    def __str__(self) -> str:
        return f"{self.name} was saved as {self.saved}, where {self.current} is needed"


class LoadResult(NamedTuple):
    """What did not fit; all three lists are empty when everything did.

    Attributes:
        missing: parameters (or ``"parameter: slot"``) for which nothing was saved.
        unexpected: parameters (or ``"parameter: slot"``) that were saved and that nothing here takes.
        misshapen: parameters (or ``"parameter: slot"``) saved with another shape or type than here.
    """

    missing: list[str]
    unexpected: list[str]
    misshapen: list[Misshapen]

    def __str__(self) -> str:
        parts = (("missing", self.missing), ("unexpected", self.unexpected), ("misshapen", self.misshapen))
        return "\n".join(f"  {kind}: {entry}" for kind, entries in parts for entry in entries)


@dataclass(frozen=True)
class Fitting:
    """What holds for every parameter that is fitted.

    Attributes:
        kinds: what each slot is.
        slots: the kinds that the optimizer knows; None for one that keeps its state as it likes.
        numbers: how many numbers all parameters hold together.
        fresh: the value that a slot of a parameter begins with, for the rows that a resized one gains.
        copy: the saved tensors belong to someone else.
        result: the problems found so far.
    """

    kinds: Mapping[str, Kind]
    slots: Mapping[str, Kind] | None
    numbers: int
    fresh: Callable[[torch.Tensor, str], torch.Tensor] | None
    copy: bool
    result: LoadResult = field(default_factory=lambda: LoadResult([], [], []))


def kinds(pairs: Iterable[tuple[torch.Tensor, Mapping[str, Any]]], slots: Mapping[str, Kind] | None) -> dict[str, Kind]:
    """What each slot is: an array like the parameter, one number, or something else.

    Args:
        pairs: a parameter and its entry, for every parameter.
        slots: the kinds that the optimizer knows; the rest is judged by what the entries hold.
    """
    found: dict[str, Kind] = {}
    for param, entry in pairs:
        for slot, value in entry.items():
            kind = _kind(slot, value, param)
            found[slot] = max(kind, found.get(slot, kind), key=_STRENGTH.index)
    return found | dict(slots or {})


def _kind(slot: str, value: Any, param: torch.Tensor) -> Kind:
    if slot in _TORCH_SCALARS:
        return "scalar"
    if not isinstance(value, torch.Tensor):
        return "other"
    return "scalar" if value.ndim == 0 and param.ndim > 0 else "array"


def is_flat(entry: Mapping[str, Any]) -> bool:
    """Whether this is the state of LBFGS: kept with the first parameter, for all of them in their order."""
    return "prev_flat_grad" in entry


def fit(
    param: torch.Tensor,
    saved: Parameter,
    label: str,
    fitting: Fitting,
    *,
    peers: Iterable[frozenset[str]],
    on_device: bool,
    resize: bool,
) -> dict[str, Any] | None:
    """The new state of one parameter; None where it does not fit, and ``fitting.result`` says why.

    Args:
        param: the parameter.
        saved: what was saved for it.
        label: what to call it in messages.
        fitting: what holds for all parameters.
        peers: the sets of slots that parameters of the same saved group have.
        on_device: single numbers live on the parameter's device, not on the CPU.
        resize: arrays of another shape are cut or extended.
    """
    problems = LoadResult([], [], [])
    _check_slots(saved, label, peers, problems)
    _check_parameter(param, saved, label, resize, problems)
    entry: dict[str, Any] = {}
    for slot, value in saved.entry.items():
        if value is None and fitting.slots is not None:
            continue  # torch's older SGD keeps None where it has no momentum yet
        needed = _needed(slot, value, param, saved, fitting, resize)
        if needed is not None:
            problems.misshapen.append(Misshapen(f"{label}: {slot}", _shown(value), needed))
        elif saved.record is None or slot in saved.record.slots:
            entry[slot] = _converted(slot, value, param, saved, fitting, on_device)
    fitting.result.missing.extend(problems.missing)
    fitting.result.unexpected.extend(problems.unexpected)
    fitting.result.misshapen.extend(problems.misshapen)
    return None if problems.missing or problems.misshapen else entry


def _check_slots(saved: Parameter, label: str, peers: Iterable[frozenset[str]], problems: LoadResult) -> None:
    """The slots that the record names, or else that like parameters have, must be there, and no others."""
    mine = frozenset(saved.entry)
    if saved.record is not None:
        wanted = frozenset(saved.record.slots)
        problems.unexpected.extend(f"{label}: {slot}" for slot in sorted(mine - wanted))
    else:
        wanted = min((other for other in peers if mine and other > mine), key=len, default=mine)
    problems.missing.extend(f"{label}: {slot}" for slot in sorted(wanted - mine))


def _check_parameter(param: torch.Tensor, saved: Parameter, label: str, resize: bool, problems: LoadResult) -> None:
    record = saved.record
    if record is None:
        return
    fits = len(record.shape) == param.ndim if resize else record.shape == tuple(param.shape)
    if not fits or _family(record.dtype) != _family(param.dtype):
        problems.misshapen.append(Misshapen(label, described(record.shape, record.dtype), form(param)))


def _family(dtype: torch.dtype) -> str:
    return "complex" if dtype.is_complex else "real" if dtype.is_floating_point else "whole"


def _needed(slot: str, value: Any, param: torch.Tensor, saved: Parameter, fitting: Fitting, resize: bool) -> str | None:
    """What the slot must be, in words, where the value is not that."""
    kind = fitting.kinds[slot]
    record = saved.record
    if record is not None and slot in record.slots and record.slots[slot] != _shape_of(value):
        recorded = record.slots[slot]
        return "no tensor" if recorded is None else described(recorded, record.dtype)
    if kind == "scalar":
        return _needed_number(slot, value, fitting)
    if kind == "array":
        return _needed_array(slot, value, param, saved, fitting, resize)
    vectors = isinstance(value, (list, tuple)) and slot in _FLAT and is_flat(saved.entry)
    if vectors and any(_shape_of(item) != (fitting.numbers,) for item in value):
        return f"a list of vectors of {fitting.numbers} numbers"
    return None


def _needed_number(slot: str, value: Any, fitting: Fitting) -> str | None:
    found = number(value)
    if found is None:
        return None if value is None and fitting.slots is None else "one number"
    if slot == "step" and not (math.isfinite(found) and found >= 0 and found == int(found)):
        return "a whole number from 0 on"
    return None


def _needed_array(
    slot: str, value: Any, param: torch.Tensor, saved: Parameter, fitting: Fitting, resize: bool
) -> str | None:
    if value is None:
        return None
    target = _target(slot, param, saved, fitting)
    dense = isinstance(value, torch.Tensor) and value.layout is torch.strided and not value.is_meta
    fits = dense and (value.ndim == len(target) if resize else value.shape == target)
    known = fitting.slots is not None and slot in fitting.slots
    families = (_family(value.dtype), _family(param.dtype)) if fits else ("", "")
    alike = families[0] == families[1] or not (known or "complex" in families[0])
    return None if fits and alike else described(target, param.dtype)


def _target(slot: str, param: torch.Tensor, saved: Parameter, fitting: Fitting) -> Shape:
    """The shape that an array slot must have."""
    shape = tuple(param.shape)
    if slot in _FLAT and is_flat(saved.entry):
        return (fitting.numbers,)
    if slot == "row_var":
        return (*shape[:-1], 1)
    if slot == "col_var":
        return (*shape[:-2], 1, *shape[-1:])
    record = saved.record
    if record is None or (fitting.slots is not None and slot in fitting.slots):
        return shape
    recorded = record.slots.get(slot)
    return shape if recorded is None or recorded == record.shape else recorded


def _shape_of(value: Any) -> Shape | None:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def _shown(value: Any) -> str:
    return form(value) if number(value) is None else str(number(value))


def _converted(slot: str, value: Any, param: torch.Tensor, saved: Parameter, fitting: Fitting, on_device: bool) -> Any:
    kind = fitting.kinds[slot]
    if kind == "array" and value is not None:
        target = _target(slot, param, saved, fitting)
        return _array(value, target, _dtype(value, param, saved), param, slot, fitting)
    if kind != "scalar" or value is None:
        return _moved(value, param)
    device = param.device if on_device or (fitting.slots is None and slot != "step") else torch.device("cpu")
    if fitting.slots is None and not isinstance(value, torch.Tensor):
        return value
    return torch.tensor(number(value), dtype=_number_dtype(slot, value), device=device)


def _number_dtype(slot: str, value: Any) -> torch.dtype:
    if isinstance(value, torch.Tensor) and value.is_floating_point() and slot != "step":
        return value.dtype
    exact = slot != "step" or float(torch.tensor(number(value), dtype=torch.float32)) == number(value)
    return torch.float32 if exact and torch.get_default_dtype() != torch.float64 else torch.float64


def _dtype(value: torch.Tensor, param: torch.Tensor, saved: Parameter) -> torch.dtype:
    """The parameter's dtype, unless the state was kept in another one than the parameter on purpose."""
    if saved.record is not None:
        return param.dtype if value.dtype == saved.record.dtype else value.dtype
    return param.dtype if _family(value.dtype) == _family(param.dtype) else value.dtype


def _array(
    value: torch.Tensor, target: Shape, dtype: torch.dtype, param: torch.Tensor, slot: str, fitting: Fitting
) -> torch.Tensor:
    with torch.no_grad():
        new = (
            torch.empty_like(param, dtype=dtype)
            if target == param.shape
            else torch.empty(target, dtype=dtype, device=param.device)
        )
        if value.shape == target:
            same = (value.dtype, value.device, value.stride()) == (dtype, new.device, new.stride())
            return value if same and not fitting.copy else new.copy_(value)
        new.copy_(fitting.fresh(param, slot)) if fitting.fresh else new.zero_()
        overlap = tuple(slice(min(a, b)) for a, b in zip(value.shape, target, strict=True))
        new[overlap] = value[overlap].to(new)
        return new


def _moved(value: Any, param: torch.Tensor) -> Any:
    """A copy of a value of any kind, its tensors treated as torch does."""
    if isinstance(value, torch.Tensor):
        alike = _family(value.dtype) == _family(param.dtype)
        return value.detach().to(param.device, param.dtype if alike else value.dtype, copy=True)
    if isinstance(value, dict):
        return {key: _moved(item, param) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_moved(item, param) for item in value)
    return copy.deepcopy(value)
