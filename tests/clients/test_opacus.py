"""opacus: its optimizer clips each sample's gradient, adds noise and calls ours, in bfloat16 too.

It offers no float16 with a scaler: it clips gradients of samples, which no scaler unscales.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

opacus = pytest.importorskip("opacus", reason="opacus is not installed: make clients installs it")

import torch
from client_task import MUON, OPTIMIZERS, Half, assert_same, averages, holds, loader, net, weights
from opacus.utils.batch_memory_manager import BatchMemoryManager
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import StepLR

import steprule


def train(optim: Any, name: str, options: dict[str, Any], folder: Path | None = None, precision: str = "32") -> Any:
    model, half = net(bias=name != "Muon"), Half(precision)
    optimizer = getattr(optim, name)(model.parameters(), **options)
    means = averages(optimizer)
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
                with half.autocast():
                    loss = cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
            if folder is not None and epoch == 0:
                engine.save_checkpoint(path=folder / "half.pt", module=model, optimizer=optimizer)
                optimizer.original_optimizer.state.clear()
                for p in model.parameters():
                    p.data.zero_()
                engine.load_checkpoint(path=folder / "half.pt", module=model, optimizer=optimizer)
    return weights(model) + means, engine.get_epsilon(1e-5), optimizer


@holds("clipping", "averages")
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
@pytest.mark.parametrize("precision", ["32", pytest.param("bf16", marks=holds("bf16"))])
def test_training_is_the_same(name: str, options: dict[str, Any], precision: str) -> None:
    found = [train(optim, name, options, precision=precision) for optim in (steprule, torch.optim)]
    (ours, spent, optimizer), (theirs, their_spent, _) = found
    assert_same(ours, theirs, 1e-5 if precision == "32" else 2e-2)
    assert repr(optimizer).startswith(f"{name}: 2,410 parameters in 4 tensors")  # it hands repr() on
    assert spent == their_spent
    assert optimizer.original_optimizer.steps_taken == 12


@pytest.mark.parametrize(("name", "options"), [MUON])
def test_training_of_matrices_is_the_same(name: str, options: dict[str, Any]) -> None:
    assert_same(train(steprule, name, options)[0], train(torch.optim, name, options)[0], 2e-2)


@holds("accumulation", "scheduler")
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_accumulation_and_a_scheduler_are_the_same(name: str, options: dict[str, Any]) -> None:
    found = []
    for optim in (steprule, torch.optim):
        model = net()
        optimizer = getattr(optim, name)(model.parameters(), **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, optimizer, data = opacus.PrivacyEngine().make_private(
                module=model, optimizer=optimizer, data_loader=loader(), noise_multiplier=0.5, max_grad_norm=1.0,
                poisson_sampling=False, noise_generator=torch.Generator().manual_seed(5),
            )  # fmt: skip
            scheduler = StepLR(optimizer, 2, gamma=0.5)
            with BatchMemoryManager(data_loader=data, max_physical_batch_size=8, optimizer=optimizer) as small:
                for x, y in small:
                    optimizer.zero_grad()
                    cross_entropy(model(x), y).backward()
                    optimizer.step()
                    if not optimizer._is_last_step_skipped:
                        scheduler.step()
        found.append((weights(model), optimizer.param_groups[0]["lr"], optimizer.original_optimizer))
    (ours, rate, optimizer), (theirs, their_rate, _) = found
    assert_same(ours, theirs)
    assert rate == their_rate == options["lr"] * 0.5**3
    assert optimizer.steps_taken == 6


@holds("resuming")
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_a_checkpoint_goes_on(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    again, whole = train(steprule, name, options, tmp_path), train(steprule, name, options)
    assert_same(again[0], whole[0], 0.0)
    assert again[1] == whole[1]
    assert again[2].original_optimizer.steps_taken == 12
