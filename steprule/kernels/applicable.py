"""What a rule can be applied to: parameters, gradients and ways to hold state, and what is refused of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from steprule.rule.program import FIRST_SLOT, GRAD, Operation, Program
from steprule.rule.slot import Slot
from steprule.storage import CORRECTIONS

from .coding import CODES
from .entry import Entry
from .fake import is_fake
from .layout import dense
from .overlaps import fault, folded
from .part import Part
from .slots import kept_in

__all__ = ["check_applicable"]

Group = Mapping[str, Any]


def check_applicable(program: Program, entry: Entry, group: Group) -> None:
    """Refuse a parameter, its gradient or options of its group that a rule can't be applied to.

    Raises:
        RuntimeError: naming the parameter.
    """
    check_pair(program, entry)
    check_holding(program, entry, group)
    if entry.part is not None:
        check_part(program, entry, entry.part, group)
    common = [slot.name for slot in program.reduced_slots if slot.scope == "all"]
    if common and group.get("differentiable"):
        raise RuntimeError(
            f"differentiable=True: {common[0]} of {program.name} is one number of the whole optimizer, through which "
            f"autograd can't follow it over parameter {entry.name}"
        )
    if program.by_lines:
        check_lines(program, entry, group)
    if entry.grad.layout == torch.sparse_coo and not sparse_ready(program):
        refuse_sparse(program, entry)


def check_pair(program: Program, entry: Entry) -> None:
    """Refuse a parameter and a gradient that do not go together, or have no memory of their own.

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


def check_holding(program: Program, entry: Entry, group: Group) -> None:
    """Refuse to hold state or weights in ways that are not for the parameter.

    Raises:
        RuntimeError: naming the parameter.
    """
    p = entry.param
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


def check_part(program: Program, entry: Entry, part: Part, group: Group) -> None:
    """Refuse a parameter of which this process has a part, where the rule needs more.

    Raises:
        RuntimeError: naming the parameter.
    """
    if group.get("differentiable"):
        raise RuntimeError(
            f"differentiable=True: autograd can't follow the step over parameter {entry.name}, {part.where}, of "
            "which this process updates its part alone"
        )
    if "origin" in program.inputs and part.origin is None:
        raise RuntimeError(
            f"{program.name} draws random numbers, which belong to places in the whole of a parameter, but of "
            f"parameter {entry.name}, {part.where}, each process holds several pieces; cut it along its first "
            "dimension"
        )
    several = any(not step.in_place for phase in program.phases for step in phase.matrices)
    if (program.tables or several) and part.axes:
        raise RuntimeError(
            f"{program.name} works on tables or several whole matrices at once, but parameter {entry.name} is "
            f"{part.where}; give it to another optimizer"
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


def refuse_sparse(program: Program, entry: Entry) -> None:
    """Refuse a sparse gradient, as its rule needs the whole of the parameter.

    Raises:
        RuntimeError: naming the parameter.
    """
    if "param_norm" in dict(program.tracked):
        raise RuntimeError(
            f"param_norm and update_to_param can't be tracked: they need the whole of parameter {entry.name}, "
            "whose gradient is sparse; track grad_norm and update_norm, or make it dense"
        )
    raise RuntimeError(
        f"{program.name} does not support sparse gradients, please consider SparseAdam instead: its rule needs "
        f"the whole of parameter {entry.name} at once"
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
