"""An optimizer chosen on Lightning's command line. Needs `pip install lightning "jsonargparse[signatures]"`.

    python examples/choose_with_lightning_cli.py fit --optimizer steprule.SGD --optimizer.lr 0.01 --trainer.max_epochs 2
    python examples/choose_with_lightning_cli.py fit --model.optimizer Lion --model.hyper '{"lr": 1e-3}'

The first way is Lightning's own: every class of steprule is one that it can construct, by its full name where torch has
one of that name, but it gives bare parameters.
The second goes by name, in `configure_optimizers`, and gives the module, so that names and selectors work.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader

import steprule

try:
    from lightning.pytorch import LightningModule
    from lightning.pytorch.cli import LightningCLI
except ImportError as error:
    raise SystemExit(f"this example needs more ({error}): pip install lightning 'jsonargparse[signatures]'") from error


class Line(LightningModule):  # type: ignore[misc,unused-ignore]
    """A line to be fitted.

    Args:
        optimizer: the name of an algorithm, for `configure_optimizers`.
        hyper: its hyperparameters.
    """

    def __init__(self, optimizer: str = "AdamW", hyper: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.net, self.choice = nn.Linear(4, 1), (optimizer, hyper or {})

    def training_step(self, x: Tensor, index: int) -> Tensor:
        return mse_loss(self.net(x), x.sum(1, keepdim=True))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        name, hyper = self.choice
        return steprule.create(name, self, **hyper)

    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(torch.randn(256, 4, generator=torch.Generator().manual_seed(0)), batch_size=32)  # type: ignore[arg-type]


def main(given: list[str] | None = None) -> LightningCLI:
    return LightningCLI(Line, args=given, save_config_callback=None)


if __name__ == "__main__":
    main()
