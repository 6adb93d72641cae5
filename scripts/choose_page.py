"""Writes docs/choose.md: which algorithm for which job, and what each keeps and reads."""

from __future__ import annotations

from pathlib import Path

import torch

import steprule
from steprule.algorithms.registry import classes, names
from steprule.cli.bench.contenders import traffic

PAGE = Path(__file__).parent.parent / "docs" / "choose.md"

HEAD = """# Which algorithm for which job

A place to begin, by what is said of each algorithm where it was published; none of it replaces a run on your own task.
`AdamW` is right where nothing speaks for another, and a tuned rate matters more than the algorithm.

| job | begin with | then try |
|---|---|---|
| language models, from the start | `AdamW`; `Muon` for the hidden matrices with `AdamW` for the rest | `SOAP`, `AdEMAMix` over many steps, `MARS` with large batches, `Sophia` with an estimate of the Hessian |
| fine-tuning | `AdamW` with a small rate | `Lion`, `Prodigy` |
| convolutional networks | `SGD` with momentum 0.9 | `LARS` with batches of many thousands, `SGDP` or `AdamP` with batch normalization, `Ranger` |
| vision transformers, diffusion | `AdamW` | `Adan`, `Lion`, `Prodigy` for small adapters |
| recurrent networks, reinforcement learning | `RMSprop`, `Adam` | `ADOPT`, `LaProp` |
| recipes written for TensorFlow | `RMSpropTF` | |
| embeddings with sparse gradients | `SparseAdam`, `Adagrad` | `Yogi`, `MADGRAD` |
| small data, full batches, physics | `LBFGS`, `Rprop` | `RAdam`, `Ranger` |
| no time to tune the rate | `Prodigy` | `DAdaptAdam`, `DAdaptSGD`, `DAdaptLion` |
| the length of the training is not known | `ScheduleFreeAdamW`, `ScheduleFreeSGD` | `ScheduleFreeRAdam`, without a warm-up too |
| the loss has spikes | `StableAdamW` | `AdaGC`, `StableSPAM`, `clip_norm` |
| the state does not fit | `AdamMini`, `Lion` | `CAME`, `Adafactor`, `Tiger`, `GaLore`, `Apollo` |

## What each costs

With default hyperparameters, for a float32 matrix of 256 x 128: the bytes of state for each of its numbers, the passes
over memory of one step, and the bytes that these read and write for each number (AdamW: 28 in one pass). Rules of whole
matrices multiply, factor or project besides; their bytes are not counted. What a step takes in time stands in
[algorithms.md](algorithms.md).

| algorithm | state | passes | bytes moved | |
|---|--:|--:|--:|---|
"""  # noqa: E501 (a row of a table is one line)

TAIL = "\nWritten by `python scripts/choose_page.py`.\n"


def row(name: str, sentence: str) -> str:
    """A line of the table."""
    kind = classes()[name]
    p = torch.full((256, 128), 0.1, requires_grad=True)
    p.grad = torch.full_like(p, 0.01)
    if name == "SparseAdam":
        p.grad = p.grad.to_sparse(1)
    if kind.update is steprule.Optimizer.update:
        return f"| `{name}` | | | | {sentence} |"
    optimizer = kind([p])
    optimizer.step()
    held = sum(v.numel() * v.element_size() for v in optimizer.state[p].values() if isinstance(v, torch.Tensor))
    moved = traffic(optimizer)
    plan = optimizer._workings.planner.plan
    passes = max(len(launch.program.phases) for launch in plan.launches) if plan is not None else 0
    bytes_moved = f"{moved.bytes / p.numel():.3g}" if moved else ""
    return f"| `{name}` | {held / p.numel():.3g} | {passes} | {bytes_moved} | {sentence} |"


def page() -> str:
    return HEAD + "\n".join(row(name, sentence) for name, sentence in names().items()) + "\n" + TAIL


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
