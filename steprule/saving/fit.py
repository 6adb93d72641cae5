"""Whether the saved state of one parameter fits that parameter, and the state it becomes."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import torch

from steprule.messages.words import printable
from steprule.rule.master import MASTER
from steprule.rule.slot import Slot

from . import lbfgs_state
from .lbfgs_state import is_of_lbfgs
from .saved import Parameter, Shape, as_number, form, gone, memory_order, shape_and_dtype

__all__ = ["Fit", "Fresh", "Held", "Kind", "LoadResult", "Misshapen", "Placed", "Slots", "WholeFit", "kinds"]

Kind: TypeAlias = Literal["array", "scalar", "other"]
Slots: TypeAlias = Mapping[str, Slot]
Fresh: TypeAlias = Callable[[Slot, torch.Tensor, Mapping[str, Any]], torch.Tensor]


class Held(Protocol):
    """How slots are held here."""

    def scale_name(self, slot: str) -> str:
        """Under which name the scales of a slot stand that is held in codes."""
        ...

    def dtype(self, slot: Slot, param: torch.Tensor) -> torch.dtype | None:
        """The dtype in which a slot must be held, whatever was saved; None where it need not."""
        ...

    def is_code(self, slot: str, dtype: torch.dtype | None) -> bool:
        """Whether a slot of that name and dtype holds codes."""
        ...

    def is_form(self, dtype: torch.dtype) -> bool:
        """Whether what stands beside a parameter may be of a dtype, which says in what form it is."""
        ...

    def numbers(self, codes: torch.Tensor, scales: Any) -> torch.Tensor | None:
        """What codes stand for; None where the scales are not theirs."""
        ...

    def encoded(self, numbers: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and scales for numbers."""
        ...


Placed: TypeAlias = Callable[[torch.Tensor, torch.Tensor, Slot | None, torch.dtype], torch.Tensor | None]

_STRENGTH: tuple[Kind, ...] = ("other", "scalar", "array")
_CONTAINERS = (list, tuple, set, frozenset, deque)
_TORCH_SCALARS = ("step", "mu_product", "eta", "mu")


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
        lines = [f"  {kind}: {printable(str(entry))}" for kind, entries in parts for entry in entries]
        return "\n".join(lines) or "everything fitted"


def kinds(pairs: Iterable[tuple[torch.Tensor, Mapping[str, Any]]], slots: Slots | None) -> dict[str, Kind]:
    """What each slot is: an array like the parameter, one number, or something else.

    Args:
        pairs: a parameter and its entry, for every parameter.
        slots: what the optimizer knows of its slots; the rest is judged by what the entries hold.
    """
    found: dict[str, Kind] = {}
    for param, entry in pairs:
        for name, value in entry.items():
            kind = _kind(name, value, param)
            found[name] = max(kind, found.get(name, kind), key=_STRENGTH.index)
    return found | {name: "scalar" if slot.kind == "scalar" else "array" for name, slot in (slots or {}).items()}


def _kind(name: str, value: Any, param: torch.Tensor) -> Kind:
    if name in _TORCH_SCALARS:
        return "scalar"
    if not isinstance(value, torch.Tensor):
        return "other"
    return "scalar" if value.ndim == 0 and param.ndim > 0 else "array"


@dataclass(frozen=True)
class WholeFit:
    """What holds for all parameters that are loaded together.

    Attributes:
        kinds: what each slot is.
        numbers: how many numbers all parameters hold together.
        fresh: the value that a slot begins with, for the rows that a resized one gains; zeros where None.
        given: whether a saved tensor may be taken as it is; where None, those in slots that the optimizer does not
            know, as torch takes them.
        held: how slots are held here; None where nobody asks.
        placed: of a saved tensor, the parameter, its slot and a dtype, a copy that is spread over processes as the
            parameter is; None where it need not be.
    """

    kinds: Mapping[str, Kind]
    numbers: int
    fresh: Fresh | None
    given: Callable[[torch.Tensor], bool] | None
    held: Held | None = None
    placed: Placed | None = None


@dataclass(frozen=True)
class Fit:
    """One parameter, and what was saved for it.

    Attributes:
        param: the parameter.
        group: the group it is in.
        label: what to call it in messages.
        saved: what was saved for it.
        peers: the sets of slots that parameters of the same saved group and as many dimensions have, on which a rule
            may depend.
        slots: what the optimizer knows of its slots; None for one that keeps its state as it likes.
        needed: names of the slots without which a state is not whole, as far as the optimizer knows.
        resize: whether arrays of another shape are cut or extended.
        common: what holds for all parameters.
    """

    param: torch.Tensor
    group: Mapping[str, Any]
    label: str
    saved: Parameter
    peers: Collection[frozenset[str]]
    slots: Slots | None
    needed: Collection[str]
    resize: bool
    common: WholeFit

    def state(self, result: LoadResult) -> dict[str, Any] | None:
        """The new state of the parameter; None where it does not fit, and ``result`` has the reasons."""
        entry = {k: v for k, v in self.saved.entry.items() if v is not None or self._stands(k)}
        coded, misfits = self._decode(entry)
        missing, unexpected = self._differing_slots(frozenset(entry))
        misshapen = [*self._misshapen_parameter(), *(m for k, v in entry.items() for m in self._misshapen(k, v))]
        misshapen += misfits
        result.missing.extend(f"{self.label}: {name}" for name in sorted(missing))
        result.unexpected.extend(f"{self.label}: {name}" for name in sorted(unexpected))
        result.misshapen.extend(misshapen)
        if missing or misshapen:
            return None
        new = {name: self._new(name, value) for name, value in entry.items() if name not in unexpected}
        return self._encode(new, coded)

    def _stands(self, name: str) -> bool:
        """Whether None is a value of this slot: torch's older SGD keeps None where it has no momentum yet."""
        return self.slots is None or (self._foreign(name) and self.saved.record is not None)

    def _foreign(self, name: str) -> bool:
        """Whether a rule does not know a slot: what somebody keeps there loads as it does into torch's optimizers."""
        return self.slots is not None and name not in self.slots

    # -- codes ---------------------------------------------------------------------------------------------------

    def _decode(self, entry: dict[str, Any]) -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], list[Misshapen]]:
        """Put numbers in the place of codes; the codes that there were with their scales, and those that do not fit."""
        held, coded = self.common.held, {}
        misfits: list[Misshapen] = []
        for name, codes in list(entry.items()):
            if held is None or not isinstance(codes, torch.Tensor) or not held.is_code(name, codes.dtype):
                continue
            scales = entry.pop(held.scale_name(name), None)
            if scales is None and name not in (self.slots or ()):
                continue
            if gone(codes):
                misfits.append(Misshapen(f"{self.label}: {name}", form(codes), "tensors that hold numbers"))
                del entry[name]
                continue
            codes = self.saved.as_it_lay(codes)
            numbers = None if _holds_nothing(scales) else held.numbers(codes, scales)
            if numbers is None:
                misfits.append(Misshapen(f"{self.label}: {held.scale_name(name)}", form(scales), "scales of its codes"))
                del entry[name]
            else:
                entry[name], coded[name] = numbers, (codes, scales)
        return coded, misfits

    def _encode(self, new: dict[str, Any], coded: Mapping[str, Any]) -> dict[str, Any]:
        """Put codes in the place of numbers where they are held so: those that were saved, if they fit."""
        held, found = self.common.held, {}
        for name, value in new.items():
            slot = (self.slots or {}).get(name)
            dtype = None if held is None or slot is None else held.dtype(slot, self.param)
            if held is None or dtype is None or not held.is_code(name, dtype):
                found[name] = value
                continue
            codes, scales = coded.get(name, (None, None))
            if codes is not None and (codes.dtype, memory_order(codes)) == (dtype, memory_order(value)):
                pair = codes.detach().to(self.param.device, copy=True), scales.detach().to(self.param.device, copy=True)
            else:
                pair = held.encoded(value, dtype)
            found[name], found[held.scale_name(name)] = pair
        return found

    # -- what does not fit ---------------------------------------------------------------------------------------

    def _differing_slots(self, mine: frozenset[str]) -> tuple[frozenset[str], frozenset[str]]:
        """The slots that should be there and are not, and those that are there and should not be."""
        if self.saved.record is not None:
            recorded = self._without_scales(self.saved.record.slots) | lbfgs_state.needed(self.saved.entry)
            return recorded - mine, mine - recorded
        if not mine:
            return mine, mine
        peers = map(self._without_scales, self.peers)
        fuller = min((peer for peer in peers if peer > mine), key=len, default=mine)
        # what stands beside weights can be done without, and parameters of one group need not all have it
        return fuller.union(self.needed, lbfgs_state.needed(self.saved.entry)) - mine - {MASTER}, frozenset()

    def _without_scales(self, names: Iterable[str]) -> frozenset[str]:
        """Names of slots without those under which the scales of others stand."""
        names = frozenset(names)
        return names if self.common.held is None else names - set(map(self.common.held.scale_name, names))

    def _misshapen_parameter(self) -> list[Misshapen]:
        record, param = self.saved.record, self.param
        if record is None:
            return []
        fits = len(record.shape) == param.ndim if self.resize else record.shape == tuple(param.shape)
        if fits and _family(record.dtype) == _family(param.dtype):
            return []
        return [Misshapen(self.label, shape_and_dtype(record.shape, record.dtype), form(param))]

    def _misshapen(self, name: str, value: Any) -> list[Misshapen]:
        wanted = self._wanted(name, value)
        shown = form(value) if as_number(value) is None else str(as_number(value))
        return [] if wanted is None else [Misshapen(f"{self.label}: {name}", shown, wanted)]

    def _wanted(self, name: str, value: Any) -> str | None:
        """What the slot must be, in words, where the value is not that."""
        if is_of_lbfgs(self.saved.entry) and (
            wanted := lbfgs_state.wanted(name, value, self.saved.entry, self.common.numbers)
        ):
            return wanted
        kind = self.common.kinds[name]
        if kind == "scalar":
            return self._wanted_number(name, value)
        record = self.saved.record
        if record is not None and name in record.slots and record.slots[name] != _shape_of(value):
            recorded = record.slots[name]
            return "no tensor" if recorded is None else shape_and_dtype(recorded, record.dtype)
        if kind == "array":
            return self._wanted_array(name, value)
        return "tensors that hold numbers" if _holds_nothing(value) else None

    def _wanted_number(self, name: str, value: Any) -> str | None:
        found = as_number(value)
        if found is None:
            return None if value is None else "one number"
        if name == "step" and not (math.isfinite(found) and found >= 0 and found == int(found)):
            return "a whole number from 0 on"
        return None

    def _wanted_array(self, name: str, value: Any) -> str | None:
        if value is None:
            return None
        target = self._target(name)
        readable = isinstance(value, torch.Tensor) and not gone(value)
        dense = readable and (value.layout is torch.strided or self._foreign(name))
        fits = dense and (value.ndim == len(target) if self.resize else value.shape == target)
        families = (_family(value.dtype), _family(self.param.dtype)) if fits else ("", "")
        slot, held = (self.slots or {}).get(name), self.common.held
        if fits and held is not None and slot is not None and slot.beside and held.is_form(value.dtype):
            return None  # whatever its form, one is made of another when the weights are there
        refused = name in self.slots if self.slots is not None else "complex" in families[0]
        alike = families[0] == families[1] or not refused
        nothing = ", with numbers," if isinstance(value, torch.Tensor) and gone(value) else ""
        return None if fits and alike else shape_and_dtype(target, self.param.dtype) + nothing

    def _target(self, name: str) -> Shape:
        """The shape that an array slot must have."""
        shape = tuple(self.param.shape)
        if name in lbfgs_state.VECTORS and is_of_lbfgs(self.saved.entry):
            return (self.common.numbers,)
        slot = (self.slots or {}).get(name)
        if slot is not None:
            return slot.shape(shape)
        record = self.saved.record
        if record is None:
            return shape
        recorded = record.slots.get(name)
        return shape if recorded is None or recorded == record.shape else recorded

    # -- what becomes of it --------------------------------------------------------------------------------------

    def _new(self, name: str, value: Any) -> Any:
        kind = self.common.kinds[name]
        if value is None:
            return None
        if kind == "array":
            return self._new_array(name, value)
        number = kind == "scalar" and not isinstance(value, torch.nn.Parameter)
        return self._new_number(name, value) if number else self._moved(value)

    def _new_number(self, name: str, value: Any) -> Any:
        if self.slots is None and not isinstance(value, torch.Tensor):
            return value
        capturable = self.group.get("capturable") or (self.slots is None and self.group.get("fused"))
        on_cpu = not capturable and (self.slots is not None or name == "step")
        device = torch.device("cpu") if on_cpu else self.param.device
        return torch.tensor(as_number(value), dtype=_number_dtype(name, value), device=device)

    def _new_array(self, name: str, value: torch.Tensor) -> torch.Tensor:
        target, param, slot = self._target(name), self.param, (self.slots or {}).get(name)
        as_saved = slot is not None and slot.beside is not None
        dtype = value.dtype if as_saved else self._held(slot, name) or self._dtype(value)
        with torch.no_grad():
            spread = None if self.common.placed is None else self.common.placed(value, param, slot, dtype)
            if spread is not None:
                return spread
            alike = (value.shape, value.dtype, value.device) == (target, dtype, param.device)
            refers = isinstance(value, torch.nn.Parameter) and name not in (self.slots or ())
            if alike and (refers or (self._foreign(name) and self._may_stay(value))):
                return value
            like = target == param.shape
            new = (
                torch.empty_like(param, dtype=dtype) if like else torch.empty(target, dtype=dtype, device=param.device)
            )
            if value.shape == target:
                same = (value.dtype, value.device, value.stride()) == (dtype, new.device, new.stride())
                given = same and self.common.given is not None and self.common.given(value)
                return value if given else new.copy_(value)
            new.copy_(self.common.fresh(slot, param, self.group)) if self.common.fresh and slot else new.zero_()
            overlap = tuple(slice(min(a, b)) for a, b in zip(value.shape, target, strict=True))
            new[overlap] = value[overlap].to(new)
            return new

    def _moved(self, value: Any, key: Any = None) -> Any:
        """A value of any kind as torch loads it: containers are new, tensors of another kind or device are cast, and
        everything else stays the very object, such as a parameter that is referred to."""
        if isinstance(value, torch.Tensor):
            return value if key == "step" and self._may_stay(value) else self._cast(value)
        if isinstance(value, dict):
            return {key: self._moved(item, key) for key, item in value.items()}
        if not isinstance(value, _CONTAINERS):
            return value
        items = [self._moved(item) for item in value]
        make: Any = getattr(type(value), "_make", type(value))  # which is a named tuple's
        return make(items, value.maxlen) if isinstance(value, deque) else make(items)

    def _cast(self, value: torch.Tensor) -> torch.Tensor:
        dtype = self.param.dtype if _family(value.dtype) == _family(self.param.dtype) else value.dtype
        if (value.dtype, value.device) == (dtype, self.param.device) and self._may_stay(value):
            return value
        return value.detach().to(self.param.device, dtype, copy=True)

    def _may_stay(self, value: torch.Tensor) -> bool:
        """Whether a tensor that somebody keeps in the state stays the very object."""
        given = self.common.given
        return given is None or isinstance(value, torch.nn.Parameter) or given(value)

    def _held(self, slot: Slot | None, name: str) -> torch.dtype | None:
        """The dtype in which a slot must be held; float32 where codes are to be made of it."""
        held = self.common.held
        dtype = None if held is None or slot is None else held.dtype(slot, self.param)
        if held is not None and dtype is None:
            before = self.saved.entry.get(name)
            codes = isinstance(before, torch.Tensor) and held.is_code(name, before.dtype)
            return self.param.dtype if codes and held.scale_name(name) in self.saved.entry else None
        return torch.float32 if held is not None and held.is_code(name, dtype) else dtype

    def _dtype(self, value: torch.Tensor) -> torch.dtype:
        """The parameter's dtype, unless the state was kept in another one than the parameter on purpose."""
        if self.saved.record is not None:
            return self.param.dtype if value.dtype == self.saved.record.dtype else value.dtype
        return self.param.dtype if _family(value.dtype) == _family(self.param.dtype) else value.dtype


def _family(dtype: torch.dtype) -> str:
    return "complex" if dtype.is_complex else "real" if dtype.is_floating_point else "whole"


def _shape_of(value: Any) -> Shape | None:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def _holds_nothing(value: Any) -> bool:
    """Whether there is a tensor without numbers in a value."""
    if isinstance(value, torch.Tensor):
        return gone(value)
    items = value.values() if isinstance(value, dict) else value if isinstance(value, _CONTAINERS) else ()
    return any(map(_holds_nothing, items))


def _number_dtype(name: str, value: Any) -> torch.dtype:
    if isinstance(value, torch.Tensor) and value.is_floating_point() and name != "step":
        return value.dtype
    exact = name != "step" or float(torch.tensor(as_number(value), dtype=torch.float32)) == as_number(value)
    return torch.float32 if exact and torch.get_default_dtype() != torch.float64 else torch.float64
