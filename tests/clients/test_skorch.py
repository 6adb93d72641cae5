"""skorch: clipping, accumulation, schedulers, 16 bits through Accelerate, unnamed groups, save and resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

skorch = pytest.importorskip("skorch", reason="skorch is not installed: make clients installs it")
accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed: make clients installs it")

import torch
from client_task import BATCH, MUON, OPTIMIZERS, SCALE, assert_same, averages, digits, holds, net, scaling, weights
from skorch.callbacks import Callback, GradientNormClipping, LRScheduler
from skorch.hf import AccelerateMixin
from torch import nn
from torch.optim.lr_scheduler import StepLR

import steprule
from steprule import by_ndim


class Net(nn.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.net = net(bias)

    def forward(self, x: Any) -> Any:
        return self.net(x)


class Averaging(Callback):  # type: ignore[misc]
    def on_train_begin(self, net: Any, **_: Any) -> None:
        net.means = averages(getattr(net.optimizer_, "optimizer", net.optimizer_))


def made(optim: Any, name: str, options: dict[str, Any], kind: Any = skorch.NeuralNetClassifier, **how: Any) -> Any:
    callbacks = [
        GradientNormClipping(0.5),
        LRScheduler(StepLR, step_size=2, gamma=0.5, step_every="batch"),
        Averaging(),
    ]
    own = {f"optimizer__{key}": value for key, value in options.items()}
    return kind(
        Net, criterion=nn.CrossEntropyLoss, optimizer=getattr(optim, name), batch_size=BATCH, max_epochs=2, verbose=0,
        module__bias=name != "Muon", train_split=None, iterator_train__shuffle=False, callbacks=callbacks, **own, **how,
    )  # fmt: skip


class Accelerated(AccelerateMixin, skorch.NeuralNetClassifier):  # type: ignore[misc, name-defined]
    pass


def accelerated(optim: Any, name: str, options: dict[str, Any], precision: str, accumulate: int = 1) -> Any:
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    begun = "no" if precision == "fp16" else precision
    helper = accelerate.Accelerator(cpu=True, mixed_precision=begun, gradient_accumulation_steps=accumulate)
    helper = scaling(helper) if precision == "fp16" else helper
    x, y = digits()
    return made(optim, name, options, kind=Accelerated, accelerator=helper, device=None, unwrap_after_train=False).fit(
        x.numpy(), y.numpy()
    )


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
@pytest.mark.parametrize(
    "how",
    [
        pytest.param(dict(precision="no", accumulate=2), marks=holds("accumulation"), id="accumulating"),
        pytest.param(dict(precision="bf16"), marks=holds("bf16"), id="bf16"),
        pytest.param(dict(precision="fp16"), marks=holds("fp16"), id="fp16"),
    ],
)
def test_training_through_accelerate_is_the_same(name: str, options: dict[str, Any], how: dict[str, Any]) -> None:
    ours, theirs = accelerated(steprule, name, options, **how), accelerated(torch.optim, name, options, **how)
    tolerance = 1e-5 if how["precision"] == "no" else 2e-2
    assert_same(weights(ours.module_) + ours.means, weights(theirs.module_) + theirs.means, tolerance)
    rates = [[group["lr"] for group in net.optimizer_.param_groups] for net in (ours, theirs)]
    assert rates[0] == rates[1]
    if how["precision"] == "fp16":
        assert ours.accelerator.scaler.get_scale() == theirs.accelerator.scaler.get_scale() < SCALE
        assert ours.optimizer_.optimizer.steps_taken < 12


def fitted(*args: Any, **how: Any) -> Any:
    x, y = digits()
    return made(*args, **how).fit(x.numpy(), y.numpy())


@holds("clipping", "scheduler", "averages")
@pytest.mark.parametrize(("name", "options"), [*OPTIMIZERS, MUON])
def test_training_is_the_same(name: str, options: dict[str, Any]) -> None:
    ours, theirs = fitted(steprule, name, options), fitted(torch.optim, name, options)
    tolerance = 2e-2 if name == "Muon" else 1e-5
    assert_same(weights(ours.module_) + ours.means, weights(theirs.module_) + theirs.means, tolerance)
    assert [g["lr"] for g in ours.optimizer_.param_groups] == [g["lr"] for g in theirs.optimizer_.param_groups]


def test_overrides_reach_parameters_without_names() -> None:
    overrides = {by_ndim(1): dict(weight_decay=0.0)}
    net = fitted(steprule, "AdamW", dict(lr=0.01, weight_decay=0.1), optimizer__overrides=overrides)
    assert {g["weight_decay"]: {p.ndim for p in g["params"]} for g in net.optimizer_.param_groups} == {
        0.1: {2},
        0.0: {1},
    }


@holds("resuming")
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_a_state_that_was_saved_goes_on(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    x, y = (part.numpy() for part in digits())
    first = fitted(steprule, name, options)
    first.save_params(f_params=tmp_path / "p.pt", f_optimizer=tmp_path / "o.pt")
    second = made(steprule, name, options).initialize()
    second.load_params(f_params=tmp_path / "p.pt", f_optimizer=tmp_path / "o.pt")
    assert second.optimizer_.steps_taken == 12
    for net_ in (first, second):
        net_.callbacks_ = [c for c in net_.callbacks_ if "LRScheduler" not in c[0]]
        for start in range(0, len(x), BATCH):
            net_.train_step((torch.tensor(x[start : start + BATCH]), torch.tensor(y[start : start + BATCH])))
    assert_same(weights(second.module_), weights(first.module_), 0.0)
