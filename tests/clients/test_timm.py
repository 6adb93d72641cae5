"""timm: its groups without decay, its schedulers, its scaler, its EMA and its Lookahead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("timm", reason="timm is not installed: make clients installs it")

import timm.models
import timm.optim
import timm.scheduler
import timm.utils
import torch
from client_task import MUON, OPTIMIZERS, WAYS, Half, assert_same, holds, loader, net, weights
from torch.nn.functional import cross_entropy

import steprule


def train(
    optim: Any,
    name: str,
    options: dict[str, Any],
    folder: Path | None = None,
    precision: str = "32",
    accumulate: int = 1,
) -> dict[str, Any]:
    model = net(bias=name != "Muon")

    def made() -> tuple[Any, Any]:
        groups = timm.optim.param_groups_weight_decay(model, options["weight_decay"])
        optimizer = getattr(optim, name)(groups, **{k: v for k, v in options.items() if k != "weight_decay"})
        return optimizer, timm.scheduler.CosineLRScheduler(optimizer, t_initial=3, lr_min=1e-4, warmup_t=1)

    optimizer, scheduler = made()
    scaler, ema = timm.utils.NativeScaler("cpu"), timm.utils.ModelEmaV3(model, decay=0.9)
    half = Half(precision)
    scaler._scaler = half.scaler
    rates = []
    for epoch in range(3):
        for i, (x, y) in enumerate(loader()):
            due = (i + 1) % accumulate == 0
            with half.autocast():
                loss = cross_entropy(model(x), y) / accumulate
            if precision != "bf16":
                scaler(loss, optimizer, clip_grad=0.5, parameters=model.parameters(), need_update=due)
            else:
                loss.backward()
                timm.utils.dispatch_clip_grad(model.parameters(), 0.5)
                optimizer.step()
            if due:
                optimizer.zero_grad()
                ema.update(model)
        scheduler.step(epoch + 1)
        rates.append([group["lr"] for group in optimizer.param_groups])
        if folder is not None and epoch == 0:
            timm.utils.CheckpointSaver(model, optimizer, checkpoint_dir=str(folder)).save_checkpoint(epoch)
            kept = scheduler.state_dict()
            optimizer, scheduler = made()
            for p in model.parameters():
                p.data.zero_()
            assert timm.models.resume_checkpoint(model, str(folder / "last.pth.tar"), optimizer) == 1
            scheduler.load_state_dict(kept)
    found = weights(model) + weights(ema.module)
    return {"weights": found, "rates": rates, "scale": scaler._scaler.get_scale(), "optimizer": optimizer}


@holds("clipping", "scheduler", "averages")
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
@pytest.mark.parametrize("how", WAYS)
def test_training_is_the_same(name: str, options: dict[str, Any], how: dict[str, Any]) -> None:
    ours, theirs = (train(optim, name, options, **how) for optim in (steprule, torch.optim))
    assert ours["rates"] == theirs["rates"]
    assert ours["scale"] == theirs["scale"]
    assert_same(ours["weights"], theirs["weights"], 2e-2 if "precision" in how else 1e-5)
    assert (ours["optimizer"].steps_taken < 18 // how.get("accumulate", 1)) == (how.get("precision") == "fp16")


@pytest.mark.parametrize(("name", "options"), [MUON])
def test_training_of_matrices_is_the_same(name: str, options: dict[str, Any]) -> None:
    ours, theirs = (train(optim, name, options) for optim in (steprule, torch.optim))
    assert_same(ours["weights"], theirs["weights"], 2e-2)


@holds("resuming")
@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_a_checkpoint_goes_on(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    again, whole = train(steprule, name, options, folder=tmp_path), train(steprule, name, options)
    assert_same(again["weights"], whole["weights"], 0.0)
    assert again["rates"] == whole["rates"]


def test_lookahead_goes_round_an_optimizer() -> None:
    found = []
    for optim in (steprule, torch.optim):
        model = net()
        optimizer = timm.optim.Lookahead(optim.AdamW(model.parameters(), lr=0.01), k=3)
        for x, y in loader():
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
        found.append(weights(model))
    ours, theirs = found
    assert_same(ours, theirs)


def test_lamb_is_timms() -> None:
    found = []
    for kind in (steprule.Lamb, timm.optim.Lamb):
        model = net()
        options: dict[str, Any] = dict(max_grad_norm=None) if kind is timm.optim.Lamb else {}
        optimizer = kind(model.parameters(), lr=0.01, weight_decay=0.1, eps=1e-6, **options)
        for x, y in loader():
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
        found.append(weights(model))
    ours, theirs = found
    assert_same(ours, theirs, 1e-4)
