"""skorch: clipping, schedulers, unnamed groups, save and resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

skorch = pytest.importorskip("skorch", reason="skorch is not installed: make clients installs it")

import torch
from client_task import BATCH, OPTIMIZERS, assert_same, digits, net, weights
from skorch.callbacks import GradientNormClipping, LRScheduler
from torch import nn
from torch.optim.lr_scheduler import StepLR

import steprule
from steprule import by_ndim


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Any) -> Any:
        return self.net(x)


def made(optim: Any, name: str, options: dict[str, Any], **how: Any) -> Any:
    callbacks = [GradientNormClipping(0.5), LRScheduler(StepLR, step_size=2, gamma=0.5, step_every="batch")]
    own = {f"optimizer__{key}": value for key, value in options.items()}
    return skorch.NeuralNetClassifier(
        Net, criterion=nn.CrossEntropyLoss, optimizer=getattr(optim, name), batch_size=BATCH, max_epochs=2, verbose=0,
        train_split=None, iterator_train__shuffle=False, callbacks=callbacks, **own, **how,
    )  # fmt: skip


def fitted(*args: Any, **how: Any) -> Any:
    x, y = digits()
    return made(*args, **how).fit(x.numpy(), y.numpy())


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_training_is_the_same(name: str, options: dict[str, Any]) -> None:
    ours, theirs = fitted(steprule, name, options), fitted(torch.optim, name, options)
    assert_same(weights(ours.module_), weights(theirs.module_))
    assert [g["lr"] for g in ours.optimizer_.param_groups] == [g["lr"] for g in theirs.optimizer_.param_groups]


def test_overrides_reach_parameters_without_names() -> None:
    overrides = {by_ndim(1): dict(weight_decay=0.0)}
    net = fitted(steprule, "AdamW", dict(lr=0.01, weight_decay=0.1), optimizer__overrides=overrides)
    assert {g["weight_decay"]: {p.ndim for p in g["params"]} for g in net.optimizer_.param_groups} == {
        0.1: {2},
        0.0: {1},
    }


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
