"""The slots of a parameter: what they are kept in, what they begin with, and what of a state can serve as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from steprule.rule.slot import Slot
from steprule.storage import FORMATS

from .coding import CODES, decoded, encoded, scale_count, scale_name
from .entry import Entry, Group, State
from .layout import dense, like, materialized, same_layout
from .masters import beside, is_form, joined
from .overlaps import fault, has_own_memory, shared_with, unlike_memory

__all__ = [
    "array_slots",
    "asked_dtype",
    "computed_in",
    "first_number",
    "fresh",
    "kept_in",
    "lacks",
    "scalar_dtype",
    "slot_bytes",
    "slot_tensor",
]


def scalar_dtype() -> torch.dtype:
    """What torch keeps ``step`` in."""
    return torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32


def computed_in(dtype: torch.dtype) -> torch.dtype:
    """What a parameter's update is computed in: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32


def asked_dtype(slot: Slot, param: torch.Tensor) -> torch.dtype | None:
    """What a slot must be kept in, whatever stands in the state: as the group asks, or as float16 would lose it."""
    if slot.kind != "array":
        return None
    if slot.beside is not None:
        return getattr(torch, str(slot.dtype))  # type: ignore[no-any-return]
    if slot.format is not None:
        found = FORMATS[slot.format]
        codes = found.positive if slot.positive else found.signed
        if codes is not None and param.numel() < found.least:
            return computed_in(param.dtype)
        dtype: torch.dtype = getattr(torch, codes.dtype if codes is not None else str(found.dtype))
        return torch.complex64 if param.is_complex() else dtype
    # the square of a gradient below 2.4e-4 is none of float16's numbers
    return torch.float32 if slot.positive and slot.dtype is None and param.dtype == torch.float16 else None


def slot_dtype(slot: Slot, param: torch.Tensor) -> torch.dtype:
    """What a new slot of a parameter is kept in: complex for a complex one, for kernels work on real views of both."""
    asked = asked_dtype(slot, param)
    if asked is not None:
        return asked
    undeclared = computed_in(param.dtype) if slot.kind == "table" else param.dtype
    dtype: torch.dtype = getattr(torch, slot.dtype) if slot.dtype else undeclared
    if param.is_complex() and not dtype.is_complex:
        return torch.complex128 if dtype == torch.float64 else torch.complex64
    return dtype


def slot_bytes(slot: Slot, param: torch.Tensor, shape: Sequence[int], reduced: bool = False) -> int:
    """Bytes that a slot takes.

    Args:
        slot: the slot.
        param: the parameter, for its dtype.
        shape: that of the parameter, or of the part of it that is meant.
        reduced: whether it is one number that a reduction gives.
    """
    if slot.kind == "scalar":
        return 8 if reduced else scalar_dtype().itemsize
    dtype, count = slot_dtype(slot, param), math.prod(slot.shape(shape))
    coded = dtype in CODES and slot.beside is None
    scales = scale_count(CODES[dtype], count) * torch.bfloat16.itemsize if coded else 0
    return count * dtype.itemsize + scales


def kept_in(slot: Slot, entry: Entry) -> torch.dtype:
    """The dtype of a parameter's slot, be it there already or still to be made."""
    value, asked = entry.state.get(slot.name), asked_dtype(slot, entry.param)
    if isinstance(value, torch.Tensor) and asked is None and value.dtype not in CODES:
        return value.dtype
    return slot_dtype(slot, entry.param)


def fresh(slot: Slot, param: torch.Tensor, group: Group) -> torch.Tensor:
    """A slot of an array, or of rows or columns, as it stands before a parameter's first update."""
    dtype = slot_dtype(slot, param)
    initial: Any = group.get(str(slot.initial), slot.initial)
    if initial == "parameter":
        return param.detach().to(dtype, copy=True)
    like = param if slot.kind == "array" else param.detach().new_empty(slot.shape(param.shape))
    if dtype in CODES and initial:
        return torch.full_like(like, float(initial), dtype=torch.float32, requires_grad=False)
    if not initial:
        return torch.zeros_like(like, dtype=dtype, requires_grad=False)
    if initial == "identity":
        shape = slot.shape(param.shape)
        one = param.detach().new_zeros(shape[-2:], dtype=dtype)
        one = one.fill_(1) if slot.is_diagonal(shape[-2]) else one.fill_diagonal_(1)
        return one.expand(shape).clone()
    number = float(initial.detach() if isinstance(initial, torch.Tensor) else initial)
    value = complex(number, number) if dtype.is_complex else number
    return torch.full_like(like, value, dtype=dtype, requires_grad=False)


def first_number(slot: Slot, entry: Entry, groups: Sequence[Group]) -> Any:
    """What a slot of one number holds: what stands in the parameter's state, or what it begins with.

    Raises:
        RuntimeError: something else stands there.
    """
    value = entry.found(slot)
    if value is None:
        return groups[entry.group][slot.initial] if isinstance(slot.initial, str) else slot.initial
    tensor = isinstance(value, torch.Tensor)
    if tensor:
        refuse_faulty(value, slot.name, entry)
    if (value.numel() != 1 or value.is_complex()) if tensor else not hasattr(value, "__float__"):
        found = f"{tuple(value.shape)} of {value.dtype}" if tensor else repr(value)
        raise RuntimeError(
            f"state {slot.name!r} of parameter {entry.name} is {found}, but it is one number; replace it with a "
            "0-dim tensor, or delete it to start anew"
        )
    return value


def slot_tensor(slot: Slot, entry: Entry, group: Group) -> torch.Tensor:
    """A parameter's slot: what stands in its state, an array laid out as the parameter; made when it is missing.

    Raises:
        RuntimeError: what stands there can't be a slot of this parameter.
    """
    p, name = entry.param, slot.name
    value = entry.found(slot)
    if value is None:
        value = fresh(slot, p, group)
    elif isinstance(value, torch.Tensor) and value.dtype in CODES and value.shape == p.shape:
        value = decoded(value, scales_found(slot, value, entry)).to(kept_in_full(slot, p))
    else:
        refuse_unlike(value, slot, entry)
    if value.is_complex() != p.is_complex() or not (value.is_complex() or value.is_floating_point()):
        raise RuntimeError(
            f"state {name!r} of parameter {entry.name} is {value.dtype}, but the parameter is {p.dtype}; "
            "replace it with a tensor like the parameter, or delete it to start anew"
        )
    if slot.kind == "table" and has_own_memory(p) and not has_own_memory(value):
        raise RuntimeError(
            f"state {name!r} of parameter {entry.name} is a {type(value).__name__}, and a matrix function needs plain "
            "memory; replace it with a plain tensor, or delete it to start anew"
        )
    refuse_faulty(value, name, entry)
    value = materialized(value)
    asked = asked_dtype(slot, p)
    if asked is not None and value.dtype != asked and asked not in CODES:
        value = value.to(asked)
    if slot.kind == "array" and p.layout == torch.strided and dense(p):
        value = like(value, p)
    return value


def refuse_unlike(value: Any, slot: Slot, entry: Entry) -> None:
    """Refuse what stands in a state and is of another shape than the slot, or elsewhere than the parameter.

    Raises:
        RuntimeError: naming slot and parameter.
    """
    p = entry.param
    if not isinstance(value, torch.Tensor) or value.shape != slot.shape(p.shape) or value.device != p.device:
        found = f"{tuple(value.shape)} on {value.device}" if isinstance(value, torch.Tensor) else repr(value)
        wanted = "like the parameter" if slot.kind == "array" else f"of shape {slot.shape(p.shape)}"
        raise RuntimeError(
            f"state {slot.name!r} of parameter {entry.name} is {found}, but the parameter is {tuple(p.shape)} on "
            f"{p.device}; replace it with a tensor {wanted}, or delete it to start anew"
        )


def refuse_faulty(value: torch.Tensor, name: str, entry: Entry) -> None:
    """Refuse what stands in a state and can't be written.

    Raises:
        RuntimeError: naming slot and parameter.
    """
    if wrong := fault(value):
        raise RuntimeError(
            f"state {name!r} of parameter {entry.name} {wrong}; replace it with a tensor like the parameter, or "
            "delete it to start anew"
        )


def kept_in_full(slot: Slot, param: torch.Tensor) -> torch.dtype:
    """What the numbers of codes are kept in where they are not to be codes."""
    dtype = slot_dtype(slot, param)
    return torch.float32 if dtype in CODES else dtype


def scales_found(slot: Slot, codes: torch.Tensor, entry: Entry) -> torch.Tensor:
    """The scales that stand in the state beside codes.

    Raises:
        RuntimeError: there are none that could be theirs.
    """
    scales: Any = entry.state.get(scale_name(slot.name))
    count = scale_count(CODES[codes.dtype], codes.numel())
    if not isinstance(scales, torch.Tensor) or (scales.shape, scales.dtype) != ((count,), torch.bfloat16):
        found = f"{tuple(scales.shape)} of {scales.dtype}" if isinstance(scales, torch.Tensor) else repr(scales)
        raise RuntimeError(
            f"state {scale_name(slot.name)!r} of parameter {entry.name} is {found:.60}, but the codes need {count} "
            "scales of torch.bfloat16; put both back, or delete both to start anew"
        )
    for held, name in ((codes, slot.name), (scales, scale_name(slot.name))):
        refuse_faulty(held, name, entry)
        wrong = unlike_memory(held, entry.owner)
        if wrong or (not has_own_memory(held) and has_own_memory(entry.param)):
            raise RuntimeError(
                f"state {name!r} of parameter {entry.name} {wrong or f'is a {type(held).__name__}'}; codes and scales "
                "are plain tensors: put both back, or delete both to start anew"
            )
    return scales


def array_slots(slots: Sequence[Slot], entry: Entry, group: Group) -> tuple[list[str], list[torch.Tensor]]:
    """A parameter's array slots, and behind them the scales of those that are held in codes, with their names.

    Raises:
        RuntimeError: what stands in the state can't be one of them.
    """
    names, tensors = [slot.name for slot in slots], []
    scales: list[torch.Tensor] = []
    for slot in slots:
        dtype = kept_in(slot, entry)
        if slot.beside is not None:
            tensors.append(master_tensor(slot, entry, group))
            continue
        if dtype not in CODES:
            tensors.append(slot_tensor(slot, entry, group))
            continue
        names.append(scale_name(slot.name))
        codes = entry.found(slot)
        if isinstance(codes, torch.Tensor) and codes.dtype == dtype and as_laid(codes, entry.param):
            pair = codes, scales_found(slot, codes, entry)
        elif codes is None and not group.get(str(slot.initial), slot.initial):
            pair = (
                fresh(slot, entry.param, group),
                entry.param.new_zeros(
                    scale_count(CODES[dtype], entry.param.numel()), dtype=torch.bfloat16, requires_grad=False
                ),
            )
        else:
            pair = encoded(slot_tensor(slot, entry, group).to(torch.float32), dtype)
        tensors.append(pair[0])
        scales.append(pair[1])
    tensors += scales
    if pair_of := shared_with([entry.param, *tensors]):
        one, other = (f"state {names[i - 1]!r}" if i else "the parameter" for i in pair_of)
        raise RuntimeError(
            f"{other} of parameter {entry.name} lies in the memory of {one}, so that each would overwrite the other; "
            "replace it with its clone()"
        )
    return names, tensors


def master_tensor(slot: Slot, entry: Entry, group: Group) -> torch.Tensor:
    """What stands beside a parameter, made of what stands in its state in whatever form.

    Raises:
        RuntimeError: what stands there is nothing of the kind.
    """
    p, value = entry.param, entry.found(slot)
    if value is None:
        return fresh(slot, p, group)
    refuse_unlike(value, slot, entry)
    refuse_faulty(value, slot.name, entry)
    if not is_form(value.dtype):
        raise RuntimeError(
            f"state {slot.name!r} of parameter {entry.name} is {value.dtype}, which stands beside no weight; delete it "
            "to start anew"
        )
    value, dtype = materialized(value), slot_dtype(slot, p)
    value = value if value.dtype == dtype else beside(joined(p, value), p, dtype)
    return like(value, p) if dense(p) else value


def as_laid(codes: torch.Tensor, param: torch.Tensor) -> bool:
    """Whether codes stand where the parameter's elements do."""
    return codes.shape == param.shape and codes.device == param.device and same_layout(codes, param)


def lacks(state: State, names: Sequence[str]) -> bool:
    """Whether a state has none of some slots."""
    for name in names:  # noqa: SIM110 (a loop is faster)
        if state.get(name) is not None:
            return False
    return True
