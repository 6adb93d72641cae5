"""peft: only the adapters train, as each client of one's own loop does; LoRA+ makes groups of its own."""

from __future__ import annotations

import copy
from typing import Any

import pytest

peft = pytest.importorskip("peft", reason="peft is not installed: make clients installs it")

import torch
from client_task import MUON, OPTIMIZERS, SCALE, WAYS, Half, averages, holds, net
from peft.optimizers import create_loraplus_optimizer
from torch.optim.lr_scheduler import StepLR

import steprule


def adapted(bias: bool = True) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return peft.get_peft_model(net(bias), peft.LoraConfig(r=4, target_modules=["0", "2"], lora_dropout=0.0))


def train(
    model: Any, optimizer: Any, epochs: int = 2, half: Half | None = None, accumulate: int = 1, begin: int = 0
) -> dict[str, Any]:
    half = half or Half("32")
    scheduler = StepLR(optimizer, 3, gamma=0.5)
    for _ in range(begin):
        scheduler.step()
    rates = []
    for _ in range(epochs):
        rates += half.epoch(model, optimizer, scheduler, accumulate)
    return {"rates": rates} | {name: p.detach().clone() for name, p in model.named_parameters()}


@holds("clipping", "scheduler", "averages")
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
@pytest.mark.parametrize("how", WAYS)
def test_only_adapters_train_and_as_with_torch(name: str, options: dict[str, Any], how: dict[str, Any]) -> None:
    found, scales, means = [], [], []
    for optim in (steprule, torch.optim):
        model, half = adapted(), Half(how.get("precision", "32"))
        optimizer = getattr(optim, name)(model.parameters(), **options)
        means.append(averages(optimizer))
        found.append(train(model, optimizer, half=half, accumulate=how.get("accumulate", 1)))
        scales.append(half.scaler.get_scale())
    ours, theirs = found
    assert scales[0] == scales[1]
    assert how.get("precision") != "fp16" or scales[0] < SCALE
    tolerance = 2e-2 if "precision" in how else 1e-5
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(*means, rtol=tolerance, atol=tolerance)
    before = dict(adapted().named_parameters())
    moved = {name for name in before if not torch.equal(ours[name], before[name].detach())}
    assert moved == {name for name in before if "lora_" in name}


@pytest.mark.parametrize(("name", "options"), [MUON])
def test_training_of_matrices_is_the_same(name: str, options: dict[str, Any]) -> None:
    found = []
    for optim in (steprule, torch.optim):
        model = adapted(bias=False)
        found.append(train(model, getattr(optim, name)(model.parameters(), **options)))
    torch.testing.assert_close(*found, rtol=2e-2, atol=2e-2)


def test_a_module_given_whole_knows_names() -> None:
    model = adapted()
    optimizer = steprule.AdamW(model, lr=0.01, overrides={"*lora_B*": dict(lr=0.1)})
    train(model, optimizer, 1)
    assert len(optimizer.state) == 4


def test_loraplus_makes_its_groups() -> None:
    found = []
    for optim in (steprule, torch.optim):
        model = adapted()
        optimizer = create_loraplus_optimizer(model, optim.AdamW, lr=0.01, loraplus_lr_ratio=4.0)
        found.append((train(model, optimizer), sorted(g["lr"] for g in optimizer.param_groups)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


@holds("resuming")
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_a_state_that_was_saved_goes_on(name: str, options: dict[str, Any]) -> None:
    model, other = adapted(), adapted()
    optimizer = getattr(steprule, name)(model.parameters(), **options)
    train(model, optimizer, 1)
    peft.set_peft_model_state_dict(other, copy.deepcopy(peft.get_peft_model_state_dict(model)))
    resumed = getattr(steprule, name)(other.parameters(), **options)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    torch.testing.assert_close(train(other, resumed, 1, begin=6), train(model, optimizer, 1, begin=6), rtol=0, atol=0)
    assert resumed.steps_taken == 12
