"""The checksum of a file: which there are, and one that is computed while the file is read or written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from xxhash import xxh3_128

from .helpers import Helpers, Job

__all__ = ["DIGESTS", "NEW", "WORTH_A_THREAD", "Checksum", "blank"]

WORTH_A_THREAD = 1 << 20
"""Bytes from which on a piece is worth handing over to another thread."""
DIGESTS: dict[str, tuple[Callable[..., Any], int]] = {"xxh3-128": (xxh3_128, 32), "sha256": (hashlib.sha256, 64)}
"""What computes a checksum, and how many hexadecimal digits it has; the first is that of new files."""
NEW = "xxh3-128"


def blank(digest: str) -> bytes:
    """What stands in the place of a checksum while it is computed."""
    return b"0" * DIGESTS[digest][1]


class Checksum:
    """The checksum of what is read or written piece by piece, computed while the next piece is on its way."""

    def __init__(self, digest: str, start: bytes) -> None:
        self._digest = DIGESTS[digest][0](start)
        self._thread = Helpers(1)
        self._alone = False
        self._pending: Job | None = None

    def __enter__(self) -> Checksum:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def update(self, piece: memoryview) -> None:
        self._wait()
        if len(piece) >= WORTH_A_THREAD and not self._alone:
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
