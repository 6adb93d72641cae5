"""What a forked child makes anew, where processes can fork."""

from __future__ import annotations

import os
from collections.abc import Callable

__all__ = ["at_fork"]


def at_fork(**calls: Callable[[], object]) -> None:
    """Call functions around every fork, as :func:`os.register_at_fork` says; Windows has none."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(**calls)
