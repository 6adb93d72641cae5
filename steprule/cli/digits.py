"""A task that takes seconds: the LeNet of 3x32x32 on scikit-learn's 1,797 handwritten digits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, interpolate

BATCH_SIZE = 32
STEPS = 45  # of an epoch of 1,437 digits
WARP = 0.1  # how far a training digit is turned, sheared, scaled and shifted (standard deviation)


class Digits(NamedTuple):
    """Images, float32 (n, 3, 32, 32) of mean 0 and variance 1, and their labels, int64 (n,)."""

    images: Tensor
    labels: Tensor


class LeNet(nn.Module):
    """LeNet for images of 3x32x32 and ten classes, as a feature extractor and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Linear(16 * 5 * 5, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Scores, shape (n, 10), of images of shape (n, 3, 32, 32)."""
        scores: Tensor = self.classifier(self.features(images).flatten(1))
        return scores


def build_model(seed: int, device: torch.device) -> LeNet:
    """A LeNet whose first weights depend on the seed alone, not on the device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LeNet().to(device)


def read_digits(device: torch.device) -> tuple[Digits, Digits]:
    """The digits to train on, and the fifth that is held out: always the same one, with every class in it.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy(images).float().view(-1, 1, 8, 8)
    large = interpolate(pixels, size=(32, 32), mode="bilinear").expand(-1, 3, -1, -1)
    standard = (large - large.mean()) / large.std()
    parts = train_test_split(range(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    train, held_out = (
        Digits(standard[part].contiguous().to(device), torch.from_numpy(labels[part]).to(device)) for part in parts
    )
    return train, held_out


def batches(digits: Digits, seed: int, epoch: int) -> Iterator[Digits]:
    """One epoch: every digit once, a little warped. Order and warp depend on seed and epoch alone."""
    images, labels = digits
    generator = torch.Generator().manual_seed(seed + 1_000_003 * epoch)
    order = torch.randperm(len(labels), generator=generator)
    for first in range(0, len(order), BATCH_SIZE):
        chosen = order[first : first + BATCH_SIZE].to(images.device)
        warp = torch.eye(2, 3) + WARP * torch.randn(len(chosen), 2, 3, generator=generator)
        batch = images[chosen]
        grid = affine_grid(warp.to(images.device), list(batch.shape), align_corners=False)
        yield Digits(grid_sample(batch, grid, padding_mode="border", align_corners=False), labels[chosen])


@torch.no_grad()
def count_right(model: nn.Module, digits: Digits) -> int:
    """How many of the digits the model reads right."""
    return int((model(digits.images).argmax(1) == digits.labels).sum())
