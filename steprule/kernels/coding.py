"""Codes and scales as torch operations: what state in few bits stands for, and how it is made of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from steprule.storage import FORMATS, Codes, Formula

from .layout import like
from .masters import is_master
from .operations import apply

__all__ = ["CODES", "decoded", "encode", "encoded", "flat", "in_full", "is_code", "scale_count", "scale_name"]

CODES: dict[torch.dtype, Codes] = {
    getattr(torch, codes.dtype): codes
    for f in FORMATS.values()
    for codes in (f.signed, f.positive)
    if codes is not None
}
"""What arrays of these dtypes are: of codes, which nothing else in a state is of."""


def scale_name(slot: str) -> str:
    """What the scales of a slot are called in the state."""
    return f"{slot}::scale"


def in_full(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter's state with numbers in place of codes."""
    coded = {name for name, value in entry.items() if isinstance(value, torch.Tensor) and is_code(name, value.dtype)}
    scales = set(map(scale_name, coded))
    return {
        name: decoded(value, entry[scale_name(name)]) if name in coded else value
        for name, value in entry.items()
        if name not in scales
    }


def is_code(name: str, dtype: torch.dtype | None) -> bool:
    """Whether a slot of that name and dtype holds codes; corrections of weights are whole numbers too."""
    return dtype in CODES and not is_master(name)


def scale_count(codes: Codes, elements: int) -> int:
    return -(-elements // codes.block)


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """A dense tensor's elements in the order of memory."""
    return tensor.as_strided((tensor.numel(),), (1,), int(tensor.storage_offset()))


def computed(formula: Formula, *given: Any) -> Any:
    """A formula in float32, on numbers and tensors."""

    def operation(op: str, args: list[Any], detail: Any) -> Any:
        return detail if op == "constant" else apply(op, args, torch.float32)

    return formula.compute(given, operation)


def in_blocks(codes: Codes, line: torch.Tensor) -> torch.Tensor:
    """Elements as rows of a block each, the last filled up with zeros."""
    missing = scale_count(codes, len(line)) * codes.block - len(line)
    return torch.cat([line, line.new_zeros(missing)]).view(-1, codes.block)


def decoded(held: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The numbers that codes stand for: float32, laid out as the codes are."""
    codes = CODES[held.dtype]
    rows = in_blocks(codes, flat(held)).to(torch.float32)
    numbers = computed(codes.decode, rows, scales.to(torch.float32)[:, None])
    new = torch.empty_strided(held.shape, held.stride(), dtype=torch.float32, device=held.device)
    flat(new).copy_(numbers.reshape(-1)[: held.numel()])
    return new


def encode(numbers: torch.Tensor, held: torch.Tensor, scales: torch.Tensor, bits: torch.Tensor | None = None) -> None:
    """Write numbers as codes and scales.

    Args:
        numbers: of the codes' shape.
        held: takes the codes.
        scales: takes the scales.
        bits: 32 random bits for each number, in int64; None rounds to nearest.
    """
    codes = CODES[held.dtype]
    rows = in_blocks(codes, flat(like(numbers.to(torch.float32), held)))
    roots = computed(codes.root, rows)
    largest = (roots.view(torch.int32) & 0x7FFFFFFF).amax(1).view(torch.float32)
    scales.copy_(computed(codes.scale, largest))
    inverse = computed(codes.inverse, scales.to(torch.float32))[:, None]
    if bits is None or codes.at_random is None:
        found = computed(codes.encode, roots, inverse)
    else:
        upper = in_blocks(codes, flat(like(bits >> 16, held))).to(torch.float32)
        found = computed(codes.at_random, roots, inverse, upper)
    flat(held).copy_(found.reshape(-1)[: held.numel()])


def encoded(numbers: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of a dtype and scales for numbers, rounded to nearest."""
    held = torch.empty_strided(numbers.shape, numbers.stride(), dtype=dtype, device=numbers.device)
    scales = torch.empty(scale_count(CODES[dtype], held.numel()), dtype=torch.bfloat16, device=held.device)
    encode(numbers, held, scales)
    return held, scales
