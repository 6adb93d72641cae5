"""Which kernel serves a parameter, and why."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from steprule.kernels.cpu.llvm import LLVMLaunch
from steprule.kernels.gpu.triton import TritonLaunch, unavailable
from steprule.rule.program import Program

from .applicable import check_applicable
from .coding import CODES
from .eager import EagerLaunch
from .entry import Entry, asked_of
from .fake import FakeLaunch, is_fake
from .launch import Launch
from .layout import dense
from .overlaps import has_own_memory, reach, tangled
from .slots import kept_in, scalar_dtype

__all__ = ["BACKENDS", "choose", "launches"]

BACKENDS = ("auto", "llvm", "triton", "eager")

FLOATS = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})
COMPLEX = frozenset({torch.complex64, torch.complex128})


def obstacle(program: Program, entry: Entry, group: Mapping[str, Any]) -> str | None:
    """Why no compiled kernel can serve a parameter, or None if one can."""
    p, g = entry.param, entry.grad
    if group.get("differentiable"):
        return "differentiable=True: autograd has to see each operation"
    for tensor, what in ((p, "parameter"), (g, "gradient")):
        if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
            return f"the {what} is a {type(tensor).__name__}, whose memory is not plain"
        if tensor.dtype not in FLOATS | COMPLEX:
            return f"the {what} is {tensor.dtype}"
    if not dense(p):
        return "the parameter is not dense in memory"
    if p.is_neg():
        return "the parameter is a negative view"
    if entry.tangled:
        return "its memory overlaps that of another parameter or of a gradient, so one is updated after the other"
    for slot in program.slots:
        value = entry.found(slot)
        if isinstance(value, torch.Tensor) and type(value).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
            return f"state {slot.name!r} is a {type(value).__name__}, whose memory is not plain"
        dtype = kept_in(slot, entry)
        if slot.beside is None and dtype not in FLOATS | COMPLEX | CODES.keys():
            return f"state {slot.name!r} is {dtype}"
    by_rows = g.layout == torch.sparse_coo or program.temporaries or program.by_lines
    if by_rows and not p.is_contiguous():
        return "the parameter's rows are not contiguous"
    return None


def choose(program: Program, entry: Entry, group: Mapping[str, Any]) -> tuple[type[Launch], str]:
    """The kernel for a parameter, with the reason in words.

    Raises:
        RuntimeError: if the group asks for a backend that can't serve the parameter.
    """
    asked = group.get("backend", "auto")
    if is_fake(entry.param, entry.name) and not group.get("differentiable"):
        return FakeLaunch, "a FakeTensor has no values to compute with, whatever backend is asked for"
    hindered = obstacle(program, entry, group)
    device = entry.param.device.type
    if asked == "eager":
        return EagerLaunch, "backend='eager' was asked for"
    if hindered is None and device == "cpu" and asked in ("auto", "llvm"):
        return LLVMLaunch, "dense memory on the CPU"
    if hindered is None and asked != "llvm":
        hindered = unavailable(entry.param.device)
        if hindered is None:
            return TritonLaunch, f"dense memory on {entry.param.device}"
        if asked == "auto" and device == "cuda":
            warnings.warn(f"torch operations take the steps on {entry.param.device}: {hindered}", stacklevel=2)
    hindered = hindered or f"the parameter is on {entry.param.device}"
    if asked != "auto":
        raise RuntimeError(
            f"backend={asked!r} can't serve parameter {entry.name}: {hindered}; "
            "backend='auto' would take torch operations for it"
        )
    return EagerLaunch, hindered


def launches(
    programs: Sequence[Program],
    entries: Sequence[Entry],
    groups: Sequence[Mapping[str, Any]],
    resting: Sequence[tuple[int, Entry, Program]] = (),
) -> list[Launch]:
    """Sort the parameters of a step into as few launches as possible.

    Args:
        programs: what is to run for each entry.
        entries: the parameters.
        groups: the parameter groups.
        resting: those that have had gradients and have none now, behind how many of the others each stands, with what
            would run for it. Where all is as it was they join a launch that can leave them out.
    """
    # equal Programs are told by the first of them, which is hashed once for many parameters
    firsts: dict[Program, Program] = {}
    known = {id(program): program for program in programs}
    known = {key: firsts.setdefault(program, program) for key, program in known.items()}
    seen: dict[int, int] = {}
    kinds: dict[tuple[tuple[Any, ...], int], list[Entry]] = {}
    asked = [asked_of(group) for group in groups]
    overlapping = overlaps(entries)
    for entry, program in zip(entries, map(known.__getitem__, map(id, programs)), strict=True):
        options, shared = asked[entry.group], id(entry.param) in overlapping
        if entry.tangled != shared or not entry.holds(program, options):
            entry.tangled = shared
            check_applicable(program, entry, groups[entry.group])
            kernel, reason = choose(program, entry, groups[entry.group])
            if entry.part is not None:
                reason = f"{reason}, {entry.part.where}"
            p, g = entry.param, entry.grad
            dtypes = [p.dtype, g.dtype, *(kept_in(slot, entry) for slot in (*program.slots, *program.line_slots))]
            axes = None if entry.part is None else entry.part.axes
            kind = (kernel, reason, id(program), tuple(dtypes), p.device, g.layout, options[1], axes)
            entry.settle(program, options, kind)
        # a parameter that stands twice in a group is updated twice, one after the other
        times = seen[id(entry.param)] = seen.get(id(entry.param), 0) + 1
        kinds.setdefault((entry.kind, times), []).append(entry)
    if resting and all(kind[0].may_leave_out(members[0].program, members[0]) for (kind, _), members in kinds.items()):
        join_resting(kinds, entries, resting, firsts, asked)
    return [kind[0](members[0].program, members, groups, kind[1]) for (kind, _), members in kinds.items()]


def join_resting(
    kinds: Mapping[tuple[tuple[Any, ...], int], list[Entry]],
    entries: Sequence[Entry],
    resting: Sequence[tuple[int, Entry, Program]],
    firsts: Mapping[Program, Program],
    asked: Sequence[tuple[Any, ...]],
) -> None:
    """Let those that rest join the launches of their kind, each where it would stand if it had a gradient."""
    overlapping = overlaps([*entries, *(entry for _, entry, _ in resting)])
    like = {kind: members for (kind, _), members in kinds.items()}
    places = {id(entry): (i, 1) for i, entry in enumerate(entries)}
    for place, entry, program in resting:
        alike, alone = like.get(entry.kind), id(entry.param) not in overlapping
        if alike is not None and alone and may_rest(entry, firsts.get(program, program), asked[entry.group]):
            alike.append(entry)
            places[id(entry)] = place, 0
    for members in kinds.values():
        members.sort(key=lambda entry: places[id(entry)])


def may_rest(entry: Entry, program: Program, options: tuple[Any, ...]) -> bool:
    """Whether what was found out of a parameter holds, and is enough to update it when a gradient comes again."""
    numbers = [*(["step"] if program.uses_step else []), *(slot.name for slot in program.scalar_slots)]
    return (
        not entry.tangled
        and not (program.uses_step and entry.uncounted)
        and all(is_count(entry.state.get(name)) for name in numbers)
        and entry.grad_look is not None
        and entry.holds(program, options)
    )


def is_count(value: Any) -> bool:
    """Whether a number of a state is one as launches keep it."""
    return type(value) is torch.Tensor and value.ndim == 0 and value.dtype == scalar_dtype() and value.is_cpu


def overlaps(entries: Sequence[Entry]) -> set[int]:
    """The identities of the parameters whose memory overlaps that of another, or of a gradient."""
    tensors = [e.param for e in entries] + [e.grad for e in entries]
    owners, count = [id(e.param) for e in entries] * 2, len(entries)
    found = [i for i, t in enumerate(tensors) if has_own_memory(t)]
    places = [(tensors[i].data_ptr(), reach(tensors[i])) for i in found]
    return tangled(places, [owners[i] for i in found], [i < count for i in found])
