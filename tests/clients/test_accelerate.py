"""Accelerate: clipping, accumulation, bfloat16, float16 with a scaler that skips, schedulers, save and resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed: make clients installs it")

import torch
from client_task import MUON, OPTIMIZERS, WAYS, assert_same, averages, holds, loader, net, scaling, weights
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import StepLR

import steprule
from steprule.schedules import Native, cosine


def accelerator(precision: str = "no", accumulate: int = 1) -> Any:
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    begun = "no" if precision == "fp16" else precision
    made = accelerate.Accelerator(cpu=True, mixed_precision=begun, gradient_accumulation_steps=accumulate)
    return scaling(made) if precision == "fp16" else made


def train(optim: Any, name: str, options: dict[str, Any], folder: Path | None = None, **how: Any) -> dict[str, Any]:
    a, model = accelerator(**how), net(bias=name != "Muon")
    optimizer = getattr(optim, name)(model.parameters(), **options)
    means = averages(optimizer)
    model, optimizer, data, scheduler = a.prepare(model, optimizer, loader(), StepLR(optimizer, 1, gamma=0.9))
    rates, skipped = [], []
    for epoch in range(2):
        for x, y in data:
            with a.accumulate(model):
                a.backward(cross_entropy(model(x), y))
                if a.sync_gradients:
                    a.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            rates.append(optimizer.param_groups[0]["lr"])
            skipped.append(optimizer.step_was_skipped)
        if folder is not None and epoch == 0:  # go on as another process would
            a.save_state(str(folder / "state"))
            for p in model.parameters():
                p.data.zero_()
            optimizer.state.clear()
            a.load_state(str(folder / "state"))
    found = weights(model) + means
    return {"weights": found, "rates": rates, "skipped": skipped, "optimizer": optimizer.optimizer}


@holds("clipping", "scheduler", "averages")
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
@pytest.mark.parametrize("how", WAYS)
def test_training_is_the_same(name: str, options: dict[str, Any], how: dict[str, Any]) -> None:
    ours, theirs = train(steprule, name, options, **how), train(torch.optim, name, options, **how)
    assert ours["rates"] == theirs["rates"]
    assert ours["skipped"] == theirs["skipped"]
    assert_same(ours["weights"], theirs["weights"], 2e-2 if "precision" in how else 1e-5)
    if how.get("precision") == "fp16":
        assert 1 <= sum(ours["skipped"]) < 10
        assert ours["optimizer"].steps_taken == 12 - sum(ours["skipped"])


@pytest.mark.parametrize(("name", "options"), [MUON])
def test_training_of_matrices_is_the_same(name: str, options: dict[str, Any]) -> None:
    ours, theirs = train(steprule, name, options), train(torch.optim, name, options)
    assert_same(ours["weights"], theirs["weights"], 2e-2)


@holds("resuming")
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_a_state_that_was_saved_goes_on(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    ours = train(steprule, name, options, tmp_path)
    assert_same(ours["weights"], train(steprule, name, options)["weights"], 0.0)
    assert ours["optimizer"].steps_taken == 12


def test_a_schedule_of_ours_beside_native() -> None:
    a, model = accelerator(), net()
    optimizer = steprule.AdamW(model, lr=0.01 * cosine(6))
    model, optimizer, data, scheduler = a.prepare(model, optimizer, loader(), Native(optimizer))
    for x, y in data:
        a.backward(cross_entropy(model(x), y))
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    assert scheduler.get_last_lr() == [0.01 * cosine(6)(5)]
