"""Python values with tensors inside, as plain data that JSON holds, and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch

__all__ = ["DEEPEST", "DIGITS", "Encoder", "Find", "as_complex", "decode"]

Find: TypeAlias = Callable[[str, bool], Any]

DEEPEST = 100
"""How deep lists, tuples and dictionaries may stand in one another, so that every stack has room to read them."""

DIGITS = 4300
"""How many digits a whole number may have: as many as Python reads."""

_TAG = "$"
_TOO_LARGE = 10**DIGITS


class Encoder:
    """Turns values into plain data and collects the tensors in them, shared ones once.

    Numbers, strings, None, lists and dictionaries with string keys stay what they are; everything else becomes
    a dictionary whose key ``"$"`` says what it is: ``tensor``, ``tuple``, ``dict``, ``float``, ``complex`` or
    ``bytes``.

    Args:
        name: the name of a tensor by its path.

    Example:
        >>> encoder = Encoder(".".join)
        >>> encoder.encode({"loss": [0.5, None], "mean": torch.zeros(3)}, ("extra",))
        {'loss': [0.5, None], 'mean': {'$': 'tensor', 'name': 'extra.mean'}}
        >>> list(encoder.tensors)
        ['extra.mean']
    """

    def __init__(self, name: Callable[[tuple[Any, ...]], str]) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._name = name
        self._seen: dict[tuple[Any, ...], str] = {}

    def encode(self, value: Any, path: tuple[Any, ...]) -> Any:
        """The plain data.

        Raises:
            TypeError: there is something in it that a checkpoint cannot hold; the message says where.
            ValueError: it is nested too deep, or a number is too long.
        """
        if len(path) > DEEPEST:
            raise ValueError(
                f"{'.'.join(map(str, path[:3]))}... is nested more than {DEEPEST} deep, which a checkpoint cannot hold "
                f"(does it contain itself?)"
            )
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return str(value)
        if isinstance(value, int):
            if abs(value) >= _TOO_LARGE:
                raise ValueError(f"{'.'.join(map(str, path))} is a number of more than {DIGITS:,} digits")
            return int(value)
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {_TAG: "float", "value": repr(float(value))}
        if isinstance(value, torch.Tensor):
            return self._tensor(value, path)
        if type(value) is list:
            return [self.encode(item, (*path, str(i))) for i, item in enumerate(value)]
        if type(value) in (tuple, torch.Size):
            return {_TAG: "tuple", "items": [self.encode(item, (*path, str(i))) for i, item in enumerate(value)]}
        if isinstance(value, dict):
            return self._dict(value, path)
        if isinstance(value, complex):
            return {_TAG: "complex", "items": [self.encode(part, path) for part in (value.real, value.imag)]}
        if isinstance(value, bytes):
            return {_TAG: "bytes", "value": value.hex()}
        raise TypeError(
            f"{'.'.join(map(str, path))} is a {type(value).__module__}.{type(value).__qualname__}, which a "
            f"checkpoint cannot hold; it holds tensors, numbers, strings, None, lists, tuples and dictionaries"
        )

    def _dict(self, value: dict[Any, Any], path: tuple[Any, ...]) -> dict[str, Any]:
        items = [(key, self.encode(item, (*path, str(key)))) for key, item in value.items()]
        if _TAG not in value and all(type(key) is str for key in value):
            return dict(items)
        return {_TAG: "dict", "items": [[self.encode(key, (*path, "key")), item] for key, item in items]}

    def _tensor(self, tensor: torch.Tensor, path: tuple[Any, ...]) -> dict[str, Any]:
        encoded: dict[str, Any] = {_TAG: "tensor"}
        if tensor.is_complex():
            encoded["complex"] = True
        here: Any = tensor.detach()
        here = here.to_local() if hasattr(here, "to_local") else here  # of a DTensor, its part
        strided = here.layout is torch.strided and not here.is_meta and here.numel() > 0
        place = (*_memory(here), tensor.shape) if strided else path
        if place not in self._seen:
            name = wanted = self._name(path)
            copies = 1
            while name in self.tensors:
                copies += 1
                name = f"{wanted}#{copies}"
            self._seen[place] = name
            self.tensors[name] = tensor
        return encoded | {"name": self._seen[place]}


def _memory(tensor: torch.Tensor) -> tuple[Any, ...]:
    """What two tensors agree in that are the same numbers at the same place."""
    bits = tensor.is_conj(), tensor.is_neg()
    return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, *bits


def as_complex(real: torch.Tensor) -> torch.Tensor:
    """The complex tensor of which this is the real view.

    Raises:
        ValueError: it is the real view of none.
    """
    if real.shape[-1:] != (2,) or real.dtype not in (torch.float16, torch.float32, torch.float64):
        raise ValueError(f"a tensor of shape {list(real.shape)} and {real.dtype} holds no complex numbers")
    return torch.view_as_complex(real)


def decode(encoded: Any, find: Find) -> Any:
    """The value again.

    Args:
        encoded: from :meth:`Encoder.encode`.
        find: the tensor by its name, and by whether it is the real view of a complex one.

    Raises:
        ValueError: ``plain`` is not from an :class:`Encoder`, or refers to a tensor that is not there.

    Example:
        >>> decode([{"$": "tuple", "items": [1, 2]}, {"$": "tensor", "name": "w"}], lambda name, is_complex: name)
        [(1, 2), 'w']
    """
    if isinstance(encoded, list):
        return [decode(item, find) for item in encoded]
    if not isinstance(encoded, dict):
        return encoded
    if _TAG not in encoded:
        return {key: decode(item, find) for key, item in encoded.items()}
    try:
        return _DECODERS[encoded[_TAG]](encoded, find)
    except (KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, RecursionError):
            raise
        raise ValueError(f"cannot make sense of {str(encoded)[:80]}: {error!r}") from error


_DECODERS: dict[str, Callable[[dict[str, Any], Find], Any]] = {
    "tensor": lambda encoded, find: find(encoded["name"], bool(encoded.get("complex"))),
    "dict": lambda encoded, find: {decode(key, find): decode(item, find) for key, item in encoded["items"]},
    "tuple": lambda encoded, find: tuple(decode(encoded["items"], find)),
    "float": lambda encoded, find: float(encoded["value"]),
    "complex": lambda encoded, find: complex(*decode(encoded["items"], find)),
    "bytes": lambda encoded, find: bytes.fromhex(encoded["value"]),
}
