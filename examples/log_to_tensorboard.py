"""The norms of every step in TensorBoard. Needs `pip install tensorboard`; `tensorboard --logdir runs` shows them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import mse_loss

import steprule
from steprule.schedules import cosine, warmup

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError as error:
    raise SystemExit(f"this example needs more ({error}): pip install tensorboard") from error


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = steprule.AdamW(model, lr=1e-2 * warmup(20).then(cosine(180)))
    optimizer.track("grad_norm", "update_to_param")
    writer = SummaryWriter("runs")
    for step in range(200):
        x = torch.randn(64, 8)
        optimizer.zero_grad()
        loss = mse_loss(model(x), x.sin().sum(1, keepdim=True))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        for name, value in {"loss": loss.item(), **optimizer.tracked()}.items():
            writer.add_scalar(name, value, step)
    writer.close()


if __name__ == "__main__":
    main()
