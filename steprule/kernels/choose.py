"""Which kernel serves a parameter, and why."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from steprule.kernels.cpu.llvm import LLVMLaunch
from steprule.kernels.gpu.triton import TritonLaunch, unavailable
from steprule.rule.program import FIRST_SLOT, GRAD, Operation, Program
from steprule.rule.slot import Slot
from steprule.storage import CORRECTIONS

from .coding import CODES
from .eager import EagerLaunch
from .entry import Entry, asked_of
from .fake import FakeLaunch, is_fake
from .launch import Launch
from .layout import dense
from .overlaps import fault, folded, has_own_memory, reach, tangled
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
            check_gradient(program, entry, groups[entry.group])
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


def check_gradient(program: Program, entry: Entry, group: Mapping[str, Any]) -> None:
    """Refuse gradients that the rule can't be applied to.

    Raises:
        RuntimeError: naming the parameter.
    """
    p, g = entry.param, entry.grad
    if g.shape != p.shape:
        raise RuntimeError(
            f"the gradient of parameter {entry.name} has shape {tuple(g.shape)}, the parameter {tuple(p.shape)}; "
            "was p.data replaced after backward()?"
        )
    for tensor, what in ((p, "parameter"), (g, "gradient of parameter")):
        allowed = (torch.strided,) if tensor is p else (torch.strided, torch.sparse_coo)
        if tensor.layout not in allowed:
            raise RuntimeError(f"the {what} {entry.name} is a {tensor.layout} tensor; give it as {allowed[-1]}")
    if p.is_complex() != g.is_complex():
        raise RuntimeError(f"parameter {entry.name} is {p.dtype}, its gradient {g.dtype}: both or none must be complex")
    if not (p.is_floating_point() or p.is_complex()):
        raise RuntimeError(f"parameter {entry.name} is {p.dtype}: only floating point and complex ones can be updated")
    if p.is_conj():
        raise RuntimeError(f"parameter {entry.name} is a conjugate view; optimize its resolve_conj()")
    if g.device != p.device:
        raise RuntimeError(f"parameter {entry.name} is on {p.device}, its gradient on {g.device}")
    if p.layout == torch.strided and folded(p):
        raise RuntimeError(
            f"unsupported operation: more than one element of the written-to tensor, parameter {entry.name}, refers to "
            "a single memory location. Please clone() the tensor before performing the operation."
        )
    unscales = any(operand == GRAD for phase in program.phases for operand, _ in phase.stores)
    for tensor, what in ((p, "parameter"), (g, "gradient of parameter")):
        if found := fault(tensor, tensor is p or unscales):
            raise RuntimeError(f"the {what} {entry.name} {found}; replace it with a tensor that has memory of its own")
    for slot in program.slots:
        if slot.beside is None and kept_in(slot, entry) in CODES:
            check_codes(program, slot, entry)
        if slot.format not in (None, "float32") and p.is_complex():
            raise RuntimeError(
                f"state_dtype={slot.format!r} can't hold {slot.name} of parameter {entry.name}, which is {p.dtype}; "
                "give its group state_dtype=None"
            )
    if group.get("rounding") == "stochastic" and p.is_complex():
        raise RuntimeError(
            f"rounding='stochastic' is for weights that are real numbers, but parameter {entry.name} is {p.dtype}; "
            "give its group rounding='nearest'"
        )
    if group.get("master") in CORRECTIONS and p.dtype == torch.float16:
        raise RuntimeError(
            f"master={group['master']!r} is for bfloat16 weights, which are the upper half of a float32, but parameter "
            f"{entry.name} is {p.dtype}; give its group master='float32'"
        )
    if entry.part is not None and group.get("differentiable"):
        raise RuntimeError(
            f"differentiable=True: autograd can't follow the step over parameter {entry.name}, {entry.part.where}, of "
            "which this process updates its part alone"
        )
    if "origin" in program.inputs and entry.part is not None and entry.part.origin is None:
        raise RuntimeError(
            f"{program.name} draws random numbers, which belong to places in the whole of a parameter, but of "
            f"parameter {entry.name}, {entry.part.where}, each process holds several pieces; cut it along its first "
            "dimension"
        )
    several = any(not step.in_place for phase in program.phases for step in phase.matrices)
    if (program.tables or several) and entry.part is not None and entry.part.axes:
        raise RuntimeError(
            f"{program.name} works on tables or several whole matrices at once, but parameter {entry.name} is "
            f"{entry.part.where}; give it to another optimizer"
        )
    common = [slot.name for slot in program.reduced_slots if slot.scope == "all"]
    if common and group.get("differentiable"):
        raise RuntimeError(
            f"differentiable=True: {common[0]} of {program.name} is one number of the whole optimizer, through which "
            f"autograd can't follow it over parameter {entry.name}"
        )
    if program.by_lines:
        check_lines(program, entry, group)
    if g.layout == torch.sparse_coo and not sparse_ready(program):
        if "param_norm" in dict(program.tracked):
            raise RuntimeError(
                f"param_norm and update_to_param can't be tracked: they need the whole of parameter {entry.name}, "
                "whose gradient is sparse; track grad_norm and update_norm, or make it dense"
            )
        raise RuntimeError(
            f"{program.name} does not support sparse gradients, please consider SparseAdam instead: its rule needs "
            f"the whole of parameter {entry.name} at once"
        )


def check_codes(program: Program, slot: Slot, entry: Entry) -> None:
    """Refuse to hold a slot in codes where it would not be what it is elsewhere.

    Raises:
        RuntimeError: naming the parameter.
    """
    p, g, why = entry.param, entry.grad, None
    held = program.slots.index(slot) + FIRST_SLOT
    if entry.part is not None:
        why = f"is {entry.part.where}"
    elif type(p).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__ and not is_fake(p, entry.name):
        why = f"is a {type(p).__name__}"
    elif p.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        why = f"is {p.dtype}, which codes of 8 bits are not for"
    elif not dense(p):
        why = "is not dense in memory, so that it has no blocks"
    elif g.layout == torch.sparse_coo:
        why = "has sparse gradients, whose rows are no blocks"
    elif program.by_lines:
        why = f"is one of which {program.name} reduces rows or columns, which are no blocks"
    elif any(o.op == "stored" and o.detail == held for phase in program.phases for o in phase.operations):
        why = f"is one of which {program.name} computes with what the slot will hold"
    if why is not None:
        raise RuntimeError(
            f"state_dtype={slot.format or '8bit'!r} can't hold {slot.name} of parameter {entry.name}: it {why}; give "
            "its group state_dtype=None"
        )


def check_lines(program: Program, entry: Entry, group: Mapping[str, Any]) -> None:
    """Refuse parameters that have no rows and columns.

    Raises:
        RuntimeError: naming the parameter.
    """
    p = entry.param
    if p.is_complex():
        raise RuntimeError(
            f"{program.name} does not support complex parameters: its rule reduces rows or columns, and parameter "
            f"{entry.name} is {p.dtype}"
        )
    if group.get("differentiable"):
        raise RuntimeError(
            f"differentiable=True: {program.name} reduces rows or columns of parameter {entry.name}, through which "
            "autograd can't follow it"
        )
    if p.ndim < 2:
        raise RuntimeError(
            f"{program.name} reduces rows or columns, but parameter {entry.name} has shape {tuple(p.shape)}; let the "
            "rule ask `if ndim(p) > 1:`"
        )


def sparse_ready(program: Program) -> bool:
    """Whether a rule is elementwise, but for reductions of what is zero wherever the gradient has no rows."""
    if program.temporaries or program.by_lines:
        return False
    updates = dict(program.tracked).get("update_norm")  # what has no gradient is not updated
    for phase in program.phases:
        zero: list[bool] = []
        for o in phase.operations:
            zero.append(vanishes(o, [zero[a] for a in o.args]))
        if not all(zero[value] or row == updates for row, value in phase.reductions):
            return False
    return True


def vanishes(o: Operation, zero: Sequence[bool]) -> bool:
    """Whether an operation gives zero where the gradient is zero.

    Args:
        o: the operation.
        zero: whether each of its arguments does.
    """
    if o.op in ("read", "constant"):
        return bool(o.detail == (GRAD if o.op == "read" else 0.0))
    if o.op == "mul":
        return any(zero)
    if o.op in ("add", "sub", "minimum", "maximum"):
        return all(zero)
    if o.op == "where":
        return all(zero[1:])
    return o.op in KEEP_ZERO and zero[0]


KEEP_ZERO = frozenset({"div", "mod", "neg", "abs", "sqrt", "sign", "floor", "ceil", "round", "tanh", "sin", "erf"})
"""Operations that give zero where their first operand is zero."""
