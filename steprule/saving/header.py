"""The header of a file of tensors, made, or read and checked: what safetensors has, a checksum and a document."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import torch

from steprule.messages.words import printable

from .checksum import DIGESTS, NEW, blank
from .encoding import DIGITS

__all__ = [
    "VERSION",
    "CheckpointError",
    "Document",
    "Header",
    "TensorInfo",
    "made_header",
    "read_header",
    "refuse_strange",
]

VERSION = 2
_READABLE = ("1", "2")  # the first has a SHA-256

Document: TypeAlias = dict[str, Any]

# A header beyond these is refused, in writing and in reading, before it takes memory and time.
_LONGEST_HEADER = 100_000_000  # bytes: what safetensors itself accepts
_MOST_VALUES = 2_000_000  # commas and opening brackets in the header and in the document; more in a larger file:
_BYTES_A_VALUE = 32
_SIZE_DIGITS = 19  # of a number in the header: as many as 64 bits have
_MOST_DIMENSIONS = 64  # of a tensor: as many as torch's operations take

_CHECKSUM = re.compile(rb'\{"__metadata__":\{"checksum":"(xxh3-128|sha256):([0-9a-f]+)"')

_DTYPES: dict[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
_NAMED = {name: dtype for dtype, name in _DTYPES.items()}


class CheckpointError(RuntimeError):
    """A file that is not a whole checkpoint of steprule, or not one for this optimizer and model.

    What the message takes from the file reaches a terminal as text, never as a command.
    """

    def __init__(self, message: str) -> None:
        super().__init__("\n".join(map(printable, message.split("\n"))))


class TensorInfo(NamedTuple):
    """What the header says about a tensor; ``begin`` and ``end`` count from the end of the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """The beginning of a file: the document, and where the tensors lie.

    Attributes:
        document: the plain data.
        tensors: the tensors by name, in the order in which they lie in the file.
        checksum: what the file says its checksum is.
        digest: the checksum's name.
        version: of the format.
        raw: the header's bytes, its length before it.
    """

    document: Document
    tensors: dict[str, TensorInfo]
    checksum: bytes
    digest: str
    version: int
    raw: bytes


def refuse_strange(name: str, tensor: torch.Tensor) -> None:
    zero = tensor._is_zerotensor()
    if zero or tensor.is_nested or tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
        kind = (
            "a zero without memory"
            if zero
            else "a meta tensor"
            if tensor.is_meta
            else "nested"
            if tensor.is_nested
            else f"of layout {tensor.layout}"
        )
        raise TypeError(f"{name} is {kind}; a checkpoint holds dense tensors only")
    if tensor.dtype.to_real() not in _DTYPES:
        raise TypeError(f"{name} is of {tensor.dtype}, which a checkpoint cannot hold")
    if tensor.ndim + tensor.is_complex() > _MOST_DIMENSIONS:
        raise TypeError(f"{name} has {tensor.ndim} dimensions, and a checkpoint holds at most {_MOST_DIMENSIONS}")


def made_header(document: Document, tensors: Mapping[str, torch.Tensor]) -> bytes:
    described = json.dumps(document)
    metadata = {"checksum": f"{NEW}:{blank(NEW).decode()}", "version": str(VERSION), "steprule": described}
    entries: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.numel() * tensor.element_size()
        shape = [*tensor.shape, 2] if tensor.is_complex() else list(tensor.shape)
        entries[name] = {"dtype": _DTYPES[tensor.dtype.to_real()], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _LONGEST_HEADER:
        raise ValueError(f"the description of the tensors takes {len(text):,} bytes, more than safetensors reads")
    most = _most_values(8 + len(text) + offset)
    if max(_value_count(text), _value_count(described.encode())) > most:
        raise ValueError(f"there are more than {most:,} values beside the tensors: make tensors of long lists")
    return len(text).to_bytes(8, "little") + text


def _value_count(text: bytes) -> int:
    """At least how many values there are in JSON; commas in strings count too."""
    return text.count(b",") + text.count(b"[") + text.count(b"{")


def _most_values(size: int) -> int:
    """How many values there may be in a file of so many bytes: each takes about 100 bytes of memory when read."""
    return max(_MOST_VALUES, size // _BYTES_A_VALUE)


def read_header(file: BinaryIO, path: Path) -> Header:
    """The header, checked against the size of the file and against the limits that stand in docs/checkpoints.md.

    Raises:
        CheckpointError: the file is something else, cut short, of an unknown version, or malformed.
    """
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or file.peek(1)[:1] != b"{":  # type: ignore[attr-defined]
        raise CheckpointError(f"{path}: {_guess(start, size)}")
    if length > _LONGEST_HEADER:
        raise CheckpointError(f"{path}: claims a header of {length:,} bytes; it is damaged or no checkpoint")
    if length > size - 8:
        raise CheckpointError(f"{path}: cut short: {size:,} bytes, and the header alone takes {length:,}")
    raw = file.read(length)
    _refuse_many(raw, size, path)
    entries = _parsed(raw, path, _SIZE_DIGITS)
    metadata = entries.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not isinstance(metadata.get("steprule"), str):
        raise CheckpointError(f"{path}: a safetensors file, but not a checkpoint of steprule")
    if metadata.get("version") not in _READABLE:
        raise CheckpointError(
            f"{path}: has version {metadata.get('version')!r}, and this steprule reads version {VERSION}; "
            f"use the steprule that saved it, or a newer one"
        )
    checksum = _CHECKSUM.match(raw)
    if checksum is None or len(checksum[2]) != DIGESTS[checksum[1].decode()][1]:
        raise CheckpointError(f"{path}: damaged: the header does not begin with a checksum")
    tensors = _tensor_infos(entries, size - 8 - length, path)
    text = metadata["steprule"].encode(errors="surrogatepass")
    _refuse_many(text, size, path)
    document = _parsed(text, path, DIGITS)
    return Header(document, tensors, checksum[2], checksum[1].decode(), int(metadata["version"]), start + raw)


def _guess(start: bytes, size: int) -> str:
    """What a file is that does not begin like a checkpoint."""
    if size == 0:
        return "empty"
    if start.startswith(b"PK"):
        return "not a checkpoint of steprule; it looks like a file of torch.save"
    if start.startswith(b"\x80"):
        return "not a checkpoint of steprule; it looks like a pickle"
    return "not a checkpoint of steprule"


def _refuse_many(text: bytes, size: int, path: Path) -> None:
    if _value_count(text) > _most_values(size):
        raise CheckpointError(f"{path}: its header has more than {_most_values(size):,} values; damaged or harmful")


def _parsed(text: bytes, path: Path, digits: int) -> dict[str, Any]:
    short = partial(_short, digits)
    try:
        parsed = json.loads(text.decode(errors="surrogatepass"), parse_int=short(int), parse_float=short(float))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged: the header is not JSON ({error})") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{path}: damaged: the header is not a dictionary")
    return parsed


def _short(digits: int, kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """``kind`` for texts that are no longer than this: the time that it takes grows with the square."""

    def read(text: str) -> Any:
        if len(text) > digits + 1:
            raise ValueError(f"a number of {len(text):,} digits, {text[:10]}...")
        return kind(text)

    return read


def _tensor_infos(entries: Mapping[str, Any], size: int, path: Path) -> dict[str, TensorInfo]:
    infos = {name: _info(name, entry, path) for name, entry in entries.items()}
    tensors = dict(sorted(infos.items(), key=lambda item: (item[1].begin, item[1].end)))
    offset = 0
    for name, info in tensors.items():
        if info.begin != offset:
            raise CheckpointError(f"{path}: damaged: {name} begins at byte {info.begin}, not at {offset}")
        offset = info.end
    if size < offset:
        raise CheckpointError(f"{path}: cut short: {size:,} of {offset:,} bytes of tensors are there")
    if size > offset:
        raise CheckpointError(f"{path}: damaged: {size - offset:,} bytes after the last tensor")
    return tensors


def _info(name: str, entry: Any, path: Path) -> TensorInfo:
    try:
        dtype, shape, (begin, end) = _NAMED[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged: the entry of {name} in the header: {error!r}") from error
    if len(shape) > _MOST_DIMENSIONS:
        raise CheckpointError(f"{path}: damaged: {name} has {len(shape):,} dimensions")
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (*shape, begin, end)):
        raise CheckpointError(f"{path}: damaged: {name} has shape {list(shape)} at bytes {begin} to {end}")
    claimed = dtype.itemsize * math.prod(shape)
    if claimed != end - begin:
        raise CheckpointError(
            f"{path}: damaged: {name} of shape {list(shape)} takes {claimed:,} bytes and has {end - begin:,}"
        )
    if math.prod(max(n, 1) for n in shape) >= 1 << 63:  # strides are counted without the zeros
        raise CheckpointError(f"{path}: damaged: {name} has shape {list(shape)}")
    return TensorInfo(dtype, shape, begin, end)
