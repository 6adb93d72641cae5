"""opacus: its optimizer clips each sample's gradient, adds noise and calls ours."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest

opacus = pytest.importorskip("opacus", reason="opacus is not installed: make clients installs it")

import torch
from client_task import OPTIMIZERS, assert_same, loader, net, weights
from torch.nn.functional import cross_entropy

import steprule


def train(optim: Any, name: str, options: dict[str, Any], again: bool = False) -> Any:
    model = net()
    optimizer = getattr(optim, name)(model.parameters(), **options)
    engine = opacus.PrivacyEngine()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, optimizer, data = engine.make_private(
            module=model, optimizer=optimizer, data_loader=loader(), noise_multiplier=0.5, max_grad_norm=1.0,
            poisson_sampling=False, noise_generator=torch.Generator().manual_seed(5),
        )  # fmt: skip
        for epoch in range(2):
            for x, y in data:
                optimizer.zero_grad()
                cross_entropy(model(x), y).backward()
                optimizer.step()
            if again and epoch == 0:
                saved = copy.deepcopy(optimizer.state_dict())
                optimizer.original_optimizer.state.clear()
                optimizer.load_state_dict(saved)
    return weights(model), engine.get_epsilon(1e-5), optimizer


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_training_is_the_same(name: str, options: dict[str, Any]) -> None:
    (ours, spent, optimizer), (theirs, their_spent, _) = (train(o, name, options) for o in (steprule, torch.optim))
    assert_same(ours, theirs)
    assert spent == their_spent
    assert optimizer.original_optimizer.steps_taken == 12


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_a_state_that_was_saved_goes_on(name: str, options: dict[str, Any]) -> None:
    assert_same(train(steprule, name, options, again=True)[0], train(steprule, name, options)[0], 0.0)
