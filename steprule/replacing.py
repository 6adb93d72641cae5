"""Files that are put in place whole or not at all."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

__all__ = ["replacing"]

_ABANDONED = 3600.0  # seconds since the last write, after which a temporary file has no writer


@contextmanager
def replacing(path: Path, keep: int = 1) -> Iterator[BinaryIO]:
    """A file to write that becomes ``path`` when the block ends, and never was when the block raises.

    It is written beside ``path`` under a name of its own, flushed to the disk and renamed, so that at every
    moment ``path`` is the old file or the new one. A process killed in between leaves its temporary file,
    ``.NAME.*.tmp``, which a later call removes.

    Args:
        path: the file; what a symbolic link points to is replaced, not the link.
        keep: number of files to keep: ``path``, and the ones before it as ``path.1``, ``path.2``, ...

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder")
    _remove_abandoned(path)
    temporary = _temporary(path)
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if keep > 1 and path.exists():
            _shift(path, keep)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush_folder(path.parent)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def _remove_abandoned(path: Path) -> None:
    for entry in os.scandir(path.parent):
        ours = entry.name.startswith(f".{path.name}.") and entry.name.endswith(".tmp")
        with suppress(OSError):  # another process may be removing it too
            if ours and time.time() - entry.stat().st_mtime > _ABANDONED:
                os.unlink(entry.path)


def _shift(path: Path, keep: int) -> None:
    """Makes ``path.1`` of ``path``, ``path.2`` of ``path.1`` and so on, while ``path`` stays where it is."""
    numbered = [path.with_name(f"{path.name}.{i}") for i in range(1, keep)]
    if numbered[0].exists() and numbered[0].samefile(path):
        return  # an earlier call was killed right after this
    for older, newer in zip(numbered[:0:-1], numbered[-2::-1], strict=True):
        if newer.exists():
            os.replace(newer, older)
    temporary = _temporary(path)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without hard links
        shutil.copy2(path, temporary)
    os.replace(temporary, numbered[0])


def _flush_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
