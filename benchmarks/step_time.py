"""The time of a step, as `steprule bench` measures it: the figures of README.md and docs/performance.md."""

import signal

import typer

from steprule.cli.bench import bench

if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in the background
    typer.run(bench)
