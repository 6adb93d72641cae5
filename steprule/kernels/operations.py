"""The operations of the language as torch operations, on plain numbers and tensors alike."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from steprule.rule.host import OPERATIONS as HOST
from steprule.rule.program import WORDS
from steprule.storage import CORRECTIONS, FLOAT16_AT_RANDOM, Formula

__all__ = ["MIXED", "apply", "in_parts", "integer", "number", "root", "rounded_at_random", "upper_half"]


class _WideRoot(torch.autograd.Function):
    """The root of a float64 tensor on the CPU, as the processor computes it; torch's own may be a library's that is off
    by a rounding."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        with np.errstate(invalid="ignore"):
            found = torch.as_tensor(np.sqrt(x.detach().numpy(force=True)), dtype=x.dtype, device="cpu")
        ctx.save_for_backward(found)
        return found

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (found,) = ctx.saved_tensors
        slope: torch.Tensor = grad / (2 * found)
        return slope


def root(x: torch.Tensor) -> torch.Tensor:
    """The correctly rounded square root of each element, which ``torch.sqrt`` need not give on a CPU.

    Args:
        x: of float32 or float64.
    """
    if x.dtype == torch.float32:
        return x.double().sqrt().to(torch.float32)
    is_torchs = type(x).__torch_dispatch__ is torch.Tensor.__torch_dispatch__
    if not is_torchs or x.device.type != "cpu":
        return torch.sqrt(x)
    found: torch.Tensor = _WideRoot.apply(x)  # type: ignore[no-untyped-call]
    return found


def _both(function: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    """A binary torch function that is also given plain numbers."""

    def call(a: Any, b: Any) -> Any:
        device, dtype = (a if isinstance(a, torch.Tensor) else b).device, torch.result_type(a, b)
        # torch.full makes a number on a GPU without waiting for it
        numbers = (
            x.to(dtype) if isinstance(x, torch.Tensor) else torch.full((), x, dtype=dtype, device=device)
            for x in (a, b)
        )
        return function(*numbers)

    return call


def _where(condition: Any, a: Any, b: Any) -> Any:
    if not isinstance(condition, torch.Tensor):
        return a if condition else b
    return torch.where(condition.bool(), a, b)


def _smaller(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``torch.minimum``; of 0.0 and -0.0, where that takes one or the other by how many elements there are, ``b``."""
    if torch.is_grad_enabled() and (a.requires_grad or b.requires_grad):
        return torch.minimum(a, b)  # whose derivative is one half where both are equal
    return torch.where(a.isnan() | (a < b), a, b)


def _larger(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``torch.maximum``, likewise."""
    if torch.is_grad_enabled() and (a.requires_grad or b.requires_grad):
        return torch.maximum(a, b)
    return torch.where(a.isnan() | (a > b), a, b)


OPERATORS = ("add", "sub", "mul", "neg", "lt", "le", "gt", "ge", "eq", "ne")
"""The operations that Python's operators do for tensors as for numbers."""

OPERATIONS: dict[str, Callable[..., Any]] = {
    **{op: HOST[op] for op in OPERATORS},
    "div": _both(torch.div),
    "mod": lambda a, b: a - b * torch.floor(OPERATIONS["div"](a, b)),
    "pow": lambda a, b: a**b,
    "abs": torch.abs,
    "sqrt": root,
    "exp": torch.exp,
    "log": torch.log,
    "tanh": torch.tanh,
    "sin": torch.sin,
    "cos": torch.cos,
    "atan2": _both(torch.atan2),
    "erf": torch.erf,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "round": torch.round,
    "sign": torch.sign,
    "minimum": _both(_smaller),
    "maximum": _both(_larger),
    "and": _both(lambda a, b: a.bool() & b.bool()),
    "or": _both(lambda a, b: a.bool() | b.bool()),
    "not": lambda a: ~a.bool() if isinstance(a, torch.Tensor) else not a,
    "isnan": torch.isnan,
    "where": _where,
}


CONDITIONS = {"where": 1, "and": 2, "or": 2, "not": 1}
"""How many of an operation's first operands are conditions; the others are numbers, 1 for what holds."""


def _mixed(on_tensors: Callable[..., Any], on_numbers: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        return (on_tensors if any(isinstance(a, torch.Tensor) for a in args) else on_numbers)(*args)

    return call


MIXED = {op: _mixed(function, HOST[op]) for op, function in OPERATIONS.items()}
"""The operations on plain numbers and tensors alike."""


def apply(op: str, args: Sequence[Any], dtype: torch.dtype) -> Any:
    """An operation on plain numbers and tensors, all of which but conditions are brought to ``dtype``."""
    first = CONDITIONS.get(op, 0)
    numbers = [a.to(dtype) if isinstance(a, torch.Tensor) else a for a in args[first:]]
    if op == "where" and isinstance(args[0], torch.Tensor):
        # of two plain numbers torch.where makes a tensor of the default dtype
        device = args[0].device
        numbers = [a if isinstance(a, torch.Tensor) else torch.full((), a, dtype=dtype, device=device) for a in numbers]
    return MIXED[op](*args[:first], *numbers)


LOW = 2**32 - 1


def integer(op: str, detail: Any, args: Sequence[Any], where: Callable[[], torch.Tensor]) -> torch.Tensor:
    """One operation on whole numbers of 32 bits, which wrap around, held in int64.

    Args:
        op: the operation.
        detail: what belongs to it.
        args: its operands.
        where: gives the places of the elements.
    """
    whole: torch.Tensor
    if op == "word":
        known = isinstance(args[0], torch.Tensor)
        number = (args[0] if known else torch.tensor(args[0], dtype=torch.float64, device="cpu")).to(torch.int64)
        whole = number >> 32 if detail == "high" else number
    elif op == "index":
        place = where() + args[0] + (args[1] << 32)
        whole = place >> 32 if detail == "high" else place
    elif op == "whole":
        whole = torch.tensor(detail, dtype=torch.int64)
    elif op == "bits":
        whole = torch.as_tensor(args[0], dtype=torch.float32).view(torch.int32).to(torch.int64)
    elif op == "iwhere":
        whole = _where(*args)
    elif op == "imul":
        whole = args[0] * detail
    elif op == "ishr":
        whole = args[0] >> detail
    else:
        whole = BITWISE[op](args[0], args[1])
    return whole & LOW


BITWISE: dict[str, Callable[[Any, Any], Any]] = {
    "iadd": operator.add,
    "iand": operator.and_,
    "ior": operator.or_,
    "ixor": operator.xor,
}


def number(word: torch.Tensor) -> torch.Tensor:
    """The float32 of 32 bits."""
    return torch.where(word > LOW // 2, word - 2**32, word).to(torch.int32).view(torch.float32)


def in_parts(op: str, kind: str, args: Sequence[Any]) -> Any:
    """A bfloat16 and its correction made one float32, or either of them made of it; the correction a whole number.

    Args:
        op: ``"joined"``, ``"upper"`` or ``"lower"``.
        kind: what the correction is called.
        args: its operands.
    """
    return on_bits(CORRECTIONS[kind].formula(op, len(args)), args)


def on_bits(formula: Formula, given: Sequence[Any]) -> Any:
    """A formula of numbers in float32 and whole numbers."""

    def operation(op: str, args: list[Any], detail: Any) -> Any:
        if op == "constant":
            return detail
        if op in WORDS:
            return integer(op, detail, args, lambda: args[0])
        if op == "drawn":
            return (args[0] >> detail).to(torch.float32)
        return number(args[0]) if op == "number" else apply(op, args, torch.float32)

    return formula.compute(given, operation)


def upper_half(value: torch.Tensor) -> torch.Tensor:
    """Numbers of which nothing but the upper half is set, as they are: NaN keeps its bits."""
    return (value.view(torch.int32) >> 16).to(torch.int16).view(torch.bfloat16)


def rounded_at_random(value: torch.Tensor, bits: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Numbers rounded up or down, by as many random bits as are left out: on average they stay what they are.

    Args:
        value: the numbers.
        bits: 32 random bits for each, held in int64.
        dtype: what they are rounded to; all but bfloat16 and float16 take them as they are.
    """
    if dtype == torch.float16:
        found: torch.Tensor = on_bits(FLOAT16_AT_RANDOM, [value.to(torch.float32), bits])
        return found.to(dtype)
    if dtype != torch.bfloat16:
        return value.clone()
    held = value.to(torch.float32).view(torch.int32).to(torch.int64) & LOW
    carried = (held + (bits >> 16)) & 0xFFFF0000
    return torch.where(value.isnan(), math.nan, number(carried)).to(dtype)
