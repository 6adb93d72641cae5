"""One file of tensors and plain data: the safetensors format, with a checksum over all of it.

The file is what ``safetensors`` reads: 8 bytes with the length of the header, the header in JSON, the tensors.
Under ``__metadata__`` stand the checksum and a document, JSON in which tensors are referred to by name.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import numpy as np
import torch
from xxhash import xxh3_128

from steprule.names import printable

from .encoding import DIGITS

__all__ = [
    "VERSION",
    "CheckpointError",
    "Header",
    "TensorInfo",
    "check_tensors",
    "in_order",
    "mapped_tensors",
    "opened",
    "read_header",
    "read_tensors",
    "write",
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

_PIECE = 1 << 24
_WORTH_A_THREAD = 1 << 20
_WRITEBACK = 1 << 24
_READERS = 2
_DIGESTS: dict[str, tuple[Callable[..., Any], int]] = {"xxh3-128": (xxh3_128, 32), "sha256": (hashlib.sha256, 64)}
"""What computes a checksum, and how many hexadecimal digits it has; the first is that of new files."""
_NEW = "xxh3-128"
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


_SEEKING = Lock()
"""Held between seeking and reading, where there is no reading at a place."""


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


class Checksum:
    """The checksum of what is read or written piece by piece, computed while the next piece is on its way."""

    def __init__(self, digest: str, start: bytes) -> None:
        self._digest = _DIGESTS[digest][0](start)
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
        return bytes(self._digest.hexdigest(), "ascii")


class Writeback:
    """Lets the disk take what was written while more is on its way, so that little is left for the last flush."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._thread = ThreadPoolExecutor(1)
        self._since = 0
        self._pending: Future[None] | None = None

    def __enter__(self) -> Writeback:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._thread.shutdown()
        if self._pending is not None and kind is None:
            self._pending.result()

    def wrote(self, count: int) -> None:
        self._since += count
        if self._since < _WRITEBACK or not hasattr(os, "fdatasync"):
            return
        if self._pending is not None:
            if not self._pending.done():
                return
            self._pending.result()
        with suppress(RuntimeError):  # an interpreter that is ending starts no threads
            self._pending = self._thread.submit(os.fdatasync, self._file.fileno())
        self._since = 0


# ---------------------------------------------------------------------------------------------- writing


def in_order(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors as they lie in a file: so that all are aligned."""
    return dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))


def write(
    file: BinaryIO,
    document: Document,
    tensors: Mapping[str, torch.Tensor],
    whole: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
) -> None:
    """Writes a file, one tensor after the other, so that no more than one is copied at a time.

    Args:
        file: open for writing, at its beginning.
        document: what JSON can hold.
        tensors: dense tensors of a dtype of safetensors; complex ones as their real views.
        whole: gives all of a tensor; it is asked for one after the other, as :func:`in_order` has them.

    Raises:
        TypeError: a tensor is of a kind that the format does not have; nothing has been written.
    """
    for name, tensor in tensors.items():
        _refuse_strange(name, tensor)
    ordered = in_order(tensors)
    header = _header(document, ordered)
    file.write(header)
    with Checksum(_NEW, header) as checksum, Writeback(file) as writeback:
        for tensor in ordered.values():
            for piece in _pieces(whole(tensor)):
                checksum.update(piece)
                file.write(piece)
                writeback.wrote(len(piece))
    file.seek(8 + header[8:].index(_blank(_NEW)))
    file.write(checksum.hexdigest())


def _blank(digest: str) -> bytes:
    """What stands in the place of a checksum while it is computed."""
    return b"0" * _DIGESTS[digest][1]


def _refuse_strange(name: str, tensor: torch.Tensor) -> None:
    if tensor.is_nested or tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
        kind = "a meta tensor" if tensor.is_meta else "nested" if tensor.is_nested else f"of layout {tensor.layout}"
        raise TypeError(f"{name} is {kind}; a checkpoint holds dense tensors only")
    if tensor.dtype.to_real() not in _DTYPES:
        raise TypeError(f"{name} is of {tensor.dtype}, which a checkpoint cannot hold")
    if tensor.ndim + tensor.is_complex() > _MOST_DIMENSIONS:
        raise TypeError(f"{name} has {tensor.ndim} dimensions, and a checkpoint holds at most {_MOST_DIMENSIONS}")


def _header(document: Document, tensors: Mapping[str, torch.Tensor]) -> bytes:
    described = json.dumps(document)
    metadata = {"checksum": f"{_NEW}:{_blank(_NEW).decode()}", "version": str(VERSION), "steprule": described}
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
    if max(_values(text), _values(described.encode())) > most:
        raise ValueError(f"there are more than {most:,} values beside the tensors: make tensors of long lists")
    return len(text).to_bytes(8, "little") + text


def _values(text: bytes) -> int:
    """At least how many values there are in JSON; commas in strings count too."""
    return text.count(b",") + text.count(b"[") + text.count(b"{")


def _most_values(size: int) -> int:
    """How many values there may be in a file of so many bytes: each takes about 100 bytes of memory when read."""
    return max(_MOST_VALUES, size // _BYTES_A_VALUE)


def _pieces(tensor: torch.Tensor) -> Iterator[memoryview]:
    tensor = tensor.detach().resolve_conj().resolve_neg()
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    data = real.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data
    return (data[i : i + _PIECE] for i in range(0, len(data), _PIECE))


# ---------------------------------------------------------------------------------------------- reading


def opened(path: Path) -> BinaryIO:
    """The file, open for reading; of a pipe nothing is waited for.

    Raises:
        CheckpointError: it is no file.
        OSError: it cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
    raise CheckpointError(f"{path}: not a checkpoint of steprule, nor any other regular file")


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
    if checksum is None or len(checksum[2]) != _DIGESTS[checksum[1].decode()][1]:
        raise CheckpointError(f"{path}: damaged: the header does not begin with a checksum")
    tensors = _tensors(entries, size - 8 - length, path)
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
    if _values(text) > _most_values(size):
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


def read_tensors(file: BinaryIO, header: Header, path: Path) -> dict[str, torch.Tensor]:
    """All tensors, by name, after the checksum of the whole file was compared.

    Raises:
        CheckpointError: the checksum differs, or the file became shorter while it was read.
    """
    buffers = {name: torch.empty(info.end - info.begin, dtype=torch.uint8) for name, info in header.tensors.items()}
    places = [(len(header.raw) + info.begin, buffers[name].numpy().data) for name, info in header.tensors.items()]
    _check(file, header, places, path)
    return {name: buffers[name].view(info.dtype).reshape(info.shape) for name, info in header.tensors.items()}


def mapped_tensors(header: Header, path: Path) -> dict[str, torch.Tensor]:
    """All tensors, by name, of which only what is looked at is read, then; writing to them leaves the file as it is."""
    content = np.memmap(path, np.uint8, mode="c")
    start = len(header.raw)
    return {
        name: torch.from_numpy(content[start + info.begin : start + info.end]).view(info.dtype).reshape(info.shape)
        for name, info in header.tensors.items()
    }


def check_tensors(file: BinaryIO, header: Header, path: Path) -> None:
    """Compare the checksum of the whole file, a few tensors in memory at a time.

    Raises:
        CheckpointError: as :func:`read_tensors`.
    """
    tensors = header.tensors.values()
    sizes = ((len(header.raw) + info.begin, info.end - info.begin) for info in tensors)
    _check(file, header, ((begin, torch.empty(size, dtype=torch.uint8).numpy().data) for begin, size in sizes), path)


def _check(file: BinaryIO, header: Header, places: Iterable[tuple[int, memoryview]], path: Path) -> None:
    """Fills memory from a file, and compares the checksum of what was read."""
    start = header.raw.replace(header.checksum, _blank(header.digest), 1)
    with Checksum(header.digest, start) as checksum, ThreadPoolExecutor(_READERS) as readers:
        for piece in _read_in_order(file, places, path, readers):
            checksum.update(piece)
    if checksum.hexdigest() != header.checksum:
        raise CheckpointError(f"{path}: damaged: the checksum of its content is not the one it was saved with")


def _read_in_order(
    file: BinaryIO, places: Iterable[tuple[int, memoryview]], path: Path, readers: Executor
) -> Iterator[memoryview]:
    """Fills memory from a file, large pieces side by side, and gives them in their order.

    Args:
        file: open for reading.
        places: where the bytes begin in the file, and what they fill.
        path: of the file.
        readers: a few threads.
    """
    ahead: deque[tuple[memoryview, Future[None] | None]] = deque()
    for begin, data in places:
        for i in range(0, len(data), _PIECE):
            piece = data[i : i + _PIECE]
            ahead.append((piece, _read(file, begin + i, piece, path, readers)))
            while len(ahead) > 2 * _READERS:
                yield _arrived(*ahead.popleft())
    while ahead:
        yield _arrived(*ahead.popleft())


def _read(file: BinaryIO, begin: int, piece: memoryview, path: Path, readers: Executor) -> Future[None] | None:
    if len(piece) >= _WORTH_A_THREAD:
        with suppress(RuntimeError):  # an interpreter that is ending starts no threads
            return readers.submit(_fill, file, begin, piece, path)
    _fill(file, begin, piece, path)
    return None


def _arrived(piece: memoryview, reading: Future[None] | None) -> memoryview:
    if reading is not None:
        reading.result()
    return piece


def _fill(file: BinaryIO, begin: int, piece: memoryview, path: Path) -> None:
    while piece:
        count = _read_at(file, begin, piece)
        if not count:
            raise CheckpointError(f"{path}: cut short while it was read")
        begin, piece = begin + count, piece[count:]


def _read_at(file: BinaryIO, begin: int, piece: memoryview) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(file.fileno(), [piece], begin)
    with _SEEKING:
        file.seek(begin)
        return file.readinto(piece)  # type: ignore[attr-defined, no-any-return]
