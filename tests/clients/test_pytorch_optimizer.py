"""pytorch_optimizer's wrappers round an optimizer, in all ways of a loop of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

wrappers = pytest.importorskip(
    "pytorch_optimizer", reason="pytorch_optimizer is not installed: make clients installs it"
)

import torch
from client_task import MUON, OPTIMIZERS, SCALE, WAYS, Half, assert_same, averages, holds, loader, net, weights
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import StepLR

import steprule

WRAPPERS = {
    "Lookahead": lambda optimizer: wrappers.Lookahead(optimizer, k=3),
    "ScheduleFreeWrapper": lambda optimizer: wrappers.ScheduleFreeWrapper(optimizer),
    "TRAC": lambda optimizer: wrappers.TRAC(optimizer),
    "OrthoGrad": lambda optimizer: wrappers.OrthoGrad(optimizer),
}


def train(
    optim: Any,
    wrapper: str,
    name: str,
    options: dict[str, Any],
    folder: Path | None = None,
    precision: str = "32",
    accumulate: int = 1,
) -> dict[str, Any]:
    model, half = net(bias=name != "Muon"), Half(precision)

    def made() -> Any:
        base = getattr(optim, name)(model.parameters(), **options)
        return base, WRAPPERS[wrapper](base), StepLR(base, 3, gamma=0.5)

    base, optimizer, scheduler = made()
    means = averages(base)
    rates = []
    for epoch in range(2):
        getattr(optimizer, "train", lambda: None)()
        rates += half.epoch(model, optimizer, scheduler, accumulate)
        if folder is not None and epoch == 0:
            torch.save([optimizer.state_dict(), scheduler.state_dict()], folder / "half.pt")
            base, optimizer, scheduler = made()
            for part, saved in zip(
                (optimizer, scheduler), torch.load(folder / "half.pt", weights_only=False), strict=True
            ):
                part.load_state_dict(saved)
    assert precision != "fp16" or half.scaler.get_scale() < SCALE
    return {"weights": weights(model), "means": means, "rates": rates}


@holds("clipping", "scheduler", "averages")
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
@pytest.mark.parametrize("how", WAYS)
def test_training_is_the_same(wrapper: str, name: str, options: dict[str, Any], how: dict[str, Any]) -> None:
    ours, theirs = (train(optim, wrapper, name, options, **how) for optim in (steprule, torch.optim))
    assert ours["rates"] == theirs["rates"]
    tolerance = 2e-2 if "precision" in how else 1e-4
    assert_same(ours["weights"] + ours["means"], theirs["weights"] + theirs["means"], tolerance)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(("name", "options"), [MUON])
def test_training_of_matrices_is_the_same(wrapper: str, name: str, options: dict[str, Any]) -> None:
    ours, theirs = (train(optim, wrapper, name, options) for optim in (steprule, torch.optim))
    assert_same(ours["weights"], theirs["weights"], 2e-2)


@holds("resuming")
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_a_state_that_was_saved_goes_on(wrapper: str, name: str, options: dict[str, Any], tmp_path: Path) -> None:
    again, whole = train(steprule, wrapper, name, options, tmp_path), train(steprule, wrapper, name, options)
    assert again["rates"] == whole["rates"]
    assert_same(again["weights"], whole["weights"], 0.0)


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
    ours, theirs = found
    assert_same(ours, theirs)
