"""fastai: one cycle, clipping, accumulation, save and resume, through its OptimWrapper."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastai", reason="fastai is not installed: make clients installs it")

import torch
from client_task import OPTIMIZERS, assert_same, loader, net, weights
from fastai.callback.all import GradientAccumulation, GradientClip
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from torch.nn import CrossEntropyLoss

import steprule


def learner(optim: Any, name: str, options: dict[str, Any], folder: Path, *callbacks: Any) -> Any:
    made = partial(OptimWrapper, opt=getattr(optim, name), **{k: v for k, v in options.items() if k != "lr"})
    data = DataLoaders(loader(), loader())
    return Learner(
        data,
        net(),
        CrossEntropyLoss(),
        opt_func=made,
        lr=options["lr"],
        path=folder,
        cbs=[GradientClip(0.5), *callbacks],
    )


def fit(learn: Any) -> Any:
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(2, lr_max=0.02)
    return learn


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
@pytest.mark.parametrize("accumulate", [False, True])
def test_training_is_the_same(name: str, options: dict[str, Any], accumulate: bool, tmp_path: Path) -> None:
    def trained(optim: Any) -> Any:
        return fit(learner(optim, name, options, tmp_path, *([GradientAccumulation(64)] if accumulate else [])))

    ours, theirs = trained(steprule), trained(torch.optim)
    assert_same(weights(ours.model), weights(theirs.model))
    assert ours.opt.hypers[0]["lr"] == theirs.opt.hypers[0]["lr"]


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_a_state_that_was_saved_goes_on(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    first = fit(learner(steprule, name, options, tmp_path))
    first.save("half", with_opt=True)
    second = learner(steprule, name, options, tmp_path)
    second.load("half", with_opt=True)
    for learn in (first, second):
        x, y = next(iter(loader()))
        learn.model.zero_grad()
        CrossEntropyLoss()(learn.model(x), y).backward()
        learn.opt.step()
    assert_same(weights(second.model), weights(first.model), 0.0)
