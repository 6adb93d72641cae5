"""The state of LBFGS: kept with the first parameter, for all of them in their order, in lists, vectors and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .saved import as_number

__all__ = ["VECTORS", "is_of_lbfgs", "needed", "wanted"]

VECTORS = ("d", "prev_flat_grad")
_LISTS = ("old_dirs", "old_stps")
_COUNTS = ("func_evals", "n_iter")
_NUMBERS = ("t", "H_diag", "prev_loss")
_NUMBER_LISTS = ("ro", "al")
_LARGEST = 2.0**62  # of a whole number that torch computes with


def is_of_lbfgs(entry: Mapping[str, Any]) -> bool:
    """Whether this is the state of LBFGS."""
    return not entry.keys().isdisjoint(("prev_flat_grad", *_LISTS))


def needed(entry: Mapping[str, Any]) -> frozenset[str]:
    """The parts that a state must have, once a direction was taken."""
    begun = "func_evals" in entry and (as_number(entry.get("n_iter")) or 0) >= 1
    whole = (*VECTORS, *_LISTS, *_NUMBERS, "ro")
    return frozenset(whole) if begun or is_of_lbfgs(entry) else frozenset()


def wanted(name: str, value: Any, entry: Mapping[str, Any], numbers: int) -> str | None:
    """What a part of it must be, in words, where the value is not that.

    Args:
        name: of the part.
        value: its value.
        entry: all parts.
        numbers: how many numbers all parameters hold together.
    """
    if name in _COUNTS:
        found = value if type(value) is int else None
        return None if found is not None and 0 <= found < _LARGEST else "a whole number from 0 on"
    if name in VECTORS and value is None and needed(entry):
        return f"a vector of {numbers} numbers"
    if name in _NUMBERS:
        return None if _is_number(value) or (value is None and not needed(entry)) else "one number"
    if name in _NUMBER_LISTS:
        room = name == "al"  # which has some for later directions
        whole = isinstance(value, list) and all((room and item is None) or _is_number(item) for item in value)
        return None if whole and _as_long(name, value, entry) else "a list of numbers, one for each of old_dirs"
    if name in _LISTS:
        whole = isinstance(value, list) and all(_is_vector(item, numbers) for item in value)
        return None if whole and _as_long(name, value, entry) else f"a list of vectors of {numbers} numbers"
    return None


def _as_long(name: str, value: list[Any], entry: Mapping[str, Any]) -> bool:
    """Whether the history is as long in each of its parts; ``al`` has room for more."""
    others = [entry.get(other) for other in ("old_dirs", "old_stps", "ro")]
    lengths = {len(other) for other in others if isinstance(other, list)}
    return len(value) >= max(lengths, default=0) if name == "al" else lengths <= {len(value)}


def _is_number(value: Any) -> bool:
    found = as_number(value)
    return found is not None and not (isinstance(found, int) and abs(found) > _LARGEST)


def _is_vector(value: Any, numbers: int) -> bool:
    dense = isinstance(value, torch.Tensor) and value.layout is torch.strided and not value.is_meta
    return dense and value.shape == (numbers,) and value.is_floating_point()
