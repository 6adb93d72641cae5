"""Learning how to learn: the first weights and the rate of an inner training, by derivatives through its steps."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from panels import COLOURS, keep, panels, smooth
from torch import Tensor, nn
from torch.func import functional_call

import steprule

INNER = 5  # steps of the inner training


def adapted(model: nn.Module, rate: Tensor, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Weights after a few steps from the model's own, differentiable with regard to these and to the rate."""
    weights = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = steprule.SGD(weights.values(), lr=rate, differentiable=True)
    for _ in range(INNER):
        seen = {
            name: p.clone() for name, p in weights.items()
        }  # which stay, for the derivatives: a step changes in place
        loss = (functional_call(model, seen, (inputs,)) - targets).square().mean()
        grads = torch.autograd.grad(loss, [*seen.values()], create_graph=True)
        for p, grad in zip(weights.values(), grads, strict=True):
            p.grad = grad
        optimizer.step()
    return weights


def task(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten points of a sine of some height and place to learn from, and a hundred to judge by."""
    generator = torch.Generator().manual_seed(seed)
    height, place = torch.rand(2, generator=generator).tolist()
    few = 10 * torch.rand(10, 1, generator=generator) - 5
    all_of_it = torch.linspace(-5, 5, 100)[:, None]
    sine = [(0.1 + 4.9 * height) * torch.sin(x - math.pi * place) for x in (few, all_of_it)]
    return few, sine[0], all_of_it, sine[1]


def main(steps: int = 400, picture: Path | None = None) -> tuple[float, float]:
    """Train first weights and rate; the error on new sines after the inner steps, at first and in the end."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1))
    log_rate = torch.tensor(-4.0, requires_grad=True)
    outer = steprule.Adam([*model.parameters(), log_rate], lr=3e-3, clip_norm=10.0)

    def error(seed: int) -> Tensor:
        few, known, inputs, targets = task(seed)
        weights = adapted(model, log_rate.exp(), few, known)
        return (functional_call(model, weights, (inputs,)) - targets).square().mean()

    def new() -> float:
        return sum(error(10_000 + seed).item() for seed in range(20)) / 20

    first, errors, rates = new(), [], []
    for step in range(steps):
        outer.zero_grad()
        loss = torch.stack([error(4 * step + i) for i in range(4)]).mean()
        loss.backward()
        outer.step()
        errors.append(loss.item())
        rates.append(log_rate.exp().item())
    figure, (left, middle, right) = panels(3, [f"error after {INNER} inner steps", "the inner rate", "a new sine"])
    left.semilogy(smooth(errors, 20), color=COLOURS[0])
    middle.plot(rates, color=COLOURS[1])
    few, known, inputs, targets = task(10_001)
    weights = adapted(model, log_rate.exp(), few, known)
    right.plot(inputs, targets, color="#b6bcc8", label="the sine")
    right.plot(
        inputs, functional_call(model, weights, (inputs,)).detach(), color=COLOURS[0], label="learned of ten points"
    )
    right.scatter(few, known, color=COLOURS[1], zorder=3)
    right.legend(frameon=False)
    for axes in (left, middle):
        axes.set_xlabel("outer step")
    keep(figure, picture)
    return first, new()


if __name__ == "__main__":
    print(*main(picture=Path("meta.png")))
