"""Steps of an optimizer, for the tests that need some and do not care of which problem."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from tensors import give_gradients
from torch import Tensor


def train(model: Callable[[Any], Tensor], optimizer: torch.optim.Optimizer, batches: Iterable[Any]) -> None:
    """A step for each batch; the loss is the sum of the squares of what the model makes of it."""
    for batch in batches:

        def closure(batch: Any = batch) -> Any:
            optimizer.zero_grad()
            loss = model(batch).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)


def take_steps(optimizer: Any, params: Sequence[Tensor], steps: int) -> None:
    """Steps, each with gradients of its own."""
    for step in range(steps):
        give_gradients(params, step)
        optimizer.step()
