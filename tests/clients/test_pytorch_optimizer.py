"""pytorch_optimizer's wrappers round an optimizer: clipping, bfloat16, float16 with a scaler, save and resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

wrappers = pytest.importorskip(
    "pytorch_optimizer", reason="pytorch_optimizer is not installed: make clients installs it"
)

import torch
from client_task import OPTIMIZERS, SCALE, Half, assert_same, loader, net, weights
from torch.nn.functional import cross_entropy

import steprule

WRAPPERS = {
    "Lookahead": lambda optimizer: wrappers.Lookahead(optimizer, k=3),
    "ScheduleFreeWrapper": lambda optimizer: wrappers.ScheduleFreeWrapper(optimizer),
    "TRAC": lambda optimizer: wrappers.TRAC(optimizer),
    "OrthoGrad": lambda optimizer: wrappers.OrthoGrad(optimizer),
}


def train(
    optim: Any, wrapper: str, name: str, options: dict[str, Any], folder: Path | None = None, precision: str = "32"
) -> list[torch.Tensor]:
    model, half = net(), Half(precision)
    made = lambda: WRAPPERS[wrapper](getattr(optim, name)(model.parameters(), **options))
    optimizer = made()
    for epoch in range(2):
        getattr(optimizer, "train", lambda: None)()
        for x, y in loader():
            optimizer.zero_grad()
            with half.autocast():
                loss = cross_entropy(model(x), y)
            half.step(optimizer, loss, model.parameters())
        if folder is not None and epoch == 0:
            torch.save(optimizer.state_dict(), folder / "half.pt")
            optimizer = made()
            optimizer.load_state_dict(torch.load(folder / "half.pt", weights_only=False))
    assert precision != "fp16" or half.scaler.get_scale() < SCALE
    return weights(model)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_training_is_the_same(wrapper: str, name: str, options: dict[str, Any]) -> None:
    assert_same(train(steprule, wrapper, name, options), train(torch.optim, wrapper, name, options), 1e-4)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_training_in_16_bits_is_the_same(wrapper: str, name: str, options: dict[str, Any], precision: str) -> None:
    ours, theirs = (train(optim, wrapper, name, options, None, precision) for optim in (steprule, torch.optim))
    assert_same(ours, theirs, 2e-2)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_a_state_that_was_saved_goes_on(wrapper: str, name: str, options: dict[str, Any], tmp_path: Path) -> None:
    whole = train(steprule, wrapper, name, options)
    assert_same(train(steprule, wrapper, name, options, tmp_path), whole, 0.0)


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
