"""Machine code that another process has compiled, in a folder that nobody but its owner can read or write."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["CACHE", "FILES", "folder", "keep_code", "kept"]

CACHE = "STEPRULE_CACHE"
"""The environment variable that names the folder; empty, nothing is kept."""
FILES = 4096
"""How many are kept, about: those that were asked for last."""

OTHERS = stat.S_IRWXG | stat.S_IRWXO
DIGEST = 32
"""Bytes of a SHA-256, with which each file begins."""


def folder() -> Path | None:
    """Where code is kept; None if there is no place that is this user's alone.

    What stands there is run, so it is trusted only if nobody else can have put it there.
    """
    named = os.environ.get(CACHE)
    if named == "" or not hasattr(os, "geteuid"):
        return None
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        place = Path(named or Path(cache) / "steprule" / "code").expanduser()
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = place.lstat()
    except (OSError, RuntimeError):  # there is no home
        return None
    own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & OTHERS
    return place if own else None


def kept(key: str) -> bytes | None:
    """The code of this key, if it is there whole, and this user's.

    Args:
        key: a SHA-256 in hexadecimal of all that the code depends on.
    """
    place = folder()
    if place is None:
        return None
    try:
        handle = os.open(place / key, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & OTHERS:
                return None
            content = file.read()
            os.utime(handle)
    except OSError:
        return None
    code = content[DIGEST:]
    return code if content[:DIGEST] == digest(key, code) else None


def keep_code(key: str, code: bytes) -> None:
    """Keep code for processes to come, where that can be done."""
    place = folder()
    if place is None:
        return
    with suppress(OSError):
        handle, name = tempfile.mkstemp(dir=place)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(digest(key, code) + code)
            Path(name).replace(place / key)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        if key.startswith("00"):  # by chance, and seldom: it lists them all
            leave(place, FILES)


def leave(place: Path, count: int) -> None:
    """Remove all but the files that were asked for last."""
    found = sorted(ages(place), reverse=True)
    for _, file in found[count:]:
        file.unlink(missing_ok=True)


def ages(place: Path) -> Iterator[tuple[float, Path]]:
    for file in place.iterdir():
        with suppress(FileNotFoundError):  # another process has removed it
            yield file.lstat().st_mtime, file


def digest(key: str, code: bytes) -> bytes:
    """Code under a name that is not its own is not taken."""
    return hashlib.sha256(key.encode() + code).digest()
