"""schedulefree's wrapper round an optimizer."""

from __future__ import annotations

import copy
from typing import Any

import pytest

schedulefree = pytest.importorskip("schedulefree", reason="schedulefree is not installed: make clients installs it")

import torch
from client_task import OPTIMIZERS, assert_same, digits, loader, net, weights
from torch.nn.functional import cross_entropy

import steprule


BASES = [OPTIMIZERS[0], ("Adagrad", dict(lr=0.05))]
"""torch's AdamW takes the entry of the wrapper for its own state, and fails; ours makes what is missing."""


def train(optim: Any, name: str, options: dict[str, Any], again: bool = False) -> list[torch.Tensor]:
    model = net()

    def made() -> Any:
        base = getattr(optim, name)(model.parameters(), **{k: v for k, v in options.items() if k != "momentum"})
        return schedulefree.ScheduleFreeWrapper(base, momentum=0.9)

    optimizer = made()
    optimizer.train()
    for epoch in range(2):
        for x, y in loader():
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
        if again and epoch == 0:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = made()
            optimizer.load_state_dict(saved)
            optimizer.train_mode = True
    optimizer.eval()
    return weights(model)


@pytest.mark.parametrize(("name", "options"), BASES)
def test_training_is_the_same(name: str, options: dict[str, Any]) -> None:
    assert_same(train(steprule, name, options), train(torch.optim, name, options))


@pytest.mark.parametrize(("name", "options"), BASES)
def test_a_state_that_was_saved_goes_on_as_with_torch(name: str, options: dict[str, Any]) -> None:
    assert_same(train(steprule, name, options, again=True), train(torch.optim, name, options, again=True))


def test_adamw_of_ours_may_be_the_base() -> None:
    model, (x, y) = net(), digits()
    model.load_state_dict(dict(zip(model.state_dict(), train(steprule, *OPTIMIZERS[1]), strict=True)))
    assert cross_entropy(model(x), y) < 0.7 * cross_entropy(net()(x), y)
