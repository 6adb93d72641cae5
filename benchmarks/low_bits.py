"""What fewer bits change: the loss on real digits and the drift of second moments, beside float32.

Prints the table of docs/low_bits.md: ``python benchmarks/low_bits.py --seeds 5``.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any

import torch
import typer
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

import steprule
from steprule.kernels.coding import CODES, decoded

SETTINGS: dict[str, dict[str, Any]] = {
    "float32": {},
    '"bfloat16"': {"state_dtype": "bfloat16"},
    '"8bit"': {"state_dtype": "8bit"},
    "bfloat16 weights": {"dtype": torch.bfloat16, "state_dtype": "float32"},
    "bfloat16 weights, stochastic": {"dtype": torch.bfloat16, "state_dtype": "float32", "rounding": "stochastic"},
    'bfloat16 weights, stochastic, "8bit"': {
        "dtype": torch.bfloat16,
        "state_dtype": "8bit",
        "rounding": "stochastic",
    },
    "bfloat16 weights, 16 bits beside": {"dtype": torch.bfloat16, "state_dtype": "float32", "master": "16bit"},
    "bfloat16 weights, 8 bits beside": {"dtype": torch.bfloat16, "state_dtype": "float32", "master": "8bit"},
    'bfloat16 weights, 16 bits beside, "8bit"': {"dtype": torch.bfloat16, "state_dtype": "8bit", "master": "16bit"},
    'bfloat16 weights, 8 bits beside, "8bit"': {"dtype": torch.bfloat16, "state_dtype": "8bit", "master": "8bit"},
}


@functools.cache
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """The 1,797 digits of scikit-learn, in the order of a fixed draw, and their labels."""
    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(found.data, dtype=torch.float32) / 8 - 1
    return images[order], torch.tensor(found.target)[order]


def losses(kind: Any, rate: float, seed: int, dtype: torch.dtype = torch.float32, **options: Any) -> float:
    """The loss on held-out digits after 15 epochs, the rate falling to zero."""
    images, labels = digits()
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)).to(dtype)
    optimizer = kind(model.parameters(), lr=rate, **options)
    train, steps = 1400, 15 * 22
    for step in range(steps):
        rows = torch.randint(train, (64,))
        optimizer.zero_grad()
        loss: Any = cross_entropy(model(images[rows].to(dtype)).float(), labels[rows])
        loss.backward()
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        optimizer.step()
    with torch.no_grad():
        return float(cross_entropy(model(images[train:].to(dtype)).float(), labels[train:]))


def drift(steps: int = 2000) -> dict[str, tuple[float, float]]:
    """How far roots of second moments are from float32's after so many equal gradients: on average, and each."""
    found, weights = {}, {}
    for name in ("float32", '"bfloat16"', '"8bit"'):
        weight = torch.ones(65536, requires_grad=True)
        optimizer, draws = steprule.AdamW([weight], **SETTINGS[name]), torch.Generator().manual_seed(0)
        size = torch.logspace(-2, 0, 65536)[torch.randperm(65536, generator=draws)]
        for _ in range(steps):
            weight.grad = torch.randn(65536, generator=draws) * size
            optimizer.step()
        held = optimizer.state[weight]["exp_avg_sq"]
        full = decoded(held, optimizer.state[weight]["exp_avg_sq::scale"]) if held.dtype in CODES else held.float()
        weights[name] = full.sqrt()
        off = weights[name] / weights["float32"] - 1
        found[name] = float(off.mean()), float(off.square().mean().sqrt())
    return found


def main(seeds: Annotated[int, typer.Option(help="How many seeds.")] = 5) -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    print("| held as | AdamW: loss less float32's | Lion |\n|---|--:|--:|")
    rows: dict[str, list[str]] = {name: [] for name in SETTINGS}
    for kind, rate in ((steprule.AdamW, 3e-3), (steprule.Lion, 3e-4)):
        base = torch.tensor([losses(kind, rate, seed) for seed in range(seeds)])
        for name, options in SETTINGS.items():
            own = torch.tensor([losses(kind, rate, seed, **options) for seed in range(seeds)]) - base
            shown = f"{base.mean():.4f} (the loss)" if name == "float32" else f"{own.mean():+.4f} ± {own.std():.4f}"
            rows[name].append(shown)
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")
    print("\n| held as | root of the second moment: mean | each |\n|---|--:|--:|")
    for name, (mean, each) in drift().items():
        print(f"| {name} | {mean:+.2%} | {each:.2%} |")


if __name__ == "__main__":
    typer.run(main)
