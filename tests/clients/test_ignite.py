"""pytorch-ignite: clipping by a hook, accumulation, bfloat16, float16 with a scaler, schedulers, EMA, checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

ignite = pytest.importorskip("ignite", reason="pytorch-ignite is not installed: make clients installs it")

import torch
from client_task import MUON, OPTIMIZERS, Half, assert_same, holds, loader, net, weights
from ignite.engine import Events, create_supervised_trainer
from ignite.handlers import Checkpoint, DiskSaver, EMAHandler, LRScheduler
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import StepLR

import steprule
from steprule.schedules import Native, cosine


def clip(model: Any) -> None:
    clip_grad_norm_(model.parameters(), 0.5)


def train(optim: Any, name: str, options: dict[str, Any], folder: Path | None = None, **how: Any) -> dict[str, Any]:
    model = net(bias=name != "Muon")
    optimizer = getattr(optim, name)(model.parameters(), **options)
    optimizer.register_step_pre_hook(lambda *_: clip(model))
    trainer = create_supervised_trainer(model, optimizer, cross_entropy, **how)
    scheduler = LRScheduler(StepLR(optimizer, 3, gamma=0.5))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, scheduler)
    ema = EMAHandler(model, momentum=0.1)
    ema.attach(trainer, event=Events.ITERATION_COMPLETED)
    rates: list[float] = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: rates.append(optimizer.param_groups[0]["lr"]))
    if folder is not None:

        def reload(engine: Any) -> None:
            objects = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
            handler = Checkpoint(objects, DiskSaver(folder))
            handler(engine)
            optimizer.state.clear()
            for p in model.parameters():
                p.data.zero_()
            Checkpoint.load_objects(objects, folder / handler.last_checkpoint)

        trainer.add_event_handler(Events.EPOCH_COMPLETED(once=1), reload)
    trainer.run(loader(), max_epochs=2)
    return {"weights": weights(model) + weights(ema.ema_model), "rates": rates, "optimizer": optimizer}


@holds("clipping", "scheduler", "averages")
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
@pytest.mark.parametrize(
    "how",
    [dict(), pytest.param(dict(gradient_accumulation_steps=2), marks=holds("accumulation"))],
    ids=["plainly", "accumulating"],
)
def test_training_is_the_same(name: str, options: dict[str, Any], how: dict[str, Any]) -> None:
    ours, theirs = train(steprule, name, options, **how), train(torch.optim, name, options, **how)
    assert ours["rates"] == theirs["rates"]
    assert_same(ours["weights"], theirs["weights"])


def within(half: Half) -> Any:
    """How a model is called in 16 bits: ignite's own autocast is for a GPU."""

    def call(model: Any, x: Any) -> Any:
        with half.autocast():
            return model(x).float()

    return call


@pytest.mark.parametrize(("name", "options"), [MUON])
def test_training_of_matrices_is_the_same(name: str, options: dict[str, Any]) -> None:
    ours, theirs = train(steprule, name, options), train(torch.optim, name, options)
    assert_same(ours["weights"], theirs["weights"], 2e-2)


@holds("bf16")
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_training_in_bfloat16_is_the_same(name: str, options: dict[str, Any]) -> None:
    how = dict(model_fn=within(Half("bf16")), gradient_accumulation_steps=2)
    ours, theirs = train(steprule, name, options, **how), train(torch.optim, name, options, **how)
    assert_same(ours["weights"], theirs["weights"], 2e-2)


@holds("fp16")
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_a_scaler_skips_the_same_steps(name: str, options: dict[str, Any]) -> None:
    found = []
    for optim in (steprule, torch.optim):
        half = Half("fp16")
        how = dict(amp_mode="amp", scaler=half.scaler, model_fn=within(half))
        found.append(train(optim, name, options, **how) | {"scale": half.scaler.get_scale()})
    ours, theirs = found
    assert ours["scale"] == theirs["scale"]
    assert ours["optimizer"].steps_taken < 12
    assert_same(ours["weights"], theirs["weights"], 2e-2)


@holds("resuming")
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_a_checkpoint_goes_on(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    again, whole = train(steprule, name, options, tmp_path), train(steprule, name, options)
    assert_same(again["weights"], whole["weights"], 0.0)
    assert again["rates"] == whole["rates"]
    assert again["optimizer"].steps_taken == 12


def test_a_schedule_of_ours_beside_native() -> None:
    model = net()
    optimizer = steprule.AdamW(model, lr=0.01 * cosine(6))
    trainer = create_supervised_trainer(model, optimizer, cross_entropy)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, LRScheduler(Native(optimizer)))
    trainer.run(loader(), max_epochs=1)
    assert optimizer.steps_taken == 6
    assert optimizer.param_groups[0]["lr"] == 0.01 * cosine(6)(5)
