"""schedulefree's wrapper round an optimizer: clipping, bfloat16, float16 with a scaler, save and resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

schedulefree = pytest.importorskip("schedulefree", reason="schedulefree is not installed: make clients installs it")

import torch
from client_task import OPTIMIZERS, SCALE, Half, assert_same, digits, loader, net, weights
from torch.nn.functional import cross_entropy

import steprule


BASES = [OPTIMIZERS[0], ("Adagrad", dict(lr=0.05))]
"""torch's AdamW takes the entry of the wrapper for its own state, and fails; ours makes what is missing."""


def train(
    optim: Any, name: str, options: dict[str, Any], folder: Path | None = None, precision: str = "32"
) -> list[torch.Tensor]:
    model, half = net(), Half(precision)

    def made() -> Any:
        base = getattr(optim, name)(model.parameters(), **{k: v for k, v in options.items() if k != "momentum"})
        return schedulefree.ScheduleFreeWrapper(base, momentum=0.9)

    optimizer = made()
    optimizer.train()
    for epoch in range(2):
        for x, y in loader():
            optimizer.zero_grad()
            with half.autocast():
                loss = cross_entropy(model(x), y)
            half.step(optimizer, loss, model.parameters())
        if folder is not None and epoch == 0:
            torch.save(optimizer.state_dict(), folder / "half.pt")
            optimizer = made()
            optimizer.load_state_dict(torch.load(folder / "half.pt", weights_only=True))
            optimizer.train_mode = True
    optimizer.eval()
    assert precision != "fp16" or half.scaler.get_scale() < SCALE
    return weights(model)


@pytest.mark.parametrize(("name", "options"), BASES)
@pytest.mark.parametrize("precision", ["32", "bf16", "fp16"])
def test_training_is_the_same(name: str, options: dict[str, Any], precision: str) -> None:
    ours, theirs = (train(optim, name, options, None, precision) for optim in (steprule, torch.optim))
    assert_same(ours, theirs, 1e-5 if precision == "32" else 2e-2)


@pytest.mark.parametrize(("name", "options"), [*BASES, OPTIMIZERS[1]])
def test_a_state_that_was_saved_goes_on(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    assert_same(train(steprule, name, options, tmp_path), train(steprule, name, options), 0.0)


def test_adamw_of_ours_may_be_the_base() -> None:
    model, (x, y) = net(), digits()
    model.load_state_dict(dict(zip(model.state_dict(), train(steprule, *OPTIMIZERS[1]), strict=True)))
    assert cross_entropy(model(x), y) < 0.7 * cross_entropy(net()(x), y)
