"""peft: only the adapters train, in bfloat16 and float16 with a scaler too; LoRA+ makes groups of its own."""

from __future__ import annotations

import copy
from typing import Any

import pytest

peft = pytest.importorskip("peft", reason="peft is not installed: make clients installs it")

import torch
from client_task import OPTIMIZERS, SCALE, Half, loader, net
from peft.optimizers import create_loraplus_optimizer
from torch.nn.functional import cross_entropy

import steprule


def adapted() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return peft.get_peft_model(net(), peft.LoraConfig(r=4, target_modules=["0", "2"], lora_dropout=0.0))


def train(model: Any, optimizer: Any, epochs: int = 2, half: Half | None = None) -> Any:
    half = half or Half("32")
    for _ in range(epochs):
        for x, y in loader():
            optimizer.zero_grad()
            with half.autocast():
                loss = cross_entropy(model(x), y)
            half.step(optimizer, loss, model.parameters())
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
@pytest.mark.parametrize("precision", ["32", "bf16", "fp16"])
def test_only_adapters_train_and_as_with_torch(name: str, options: dict[str, Any], precision: str) -> None:
    found, scales = [], []
    for optim in (steprule, torch.optim):
        model, half = adapted(), Half(precision)
        optimizer = getattr(optim, name)(model.parameters(), **options)
        found.append(train(model, optimizer, half=half))
        scales.append(half.scaler.get_scale())
    ours, theirs = found
    assert scales[0] == scales[1]
    assert precision != "fp16" or scales[0] < SCALE
    tolerance = 1e-5 if precision == "32" else 2e-2
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    before = dict(adapted().named_parameters())
    moved = {name for name in ours if not torch.equal(ours[name], before[name].detach())}
    assert moved == {name for name in ours if "lora_" in name}


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


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_a_state_that_was_saved_goes_on(name: str, options: dict[str, Any]) -> None:
    model, other = adapted(), adapted()
    optimizer = getattr(steprule, name)(model.parameters(), **options)
    train(model, optimizer, 1)
    peft.set_peft_model_state_dict(other, copy.deepcopy(peft.get_peft_model_state_dict(model)))
    resumed = getattr(steprule, name)(other.parameters(), **options)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    torch.testing.assert_close(train(other, resumed, 1), train(model, optimizer, 1), rtol=0, atol=0)
