"""Writes docs/memory.md: what training takes in memory, measured here, and how to take less."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from steprule.cli.bench import about_machine, disturbed, measured_where
from steprule.cli.bench.peak_memory import DEPTH, QUICK, ROWS, WIDTH, MemoryResult, measure_memory
from steprule.display.bytes import readable

PAGE = Path(__file__).parent.parent / "docs" / "memory.md"

HEAD = """# Memory

## Before training

```python
with torch.device("meta"):
    model = build()
print(steprule.memory(model, steprule.AdamW, ranks=8))
```

says by group what weights, gradients, state and copies of weights (averages, masters) will take; `optimizer.memory()`
says it of an optimizer that is there. `ranks` is for `fully_shard`: the bytes are those of the process that holds most.
On the command line: `steprule memory my_models:build --optimizer AdamW --set state_dtype=bfloat16`. Activations are not
in it.

## A step in backward

Gradients of a whole model are a quarter of what AdamW takes, and lie there to be read once.

```python
with optimizer.step_in_backward(model):
    for batch in batches:
        loss(model, batch).backward()  # updates parameters, and leaves no gradients
        optimizer.step()  # counts, moves schedules, runs hooks
```

It is the same optimizer, state and checkpoint, and the bits are those of plain steps; it may be switched on and off
during a run. Parameters of 16,384 elements and more are updated one by one as their gradients are complete, smaller
ones together when backward ends. Schedules and hyperparameters are those that stand when backward begins.

What would need all gradients, or several backwards, is refused in a sentence, before anything has changed: `clip_norm`,
rules with `scope="all"`, `nonfinite="skip"` and `"raise"`, `track`, SAM, LBFGS, `step(closure)`, GradScaler, two
backwards before `step()`, sharded parameters, DistributedDataParallel. Parameters inside of a reentrant checkpoint are
updated at the end, so use `use_reentrant=False`. Where backward breaks off half way, `handle.updated` and the next call
name the parameters that were updated.

## Measured

{depth} layers of {width} x {width} in float32 ({weights}), a batch of {rows}, each way in a process of its own. Bytes
are above those of the weights: **said** by `memory()` of gradients and state; **torch's count** of what its allocator
had given out at once; **resident** memory of the process at its peak. **Time** is of a whole training step, the
median in its process; processes differ by a quarter from run to run, and `steprule bench` is what compares steps.

On Linux, glibc keeps blocks of up to 32 MB that are freed, in pieces that seldom serve again: without
`MALLOC_MMAP_THRESHOLD_=1048576` in the environment, with which all of these ran, a process holds about as much after a
step in backward as after a plain one, though torch has given the gradients back.

{where}

| | said | torch's count | resident | time |
|---|--:|--:|--:|--:|
"""

TAIL = """
Written by `python benchmarks/memory_page.py`; `steprule bench --memory` shows the table alone.
"""


def main(
    steps: Annotated[int, typer.Option(help="Timed training steps of each.")] = 7,
    quick: Annotated[bool, typer.Option("--quick", help="A small model.")] = False,
    page: Annotated[Path, typer.Option(help="The page.")] = PAGE,
) -> None:
    about, results = about_machine("cpu"), list(measure_memory(steps, quick))
    width, depth = QUICK if quick else (WIDTH, DEPTH)
    where = "\n".join(filter(None, [measured_where(about) + ".", disturbed(about)]))
    weights = readable(results[0].weights)
    text = HEAD.format(width=width, depth=depth, rows=ROWS, weights=weights, where=where)
    page.write_text(text + "".join(map(line, results)) + TAIL)


def line(result: MemoryResult) -> str:
    """A line of the table."""
    bytes_of = [result.said, result.counted, result.resident]
    cells = ["" if size is None else readable(size) for size in bytes_of]
    return f"| {result.name} | {' | '.join(cells)} | {1000 * result.median:.0f} ms |\n"


if __name__ == "__main__":
    typer.run(main)
