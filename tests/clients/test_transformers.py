"""transformers' Trainer: clipping, accumulation, bfloat16, float16 with a scaler, schedulers, save and resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

transformers = pytest.importorskip("transformers", reason="transformers is not installed: make clients installs it")
pytest.importorskip("accelerate", reason="accelerate is not installed: make clients installs it")

import torch
from accelerate.state import AcceleratorState
from client_task import BATCH, MUON, OPTIMIZERS, SCALE, assert_same, averages, digits, holds, net, scaling, weights
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import StepLR

import steprule
from steprule.schedules import Native, cosine


class Scores(nn.Module):
    """A model in the form that the Trainer expects."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.net = net(bias)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        scores = self.net(x)
        return {"loss": cross_entropy(scores.float(), labels), "logits": scores}


class Rates(transformers.TrainerCallback):  # type: ignore[name-defined, misc]
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


def train(
    make: Any, folder: Path, resume: Path | None = None, scaled: bool = False, bias: bool = True, **how: Any
) -> tuple[list[Tensor], list[float], Any]:
    x, y = digits()
    AcceleratorState._reset_state(reset_partial_state=True)
    arguments = transformers.TrainingArguments(
        str(folder), per_device_train_batch_size=BATCH, use_cpu=True, report_to=[], disable_tqdm=True, seed=3,
        **{"max_grad_norm": 0.5, "num_train_epochs": 2, "save_strategy": "no", "logging_strategy": "no", **how},
    )  # fmt: skip
    model, rates = Scores(bias), Rates()
    data = [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]
    made = make(model)
    means = averages(made[0])
    trainer = transformers.Trainer(model, arguments, train_dataset=data, optimizers=made, callbacks=[rates])
    if scaled:
        scaling(trainer.accelerator)  # fp16=True is refused without a GPU
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return weights(model.net) + (means if resume is None else []), rates.seen, trainer


def stepped(optim: Any, name: str, options: dict[str, Any]) -> Any:
    def make(model: nn.Module) -> Any:
        optimizer = getattr(optim, name)(model.parameters(), **options)
        return optimizer, StepLR(optimizer, 2, gamma=0.5)

    return make


@holds("clipping", "scheduler", "averages")
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
@pytest.mark.parametrize(
    "how",
    [
        pytest.param(dict(), id="plainly"),
        pytest.param(dict(gradient_accumulation_steps=2), marks=holds("accumulation"), id="accumulating"),
        pytest.param(dict(bf16=True), marks=holds("bf16"), id="bf16"),
        pytest.param(dict(scaled=True), marks=holds("fp16"), id="fp16"),
    ],
)
def test_training_is_the_same(name: str, options: dict[str, Any], how: dict[str, Any], tmp_path: Path) -> None:
    ours, our_rates, trainer = train(stepped(steprule, name, options), tmp_path / "ours", **how)
    theirs, their_rates, other = train(stepped(torch.optim, name, options), tmp_path / "theirs", **how)
    assert our_rates == their_rates
    assert_same(ours, theirs, 2e-2 if "bf16" in how or "scaled" in how else 1e-5)
    if "scaled" in how:
        assert trainer.accelerator.scaler.get_scale() == other.accelerator.scaler.get_scale() < SCALE
        assert trainer.optimizer.optimizer.steps_taken < 12


@pytest.mark.parametrize(("name", "options"), [MUON])
def test_training_of_matrices_is_the_same(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    ours, theirs = (train(stepped(o, name, options), tmp_path, bias=False)[0] for o in (steprule, torch.optim))
    assert_same(ours, theirs, 2e-2)


@holds("resuming")
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_a_checkpoint_goes_on(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    whole, rates, _ = train(stepped(steprule, name, options), tmp_path / "whole", save_strategy="steps", save_steps=6)
    rest, later, trainer = train(stepped(steprule, name, options), tmp_path / "rest", tmp_path / "whole/checkpoint-6")
    assert_same(rest, whole[: len(rest)], 0.0)
    assert later == rates[6:]
    assert trainer.optimizer.optimizer.steps_taken == 12


def test_a_schedule_of_ours_beside_native(tmp_path: Path) -> None:
    def make(model: nn.Module) -> Any:
        optimizer = steprule.AdamW(model, lr=0.01 * cosine(12))
        return optimizer, Native(optimizer)

    _, rates, _ = train(make, tmp_path)
    assert rates == [0.01 * cosine(12)(step) for step in range(12)]
