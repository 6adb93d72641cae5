"""The norms of every step in Weights & Biases. Needs `pip install wandb`; WANDB_MODE=offline keeps them here."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import mse_loss

import steprule
from steprule.schedules import cosine, warmup

try:
    import wandb
except ImportError as error:
    raise SystemExit(f"this example needs more ({error}): pip install wandb") from error


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = steprule.AdamW(model, lr=1e-2 * warmup(20).then(cosine(180)))
    optimizer.track("grad_norm", "update_to_param")
    with wandb.init(project="steprule") as run:
        for step in range(200):
            x = torch.randn(64, 8)
            optimizer.zero_grad()
            loss = mse_loss(model(x), x.sin().sum(1, keepdim=True))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            run.log({"loss": loss.item(), **optimizer.tracked(by="group")}, step=step)


if __name__ == "__main__":
    main()
