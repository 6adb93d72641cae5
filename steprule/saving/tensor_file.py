"""One file of tensors and plain data: the safetensors format, with a checksum over all of it.

The file is what ``safetensors`` reads: 8 bytes with the length of the header, the header in JSON, the tensors.
Under ``__metadata__`` stand the checksum and a document, JSON in which tensors are referred to by name.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np
import torch

from .checksum import NEW, WORTH_A_THREAD, Checksum, blank
from .header import CheckpointError, Document, Header, made_header, refuse_strange
from .helpers import Helpers, Job

__all__ = ["check_tensors", "file_order", "mapped_tensors", "opened", "read_tensors", "write_tensors"]

_PIECE = 1 << 24
_WRITEBACK = 1 << 24
_READERS = 2
_SEEKING = Lock()
"""Held between seeking and reading, where there is no reading at a place."""


class Writeback:
    """Lets the disk take what was written while more is on its way, so that little is left for the last flush."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._thread = Helpers(1)
        self._since = 0
        self._pending: Job | None = None

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


def file_order(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors as they lie in a file: so that all are aligned."""
    return dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))


def write_tensors(
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
        whole: gives all of a tensor; it is asked for one after the other, as :func:`file_order` has them.

    Raises:
        TypeError: a tensor is of a kind that the format does not have; nothing has been written.
    """
    for name, tensor in tensors.items():
        refuse_strange(name, tensor)
    ordered = file_order(tensors)
    header = made_header(document, ordered)
    file.write(header)
    with Checksum(NEW, header) as checksum, Writeback(file) as writeback:
        for tensor in ordered.values():
            for piece in _pieces(whole(tensor)):
                checksum.update(piece)
                file.write(piece)
                writeback.wrote(len(piece))
    file.seek(8 + header[8:].index(blank(NEW)))
    file.write(checksum.hexdigest())


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
    start = header.raw.replace(header.checksum, blank(header.digest), 1)
    with Checksum(header.digest, start) as checksum, Helpers(_READERS) as readers:
        for piece in _read_in_order(file, places, path, readers):
            checksum.update(piece)
    if checksum.hexdigest() != header.checksum:
        raise CheckpointError(f"{path}: damaged: the checksum of its content is not the one it was saved with")


def _read_in_order(
    file: BinaryIO, places: Iterable[tuple[int, memoryview]], path: Path, readers: Helpers
) -> Iterator[memoryview]:
    """Fills memory from a file, large pieces side by side, and gives them in their order.

    Args:
        file: open for reading.
        places: where the bytes begin in the file, and what they fill.
        path: of the file.
        readers: a few threads.
    """
    ahead: deque[tuple[memoryview, Job | None]] = deque()
    for begin, data in places:
        for i in range(0, len(data), _PIECE):
            piece = data[i : i + _PIECE]
            ahead.append((piece, _read_piece(file, begin + i, piece, path, readers)))
            while len(ahead) > 2 * _READERS:
                yield _arrived(*ahead.popleft())
    while ahead:
        yield _arrived(*ahead.popleft())


def _read_piece(file: BinaryIO, begin: int, piece: memoryview, path: Path, readers: Helpers) -> Job | None:
    if len(piece) >= WORTH_A_THREAD:
        with suppress(RuntimeError):  # an interpreter that is ending starts no threads
            return readers.submit(_fill, file, begin, piece, path)
    _fill(file, begin, piece, path)
    return None


def _arrived(piece: memoryview, reading: Job | None) -> memoryview:
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
