"""The task that every client trains: scikit-learn's handwritten digits, by a network of two layers."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

BATCH = 32

OPTIMIZERS = [("SGD", dict(lr=0.05, momentum=0.9, weight_decay=1e-3)), ("AdamW", dict(lr=0.01, weight_decay=0.1))]
"""Those that every client trains with, of torch.optim and of steprule."""

MUON = ("Muon", dict(lr=0.02, weight_decay=0.1))
"""For matrices alone; every client trains with it once."""

FEATURES = [
    "SGD", "AdamW", "Muon", "clipping", "accumulation", "bf16", "fp16", "scheduler", "averages", "resuming",
]  # fmt: skip
"""The columns of the matrix in docs/clients.md."""


def holds(*features: str) -> pytest.MarkDecorator:
    """Marks a test as the proof of a client's features; which optimizers it trains with, its argument ``name`` says."""
    assert set(features) <= set(FEATURES)
    return pytest.mark.holds(*features)


WAYS = [
    pytest.param(dict(), id="plainly"),
    pytest.param(dict(accumulate=2), marks=holds("accumulation"), id="accumulating"),
    pytest.param(dict(precision="bf16"), marks=holds("bf16"), id="bf16"),
    pytest.param(dict(precision="fp16"), marks=holds("fp16"), id="fp16"),
]
"""How a client trains."""


def averages(optimizer: Any) -> list[Tensor]:
    """Running means of an optimizer's parameters, of the next ones too: torch's EMA, after each step that is taken."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    means, average = [p.detach().clone() for p in params], get_ema_multi_avg_fn(0.9)
    optimizer.register_step_post_hook(lambda *_: average(means, [p.detach() for p in params], 1))
    return means


@functools.cache
def digits(count: int = 192) -> tuple[Tensor, Tensor]:
    """Pixels, float32 (n, 64) of mean 0 and variance 1, and labels, int64 (n,)."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy(pixels[:count]).float()
    return (pixels - pixels.mean()) / pixels.std(), torch.from_numpy(labels[:count]).long()


def loader(count: int = 192) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*digits(count)), batch_size=BATCH)


def net(bias: bool = True) -> nn.Sequential:
    """64 pixels to ten scores; always the same first weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 32, bias=bias), nn.Tanh(), nn.Linear(32, 10, bias=bias))


SCALE = 2.0**22
"""Where scalers begin: the first steps overflow and are skipped."""

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Half:
    """Autocast on the CPU and, for float16, a scaler: what a loop of one's own needs in 16 bits.

    Args:
        precision: ``"32"``, ``"bf16"`` or ``"fp16"``.
    """

    def __init__(self, precision: str) -> None:
        self.dtype = HALF.get(precision)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, enabled=precision == "fp16")

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", self.dtype or torch.bfloat16, enabled=self.dtype is not None)

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def step(self, optimizer: Any, params: Iterable[Tensor], max_norm: float = 0.5) -> bool:
        """Clip and step.

        Returns:
            Whether the step was taken, so that a scheduler counts it.
        """
        before = self.scaler.get_scale()
        self.scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(params, max_norm)
        self.scaler.step(optimizer)
        self.scaler.update()
        return bool(self.scaler.get_scale() >= before)

    def epoch(self, model: nn.Module, optimizer: Any, scheduler: Any, accumulate: int) -> list[Any]:
        """Train once over the digits, in a loop of one's own.

        Args:
            model: what trains.
            optimizer: its optimizer.
            scheduler: counts the steps that were taken.
            accumulate: how many batches make a step.

        Returns:
            The rates after each batch.
        """
        rates = []
        for i, (x, y) in enumerate(loader()):
            with self.autocast():
                loss = cross_entropy(model(x), y) / accumulate
            self.backward(loss)
            if (i + 1) % accumulate == 0:
                if self.step(optimizer, model.parameters()):
                    scheduler.step()
                optimizer.zero_grad()
            rates.append(scheduler.get_last_lr())
        return rates


def scaling(accelerator: Any) -> Any:
    """The same Accelerator in float16 with a scaler, which it makes by itself on a GPU alone."""
    accelerator.scaler, accelerator.native_amp = torch.amp.GradScaler("cpu", init_scale=SCALE), True
    accelerator.state._mixed_precision = "fp16"
    return accelerator


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().float().clone() for p in model.parameters()]


def assert_same(ours: Iterable[Tensor], theirs: Iterable[Tensor], tolerance: float = 1e-5) -> None:
    """Equal within rounding; and somewhere else than where training began."""
    ours, theirs = list(ours), list(theirs)
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    began = net(bias=len(theirs) % 4 == 0).parameters()
    assert not any(torch.equal(a, b.detach()) for a, b in zip(theirs, began, strict=False))
