"""Handwritten digits: three algorithms on one small network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from panels import COLOURS, keep, panels, smooth
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

import steprule
from steprule.schedules import cosine, warmup


def main(steps: int = 300, picture: Path | None = None) -> dict[str, float]:
    """Train, and draw the losses; the share of 360 digits, which none has seen, that each reads right."""
    pixels, labels = (torch.from_numpy(each) for each in load_digits(return_X_y=True))
    inputs = pixels.float() / 16
    curve = warmup(steps // 10).then(cosine(steps - steps // 10))
    makers: dict[str, Any] = {
        "SGD": lambda m: steprule.SGD(m, lr=0.1 * curve, momentum=0.9, nesterov=True),
        "AdamW": lambda m: steprule.AdamW(m, lr=3e-3 * curve),
        "Muon": lambda m: steprule.Muon(m, lr=0.02 * curve, adamw=dict(lr=3e-3 * curve)),
    }
    figure, (losses, rates) = panels(2, ["training loss", "rate, over its peak"])
    right = {}
    for colour, (name, make) in zip(COLOURS, makers.items(), strict=False):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(64, 128),
            nn.ReLU(),
            nn.Linear(128, 128),
            nn.ReLU(),
            nn.Linear(128, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )
        optimizer = make(model)
        seen = []
        for _ in range(steps):
            batch = torch.randint(len(inputs) - 360, (64,))
            optimizer.zero_grad()
            loss = cross_entropy(model(inputs[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            seen.append(loss.item())
        losses.semilogy(smooth(seen), color=colour, label=name)
        right[name] = (model(inputs[-360:]).argmax(1) == labels[-360:]).double().mean().item()
    rates.plot([curve(step) for step in range(steps)], color=COLOURS[3])
    losses.legend(frameon=False)
    for axes in (losses, rates):
        axes.set_xlabel("step")
    keep(figure, picture)
    return right


if __name__ == "__main__":
    print(main(picture=Path("digits.png")))
