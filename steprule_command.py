"""The `steprule` command until the package is imported, which takes seconds in which Ctrl-C must not be a traceback."""

from __future__ import annotations

import signal

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from steprule.cli import main as run

    signal.signal(signal.SIGINT, before)
    run()
