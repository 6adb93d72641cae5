"""Files that are put in place whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["replacing"]

_ABANDONED = 3600.0  # seconds since the last write, after which a temporary file has no writer


@contextmanager
def replacing(path: Path, keep: int = 1) -> Iterator[BinaryIO]:
    """A file to write that becomes ``path`` when the block ends, and never was when the block raises.

    It is written beside ``path`` under a name of its own, flushed to the disk and renamed, so that at every
    moment ``path`` is the old file or the new one. It has the mode of the old file, and its owner where the
    system lets us give it. A process killed in between leaves its temporary file, ``.NAME.32 hex digits.tmp``,
    which a later call removes.

    Args:
        path: the file; what a symbolic link points to is replaced, not the link.
        keep: number of files to keep: ``path``, and the ones before it as ``path.1``, ``path.2``, ...

    Raises:
        OSError: the file cannot be written, or ``path`` is something else than a file.
    """
    path = Path(os.path.realpath(path))
    old = _status(path)
    numbered = [path.with_name(f"{path.name}.{i}") for i in range(1, keep)]
    for place in numbered:
        _status(place)
    _remove_abandoned(path)
    temporary = _temporary(path)
    try:
        with _created(temporary, old) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with _alone_in(path.parent):
            if numbered and path.exists():
                _shift(path, numbered)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush_folder(path.parent)


def _status(path: Path) -> os.stat_result | None:
    """What stands at a path, which must be a file; None where nothing does.

    Raises:
        OSError: it is a folder, a link in a circle, a pipe, a device ...
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
    if stat.S_ISLNK(found.st_mode):  # what os.path.realpath could not follow
        raise OSError(errno.ELOOP, "is a symbolic link that cannot be followed", str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "is no regular file, and would be replaced by one", str(path))
    return found


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def _created(temporary: Path, old: os.stat_result | None) -> BinaryIO:
    """A new file, which nobody can read who cannot read the old one."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    handle = os.open(temporary, flags, 0o666 if old is None else 0o600)
    if old is not None and hasattr(os, "fchown"):
        with suppress(OSError):  # only root gives files to others
            os.fchown(handle, old.st_uid, old.st_gid)
        os.fchmod(handle, stat.S_IMODE(old.st_mode))
    return os.fdopen(handle, "wb")


def _remove_abandoned(path: Path) -> None:
    ours = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{32}}\.tmp")
    for entry in os.scandir(path.parent):
        with suppress(OSError):  # another process may be removing it too
            if not ours.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
                continue
            if time.time() - entry.stat(follow_symlinks=False).st_mtime > _ABANDONED:
                os.unlink(entry.path)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Only one process or thread of steprule at a time moves files in a folder, where the file system has locks."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _shift(path: Path, numbered: Sequence[Path]) -> None:
    """Makes ``path.1`` of ``path``, ``path.2`` of ``path.1`` and so on, while ``path`` stays where it is."""
    if numbered[0].exists() and numbered[0].samefile(path):
        return  # an earlier call was killed right after this
    for older, newer in zip(numbered[:0:-1], numbered[-2::-1], strict=True):
        with suppress(FileNotFoundError):
            os.replace(newer, older)
    temporary = _temporary(path)
    try:
        try:
            os.link(path, temporary)
        except OSError:  # a file system without hard links
            shutil.copy2(path, temporary)
        os.replace(temporary, numbered[0])
    finally:
        temporary.unlink(missing_ok=True)  # which is there still where both were one file: renaming then does nothing


def _flush_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
