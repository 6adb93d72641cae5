"""Fine-tuning with rates that fall from layer to layer, beside one rate for all."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from panels import COLOURS, keep, panels
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import steprule
from steprule import layer_decay


def network(classes: int) -> nn.Sequential:
    """Four layers that read digits of 8x8."""
    sizes = (64, 96, 96, 96)
    layers = [each for a, b in pairwise(sizes) for each in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], classes))


def train(
    model: nn.Module, data: tuple[Tensor, Tensor], steps: int, held_out: tuple[Tensor, Tensor], **options: Any
) -> list[float]:
    """Train with AdamW; the share of held-out digits that are read right, at each step."""
    inputs, labels = data
    optimizer = steprule.AdamW(model, weight_decay=0.01, **options)
    right = []
    for _ in range(steps):
        batch = torch.randint(len(inputs), (16,))
        optimizer.zero_grad()
        cross_entropy(model(inputs[batch]), labels[batch]).backward()
        optimizer.step()
        with torch.no_grad():
            right.append((model(held_out[0]).argmax(1) == held_out[1]).double().mean().item())
    return right


def main(steps: int = 150, picture: Path | None = None) -> dict[str, float]:
    """Learn ten digits, then of 40 pictures what they are modulo 5; the share that is read right in the end."""
    pixels, labels = (torch.from_numpy(each) for each in load_digits(return_X_y=True))
    inputs = pixels.float() / 16
    torch.manual_seed(0)
    known = network(10)
    train(known, (inputs[:900], labels[:900]), 4 * steps, (inputs[:900], labels[:900]), lr=2e-3)
    few = (inputs[900:940], labels[900:940] % 5)
    held_out = (inputs[940:], labels[940:] % 5)
    figure, (axes,) = panels(1, ["read right of 857 digits that were held out"])
    ways: dict[str, Callable[[nn.Module], dict[Any, Any]]] = {
        "one rate": lambda model: {},
        "each layer half of the next": lambda model: layer_decay(model, 0.5),
        "the last layer alone": lambda model: {"[0-5].*": dict(lr=0.0)},
    }
    found = {}
    for colour, (name, overrides) in zip(COLOURS, ways.items(), strict=False):
        model = copy.deepcopy(known)
        torch.manual_seed(1)
        model[-1] = nn.Linear(96, 5)
        right = train(model, few, steps, held_out, lr=5e-3, overrides=overrides(model))
        axes.plot(right, color=colour, label=name)
        found[name] = right[-1]
    axes.set_xlabel("step")
    axes.legend(frameon=False)
    keep(figure, picture)
    return found


if __name__ == "__main__":
    print(main(picture=Path("finetune.png")))
