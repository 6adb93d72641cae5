"""One file of tensors and plain data: the safetensors format, with a checksum over all of it.

The file is what ``safetensors`` reads: 8 bytes with the length of the header, the header in JSON, the tensors.
Under ``__metadata__`` stand the checksum and a document, JSON in which tensors are referred to by name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import torch

__all__ = ["VERSION", "CheckpointError", "Header", "TensorInfo", "read_header", "read_tensor", "read_tensors", "write"]

VERSION = 1

Document: TypeAlias = dict[str, Any]

_LONGEST_HEADER = 100_000_000  # what safetensors itself accepts
_PIECE = 1 << 24
_WORTH_A_THREAD = 1 << 20
_BLANK = "0" * 64
_CHECKSUM = re.compile(rb'\{"__metadata__":\{"checksum":"sha256:([0-9a-f]{64})"')

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
    """A file that is not a whole checkpoint of steprule, or not one for this optimizer and model."""


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
        checksum: what the file says its SHA-256 is.
        raw: the header's bytes, its length before it.
    """

    document: Document
    tensors: dict[str, TensorInfo]
    checksum: bytes
    raw: bytes


class Checksum:
    """The SHA-256 of what is read or written piece by piece, computed while the next piece is on its way."""

    def __init__(self, start: bytes) -> None:
        self._digest = hashlib.sha256(start)
        self._thread = ThreadPoolExecutor(1)
        self._alone = False
        self._pending: Future[None] | None = None

    def __enter__(self) -> Checksum:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def update(self, piece: memoryview) -> None:
        self._wait()
        if len(piece) >= _WORTH_A_THREAD and not self._alone:
            try:
                self._pending = self._thread.submit(self._digest.update, piece)
                return
            except RuntimeError:  # an interpreter that is ending starts no threads
                self._alone = True
        self._digest.update(piece)

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def hexdigest(self) -> bytes:
        self._wait()
        return self._digest.hexdigest().encode()


# ---------------------------------------------------------------------------------------------- writing


def write(file: BinaryIO, document: Document, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes a file, one tensor after the other, so that no more than one is copied at a time.

    Args:
        file: open for writing, at its beginning.
        document: what JSON can hold.
        tensors: dense tensors of a dtype of safetensors; complex ones as their real views.

    Raises:
        TypeError: a tensor is of a kind that the format does not have; nothing has been written.
    """
    for name, tensor in tensors.items():
        _refuse_strange(name, tensor)
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))  # keeps all aligned
    header = _header(document, ordered)
    file.write(header)
    with Checksum(header) as checksum:
        for tensor in ordered.values():
            for piece in _pieces(tensor):
                checksum.update(piece)
                file.write(piece)
    file.seek(8 + header[8:].index(_BLANK.encode()))
    file.write(checksum.hexdigest())


def _refuse_strange(name: str, tensor: torch.Tensor) -> None:
    if tensor.dtype not in _DTYPES:
        raise TypeError(f"{name} is of {tensor.dtype}, which a checkpoint cannot hold")
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
        kind = "a meta tensor" if tensor.is_meta else f"of layout {tensor.layout}"
        raise TypeError(f"{name} is {kind}; a checkpoint holds dense tensors only")


def _header(document: Document, tensors: Mapping[str, torch.Tensor]) -> bytes:
    metadata = {"checksum": f"sha256:{_BLANK}", "version": str(VERSION), "steprule": json.dumps(document)}
    entries: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.numel() * tensor.element_size()
        shape = list(tensor.shape)
        entries[name] = {"dtype": _DTYPES[tensor.dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _LONGEST_HEADER:
        raise ValueError(f"the description of the tensors takes {len(text):,} bytes, more than safetensors reads")
    return len(text).to_bytes(8, "little") + text


def _pieces(tensor: torch.Tensor) -> Iterator[memoryview]:
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().cpu().reshape(-1)
    data = flat.view(torch.uint8).numpy().data
    return (data[i : i + _PIECE] for i in range(0, len(data), _PIECE))


# ---------------------------------------------------------------------------------------------- reading


def read_header(file: BinaryIO, path: Path) -> Header:
    """The header, checked against the size of the file: nothing larger than the file is ever asked for.

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
    entries = _parsed(raw, path)
    metadata = entries.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not isinstance(metadata.get("steprule"), str):
        raise CheckpointError(f"{path}: a safetensors file, but not a checkpoint of steprule")
    if metadata.get("version") != str(VERSION):
        raise CheckpointError(
            f"{path}: has version {metadata.get('version')!r}, and this steprule reads version {VERSION}; "
            f"use the steprule that saved it, or a newer one"
        )
    checksum = _CHECKSUM.match(raw)
    if checksum is None:
        raise CheckpointError(f"{path}: damaged: the header does not begin with a checksum")
    tensors = _tensors(entries, size - 8 - length, path)
    document = _parsed(metadata["steprule"], path)
    return Header(document, tensors, checksum[1], start + raw)


def _guess(start: bytes, size: int) -> str:
    """What a file is that does not begin like a checkpoint."""
    if size == 0:
        return "empty"
    if start.startswith(b"PK"):
        return "not a checkpoint of steprule; it looks like a file of torch.save"
    if start.startswith(b"\x80"):
        return "not a checkpoint of steprule; it looks like a pickle"
    return "not a checkpoint of steprule"


def _parsed(text: str | bytes, path: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged: the header is not JSON ({error})") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{path}: damaged: the header is not a dictionary")
    return parsed


def _tensors(entries: Mapping[str, Any], size: int, path: Path) -> dict[str, TensorInfo]:
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
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (*shape, begin, end)):
        raise CheckpointError(f"{path}: damaged: {name} has shape {list(shape)} at bytes {begin} to {end}")
    claimed = dtype.itemsize
    for n in shape:
        claimed *= n
    if claimed != end - begin:
        raise CheckpointError(
            f"{path}: damaged: {name} of shape {list(shape)} takes {claimed:,} bytes and has {end - begin:,}"
        )
    return TensorInfo(dtype, shape, begin, end)


def read_tensors(file: BinaryIO, header: Header, path: Path) -> dict[str, torch.Tensor]:
    """All tensors, by name, after the checksum of the whole file was compared.

    Raises:
        CheckpointError: the checksum differs, or the file became shorter while it was read.
    """
    with Checksum(header.raw.replace(header.checksum, _BLANK.encode(), 1)) as checksum:
        tensors = {name: read_tensor(file, header, name, path, checksum) for name in header.tensors}
    if checksum.hexdigest() != header.checksum:
        raise CheckpointError(f"{path}: damaged: the checksum of its content is not the one it was saved with")
    return tensors


def read_tensor(
    file: BinaryIO, header: Header, name: str, path: Path, checksum: Checksum | None = None
) -> torch.Tensor:
    """One tensor; its bytes go into ``checksum`` too."""
    info = header.tensors[name]
    buffer = torch.empty(info.end - info.begin, dtype=torch.uint8)
    data = buffer.numpy().data
    file.seek(len(header.raw) + info.begin)
    for i in range(0, len(data), _PIECE):
        piece = data[i : i + _PIECE]
        if file.readinto(piece) != len(piece):  # type: ignore[attr-defined]
            raise CheckpointError(f"{path}: cut short while it was read")
        if checksum is not None:
            checksum.update(piece)
    return buffer.view(info.dtype).reshape(info.shape)
