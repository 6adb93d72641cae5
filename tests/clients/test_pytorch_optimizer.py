"""pytorch_optimizer's wrappers round an optimizer."""

from __future__ import annotations

import copy
from typing import Any

import pytest

wrappers = pytest.importorskip(
    "pytorch_optimizer", reason="pytorch_optimizer is not installed: make clients installs it"
)

import torch
from client_task import OPTIMIZERS, assert_same, loader, net, weights
from torch.nn.functional import cross_entropy

import steprule

WRAPPERS = {
    "Lookahead": lambda optimizer: wrappers.Lookahead(optimizer, k=3),
    "ScheduleFreeWrapper": lambda optimizer: wrappers.ScheduleFreeWrapper(optimizer),
    "TRAC": lambda optimizer: wrappers.TRAC(optimizer),
    "OrthoGrad": lambda optimizer: wrappers.OrthoGrad(optimizer),
}


def train(optim: Any, wrapper: str, name: str, options: dict[str, Any], again: bool = False) -> list[torch.Tensor]:
    model = net()
    made = lambda: WRAPPERS[wrapper](getattr(optim, name)(model.parameters(), **options))
    optimizer = made()
    for epoch in range(2):
        getattr(optimizer, "train", lambda: None)()
        for x, y in loader():
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
        if again and epoch == 0:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = made()
            optimizer.load_state_dict(saved)
    return weights(model)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_training_is_the_same(wrapper: str, name: str, options: dict[str, Any]) -> None:
    assert_same(train(steprule, wrapper, name, options), train(torch.optim, wrapper, name, options), 1e-4)


@pytest.mark.parametrize("wrapper", ["Lookahead", "OrthoGrad"])
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_a_state_that_was_saved_goes_on_as_with_torch(wrapper: str, name: str, options: dict[str, Any]) -> None:
    ours, theirs = (train(optim, wrapper, name, options, again=True) for optim in (steprule, torch.optim))
    assert_same(ours, theirs, 1e-4)


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_sam_makes_our_optimizer_itself(name: str, options: dict[str, Any]) -> None:
    found = []
    for optim in (steprule, torch.optim):
        model = net()
        optimizer = wrappers.SAM(model.parameters(), getattr(optim, name), rho=0.05, **options)
        for x, y in loader():
            cross_entropy(model(x), y).backward()
            optimizer.first_step(zero_grad=True)
            cross_entropy(model(x), y).backward()
            optimizer.second_step(zero_grad=True)
        found.append(weights(model))
    assert_same(*found)
