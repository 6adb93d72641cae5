"""A transformer that learns to write bytes, from the licences that come with Python."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from panels import COLOURS, keep, panels, smooth

import steprule
from steprule import biases, embeddings, norms, scale
from steprule.schedules import cosine, warmup

sys.path.append(str(Path(__file__).parents[1]))
from small_transformer import LENGTH, Transformer, batches  # type: ignore[import-not-found,unused-ignore]


def main(steps: int = 400, picture: Path | None = None) -> tuple[float, str]:
    """Train, and draw loss and norms; the last losses' mean, in nats a byte, and what the model goes on to write."""
    torch.manual_seed(0)
    model = Transformer()
    optimizer = steprule.AdamW(
        model,
        lr=3e-3 * warmup(steps // 10).then(cosine(steps - steps // 10, end_factor=0.1)),
        betas=(0.9, 0.95),
        weight_decay=0.1,
        clip_norm=1.0,
        overrides={norms | biases | embeddings: dict(weight_decay=0), embeddings: dict(lr=scale(0.5))},
    )
    losses, gradients = [], []
    for text, following in batches(0, steps, 0, 1):
        optimizer.zero_grad()
        loss = model.loss(text, following)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        gradients.append(optimizer.grad_norm.item())
    figure, (left, right) = panels(2, ["loss, nats a byte", "norm of the gradients, and where they are clipped"])
    left.plot(smooth(losses), color=COLOURS[0])
    right.semilogy(smooth(gradients), color=COLOURS[1])
    right.axhline(1.0, color=COLOURS[7], linestyle=":")
    for axes in (left, right):
        axes.set_xlabel("step")
    keep(figure, picture)
    return smooth(losses, 20)[-1], written(model, "Python ", 120)


@torch.no_grad()
def written(model: Transformer, begin: str, count: int) -> str:
    """What the model goes on with, the likeliest byte each time."""
    text = list(begin.encode())
    for _ in range(count):
        scores = model(torch.tensor([text[-LENGTH:]]))[0, -1]
        text.append(int(scores.argmax()))
    return bytes(text).decode(errors="replace")


if __name__ == "__main__":
    print(*main(picture=Path("characters.png")), sep="\n")
