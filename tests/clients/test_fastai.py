"""fastai's OptimWrapper: one cycle, clipping, accumulation, bfloat16, float16 with a scaler, save and resume."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastai", reason="fastai is not installed: make clients installs it")

import torch
from client_task import MUON, OPTIMIZERS, Half, assert_same, averages, holds, loader, net, weights
from fastai.callback.all import GradientAccumulation, GradientClip
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from torch.nn import CrossEntropyLoss

import steprule


class Averaging(Callback):  # type: ignore[misc]
    def before_fit(self) -> None:
        self.learn.means = averages(self.opt.opt)


def found(learn: Any) -> list[torch.Tensor]:
    return weights(learn.model) + list(learn.means)


def learner(optim: Any, name: str, options: dict[str, Any], folder: Path, *callbacks: Any) -> Any:
    made = partial(OptimWrapper, opt=getattr(optim, name), **{k: v for k, v in options.items() if k != "lr"})
    data = DataLoaders(loader(), loader())
    return Learner(
        data,
        net(bias=name != "Muon"),
        CrossEntropyLoss(),
        opt_func=made,
        lr=options["lr"],
        path=folder,
        cbs=[GradientClip(0.5), Averaging(), *callbacks],
    )


def fit(learn: Any) -> Any:
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(2, lr_max=0.02)
    return learn


@holds("clipping", "scheduler", "averages")
@pytest.mark.parametrize(
    ("name", "options", "accumulate"),
    [
        *((*chosen, False) for chosen in [*OPTIMIZERS, MUON]),
        *(pytest.param(*chosen, True, marks=holds("accumulation")) for chosen in OPTIMIZERS),
    ],
)
def test_training_is_the_same(name: str, options: dict[str, Any], accumulate: bool, tmp_path: Path) -> None:
    def trained(optim: Any) -> Any:
        return fit(learner(optim, name, options, tmp_path, *([GradientAccumulation(64)] if accumulate else [])))

    ours, theirs = trained(steprule), trained(torch.optim)
    assert_same(found(ours), found(theirs), 2e-2 if name == "Muon" else 1e-5)
    assert ours.opt.hypers[0]["lr"] == theirs.opt.hypers[0]["lr"]


class OnCPU(MixedPrecision):  # type: ignore[misc]
    """fastai's callback with autocast and scaler of the CPU, where its own are a GPU's."""

    def before_fit(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # there is no GPU
            super().before_fit()
        self.half = Half(self.amp_mode.value)
        self.autocast, self.learn.scaler = self.half.autocast(), self.half.scaler

    def after_batch(self) -> None:
        if self.training:
            self.learn.scale, self.learn.steps = self.half.scaler.get_scale(), len(self.scales)


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
@pytest.mark.parametrize("precision", [pytest.param(kind, marks=holds(kind)) for kind in ("bf16", "fp16")])
def test_training_in_16_bits_is_the_same(name: str, options: dict[str, Any], precision: str, tmp_path: Path) -> None:
    ours, theirs = (
        fit(learner(optim, name, options, tmp_path, OnCPU(amp_mode=precision))) for optim in (steprule, torch.optim)
    )
    assert ours.scale == theirs.scale
    assert ours.steps == theirs.steps == ours.opt.opt.steps_taken
    assert (ours.steps < 12) == (precision == "fp16")
    assert_same(found(ours), found(theirs), 2e-2)


@holds("resuming")
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
