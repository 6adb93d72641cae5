"""Files with the state of an optimizer, ours and torch's, read without their tensors."""

from __future__ import annotations

import inspect
import math
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from steprule.checkpoint import CheckpointError
from steprule.kernels.coding import CODES, decoded, flat, scale_count, scale_name
from steprule.kernels.masters import joined
from steprule.rule.master import MASTER
from steprule.saving.encoding import as_complex, decode
from steprule.saving.header import Header, read_header
from steprule.saving.saved import Parameter, Saved, read_saved
from steprule.saving.tensor_file import opened

__all__ = ["StateFile", "StoredTensor", "in_numbers", "open_state"]

_PIECE = 1 << 22  # numbers read at a time


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that lies in a file, or in memory where the file had to be read whole.

    Attributes:
        dtype: its dtype.
        shape: its shape.
        path: the file.
        offset: where its first byte is in the file.
        stride: its strides, which leave no number out that lies between the first and the last.
        inside: the tensor itself, where it is in memory.
        scales: those of codes of 8 bits that are to be read as the numbers that they stand for.
        weights: those that it is the correction of, as which it is to be read in float32.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    path: Path
    offset: int
    stride: tuple[int, ...]
    inside: torch.Tensor | None = None
    scales: StoredTensor | None = None
    weights: StoredTensor | None = None

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    def pieces(self) -> Iterator[torch.Tensor]:
        """The numbers in the order in which they lie, at most 4 Mi at a time."""
        if self.weights is not None:
            yield from map(joined, self.weights.pieces(), self.raw_pieces())
            return
        if self.scales is None:
            yield from self.raw_pieces()
            return
        scales, codes = self.scales.tensor(), CODES[self.dtype]
        for first, piece in zip(range(0, self.numel, _PIECE), self.raw_pieces(), strict=True):
            begin = first // codes.block
            yield decoded(piece, scales[begin : begin + scale_count(codes, len(piece))])

    def raw_pieces(self) -> Iterator[torch.Tensor]:
        """What is stored, codes as codes."""
        if self.inside is not None:
            line = self.inside.detach().reshape(-1) if self.scales is None else flat(self.inside)
            yield from (line[i : i + _PIECE] for i in range(0, self.numel, _PIECE))
            return
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.offset)
            for begin in range(0, self.numel, _PIECE):
                buffer = torch.empty(min(_PIECE, self.numel - begin) * self.dtype.itemsize, dtype=torch.uint8)
                data = buffer.numpy().data
                while data:
                    count = file.readinto(data)
                    if not count:
                        raise CheckpointError(f"{self.path}: cut short")
                    data = data[count:]
                yield buffer.view(self.dtype)

    def tensor(self) -> torch.Tensor:
        """All of it."""
        if self.inside is not None and self.scales is None:
            return self.inside
        pieces = [*self.pieces()] or [torch.empty(0, dtype=self.dtype)]
        return torch.cat(pieces).as_strided(self.shape, self.stride)


def in_numbers(parameter: Parameter, weight: Any = None) -> dict[str, Any]:
    """A parameter's state in which codes are read as the numbers that they stand for, and their scales are no slots;
    what stands beside its weight, where the file has that, as the weight in float32."""
    entry = parameter.entry
    held = entry.get(MASTER)
    if isinstance(held, StoredTensor) and not held.dtype.is_floating_point and isinstance(weight, StoredTensor):
        alike = (weight.dtype, weight.shape, weight.stride) == (torch.bfloat16, held.shape, held.stride)
        entry = {**entry, MASTER: replace(held, weights=weight)} if alike else entry
    names = {n for n, v in entry.items() if isinstance(v, StoredTensor) and v.dtype in CODES and scale_name(n) in entry}
    read_as = {name: replace(_lying(entry[name], parameter), scales=entry[scale_name(name)]) for name in names}
    return {name: read_as.get(name, value) for name, value in entry.items() if name not in map(scale_name, names)}


def _lying(codes: StoredTensor, parameter: Parameter) -> StoredTensor:
    """Codes in the order of memory of their scales; in memory, where the file has another."""
    record = parameter.record
    if record is None or sorted(record.order) == list(record.order):
        return codes
    inside = parameter.as_it_lay(codes.tensor())
    return replace(codes, stride=inside.stride(), inside=inside)


@dataclass(frozen=True)
class StateFile:
    """What a file holds.

    Attributes:
        path: the file.
        kind: what it is, in words.
        state: the state dictionary, its tensors as :class:`StoredTensor`.
        saved: the same, its structure checked.
        model: weights by name, where the file has them.
        others: everything else.
        version: of the format, where it is ours.
        guessed: what torch's file, which does not say it, seems to be the state of.
    """

    path: Path
    kind: str
    state: dict[str, Any]
    saved: Saved
    model: dict[str, Any]
    others: dict[str, Any]
    version: int | None
    guessed: str | None

    @property
    def algorithm(self) -> str:
        """The name of the algorithm, and whether it is guessed."""
        guessed = f"{self.guessed} (going by its hyperparameters)" if self.guessed else "an unknown algorithm"
        return self.saved.algorithm or guessed


def open_state(path: Path, key: str | None = None) -> StateFile:
    """Reads a file of ours or of torch's, but none of its large tensors.

    Args:
        path: the file.
        key: where in torch's file the state dictionary stands, such as ``"optimizer"`` or
            ``"optimizer_states.0"``; needed only where there are several.

    Raises:
        CheckpointError: it is neither, damaged, or holds no state of an optimizer.
        OSError: it cannot be read.
    """
    with opened(path) as file:
        start = file.read(16)
    try:
        if start[8:9] != b"{" and start.startswith((b"PK", b"\x80")):
            return _torch_file(path, key)
        return _our_file(path)
    except RecursionError as error:
        raise CheckpointError(f"{path}: nested too deep to be read") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error.args[0]}") from error


def _our_file(path: Path) -> StateFile:
    with opened(path) as file:
        header = read_header(file, path)

    def find(name: str, is_complex: bool) -> StoredTensor:
        return _stored(header, name, is_complex, path)

    document = {part: decode(encoded, find) for part, encoded in header.document.items()}
    state = document.get("optimizer")
    if state is None:
        raise CheckpointError(f"{path}: holds no optimizer; it was saved without one")
    others = {**(document.get("extra") or {}), **({"random state": None} if document.get("random") else {})}
    model, version = document.get("model") or {}, header.version
    return StateFile(path, "checkpoint of steprule", state, read_saved(state), model, others, version, None)


def _stored(header: Header, name: str, is_complex: bool, path: Path) -> StoredTensor:
    info = header.tensors[name]
    dtype, shape = info.dtype, info.shape
    if is_complex:
        whole = as_complex(torch.empty(shape, dtype=dtype, device="meta"))
        dtype, shape = whole.dtype, tuple(whole.shape)
    stride = torch.empty(shape, device="meta").stride()
    return StoredTensor(dtype, shape, path, len(header.raw) + info.begin, stride)


def _torch_file(path: Path, key: str | None) -> StateFile:
    lazy = zipfile.is_zipfile(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that are no files of torch, which are refused here
            content = torch.load(path, map_location="meta" if lazy else "cpu", weights_only=True)
    except (RuntimeError, UnpicklingError, EOFError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{path}: torch.load cannot read it with weights_only=True: {reason}") from error
    content = _without_data(content, path)
    where = _only(path, [where for where in _states(content) if key in (None, ".".join(where))], key)
    state = content
    for part in where:
        state = state[int(part)] if isinstance(state, list) else state[part]
    rest = content if where and isinstance(content, dict) else {}
    models = [name for name, value in rest.items() if _is_model(value)]
    others = {name: value for name, value in rest.items() if name not in (*where[:1], *models)}
    saved = read_saved(state)
    kind = "file of torch.save, state dictionary " + ("of steprule" if saved.algorithm else "of torch")
    return StateFile(path, kind, state, saved, rest[models[0]] if models else {}, others, None, guess(saved))


def _without_data(value: Any, path: Path) -> Any:
    """The same with a :class:`StoredTensor` for each tensor."""
    if isinstance(value, torch.Tensor):
        return _stored_by_torch(value, path)
    if isinstance(value, Mapping):
        return {key: _without_data(item, path) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_without_data(item, path) for item in value)
    return value


def _stored_by_torch(tensor: torch.Tensor, path: Path) -> StoredTensor:
    shape, stride = tuple(tensor.shape), tensor.stride()
    if not tensor.is_meta:
        return StoredTensor(tensor.dtype, shape, path, 0, stride, tensor)
    if torch.empty_like(tensor).stride() != stride:
        raise ValueError("has a tensor that is only a part of its memory; load it with torch and save it anew")
    begin = int(getattr(tensor.untyped_storage(), "_checkpoint_offset"))  # noqa: B009
    begin += int(tensor.storage_offset()) * tensor.element_size()
    if begin + tensor.numel() * tensor.element_size() > path.stat().st_size:
        raise ValueError("cut short: a tensor reaches beyond the end of the file")
    return StoredTensor(tensor.dtype, shape, path, begin, stride)


def _states(value: Any, where: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Where in nested dictionaries and lists the state dictionaries of optimizers are."""
    if isinstance(value, dict) and {"state", "param_groups"} <= value.keys():
        return [where]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in items for found in _states(item, (*where, str(key)))]


def _only(path: Path, found: list[tuple[str, ...]], key: str | None) -> tuple[str, ...]:
    if len(found) == 1:
        return found[0]
    if not found:
        raise CheckpointError(f"{path}: holds no state of an optimizer{f' under {key!r}' if key else ''}")
    choices = ", ".join(".".join(where) for where in found)
    raise CheckpointError(f"{path}: holds the states of several optimizers; choose one with --key: {choices}")


def _is_model(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(v, StoredTensor) for v in value.values())


def guess(saved: Saved) -> str | None:
    """The class of torch.optim whose hyperparameters these are, None where it could be several or is none."""
    found = set(saved.groups[0]) - {"params", "param_names", "initial_lr"} if saved.groups else set()
    if saved.algorithm is not None or len(found) < 4:
        return None
    classes = filter(inspect.isclass, (getattr(torch.optim, name) for name in torch.optim.__all__))
    keys = {cls.__name__: set(inspect.signature(cls).parameters) - {"params"} for cls in classes}
    keys["AdamW"] = keys["Adam"]
    lacking = {name: len(known - found) for name, known in keys.items() if found <= known}
    near = {name for name, n in lacking.items() if n == min(lacking.values())}
    if near == {"Adam", "AdamW"} and "decoupled_weight_decay" in found:
        return "AdamW" if saved.groups[0]["decoupled_weight_decay"] else "Adam"
    return near.pop() if len(near) == 1 else None
