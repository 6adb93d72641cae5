"""Two networks, each with an optimizer of its own, against each other: a GAN that learns eight points on a circle."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from panels import COLOURS, keep, panels
from torch import Tensor, nn
from torch.nn.functional import softplus

import steprule
from steprule.modifiers import EMA


def real(count: int) -> Tensor:
    """Points around eight places on a circle."""
    angle = torch.randint(8, (count,)) * (2 * math.pi / 8)
    return torch.stack([angle.cos(), angle.sin()], 1) * 2 + 0.05 * torch.randn(count, 2)


def network(inputs: int, outputs: int) -> nn.Sequential:
    """Three layers."""
    return nn.Sequential(
        nn.Linear(inputs, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, outputs)
    )


def main(steps: int = 3000, picture: Path | None = None) -> float:
    """Train, and draw what the mean of the generator's weights makes; how far that is from the circle, on average."""
    torch.manual_seed(0)
    generator, critic = network(8, 2), network(2, 1)
    makes = steprule.Adam(generator, lr=1e-3, betas=(0.5, 0.9), modifiers=[EMA(0.99)])
    judges = steprule.Adam(critic, lr=1e-3, betas=(0.5, 0.9))
    for _ in range(steps):
        points = real(128)
        made = generator(torch.randn(128, 8))
        judges.zero_grad()
        (softplus(-critic(points)).mean() + softplus(critic(made.detach())).mean()).backward()
        judges.step()
        makes.zero_grad()
        softplus(-critic(made)).mean().backward()
        makes.step()
    with torch.no_grad(), makes.evaluating():
        made = generator(torch.randn(512, 8))
    figure, (axes,) = panels(1, ["real (grey) and made"])
    axes.set_aspect("equal")
    axes.scatter(*real(512).T.tolist(), s=8, color="#b6bcc8")
    axes.scatter(*made.T.tolist(), s=8, color=COLOURS[0])
    keep(figure, picture)
    return (made.norm(dim=1) - 2).abs().mean().item()


if __name__ == "__main__":
    print(main(picture=Path("gan.png")))
