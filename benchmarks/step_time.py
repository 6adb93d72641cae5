"""The time of a step, as `steprule bench` measures it: the figures of README.md and docs/performance.md."""

import typer

from steprule.cli.bench import bench

if __name__ == "__main__":
    typer.run(bench)
