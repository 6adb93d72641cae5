"""schedulefree's wrapper round an optimizer, whose rate a scheduler warms up, in all ways of a loop of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

schedulefree = pytest.importorskip("schedulefree", reason="schedulefree is not installed: make clients installs it")

import torch
from client_task import MUON, OPTIMIZERS, SCALE, WAYS, Half, assert_same, digits, holds, net, weights
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LinearLR

import steprule


BASES = [OPTIMIZERS[0], ("Adagrad", dict(lr=0.05))]
"""torch's AdamW takes the entry of the wrapper for its own state, and fails; ours makes what is missing."""


def train(
    optim: Any,
    name: str,
    options: dict[str, Any],
    folder: Path | None = None,
    precision: str = "32",
    accumulate: int = 1,
) -> dict[str, Any]:
    model, half = net(bias=name != "Muon"), Half(precision)

    def made() -> Any:
        base = getattr(optim, name)(model.parameters(), **{k: v for k, v in options.items() if k != "momentum"})
        return schedulefree.ScheduleFreeWrapper(base, momentum=0.9), LinearLR(base, 0.25, total_iters=4)

    optimizer, scheduler = made()
    optimizer.train()
    rates = []
    for epoch in range(2):
        rates += half.epoch(model, optimizer, scheduler, accumulate)
        if folder is not None and epoch == 0:
            torch.save([optimizer.state_dict(), scheduler.state_dict()], folder / "half.pt")
            optimizer, scheduler = made()
            for part, saved in zip((optimizer, scheduler), torch.load(folder / "half.pt"), strict=True):
                part.load_state_dict(saved)
            optimizer.train_mode = True
    optimizer.eval()
    assert precision != "fp16" or half.scaler.get_scale() < SCALE
    return {"weights": weights(model), "rates": rates}


@holds("clipping", "scheduler")
@pytest.mark.parametrize(("name", "options"), BASES)
@pytest.mark.parametrize("how", WAYS)
def test_training_is_the_same(name: str, options: dict[str, Any], how: dict[str, Any]) -> None:
    ours, theirs = (train(optim, name, options, **how) for optim in (steprule, torch.optim))
    assert ours["rates"] == theirs["rates"]
    assert_same(ours["weights"], theirs["weights"], 2e-2 if "precision" in how else 1e-5)


@pytest.mark.parametrize(("name", "options"), [MUON])
def test_training_of_matrices_is_the_same(name: str, options: dict[str, Any]) -> None:
    ours, theirs = (train(optim, name, options) for optim in (steprule, torch.optim))
    assert_same(ours["weights"], theirs["weights"], 2e-2)


@holds("resuming")
@pytest.mark.parametrize(("name", "options"), [*BASES, OPTIMIZERS[1]])
def test_a_state_that_was_saved_goes_on(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    again, whole = train(steprule, name, options, tmp_path), train(steprule, name, options)
    assert again["rates"] == whole["rates"]
    assert_same(again["weights"], whole["weights"], 0.0)


def test_adamw_of_ours_may_be_the_base() -> None:
    model, (x, y) = net(), digits()
    model.load_state_dict(dict(zip(model.state_dict(), train(steprule, *OPTIMIZERS[1])["weights"], strict=True)))
    assert cross_entropy(model(x), y) < 0.7 * cross_entropy(net()(x), y)
