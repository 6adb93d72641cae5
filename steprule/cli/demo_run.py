"""A run of the demo: its model, its optimizer and its history, at the start or out of a checkpoint."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import steprule
from steprule.checkpoint import CheckpointError, load, save
from steprule.grouping.overrides import scale
from steprule.schedules import exponential

from .console import fail
from .digits import STEPS, Digits, LeNet, build_model

SGD_OPTIONS = {"lr": 0.02, "momentum": 0.9, "nesterov": True}  # other algorithms: their own defaults
CLASSIFIER_RATE = 2.0  # times the rate of the features
WEIGHT_DECAY = 1e-3  # of the classifier's weights, and of nothing else
FALL = 0.8  # what is left of every rate after an epoch


@dataclass(frozen=True)
class DemoSettings:
    """What decides the weights that a run ends with."""

    optimizer: str
    seed: int
    epochs: int


@dataclass
class History:
    """Loss of each step, rates of each group at each step, held-out digits right after each epoch."""

    loss: list[float] = field(default_factory=list)
    rates: list[list[float]] = field(default_factory=list)
    right: list[int] = field(default_factory=list)


@dataclass
class DemoRun:
    """Everything that a checkpoint holds."""

    settings: DemoSettings
    model: LeNet
    optimizer: steprule.Optimizer
    history: History

    def save(self, path: Path) -> None:
        extra: dict[str, Any] = {"settings": asdict(self.settings), "history": asdict(self.history)}
        save(path, self.optimizer, self.model, **extra)


def algorithm(name: str) -> type[steprule.Optimizer]:
    """The algorithm of that name, in upper or lower case."""
    algorithms = {
        value.__name__.lower(): value
        for value in vars(steprule).values()
        if inspect.isclass(value) and issubclass(value, steprule.Optimizer) and value is not steprule.Optimizer
    }
    if name.lower() not in algorithms:
        known = ", ".join(sorted(kind.__name__ for kind in algorithms.values()))
        fail(f"there is no optimizer {name!r}; there are {known}")
    return algorithms[name.lower()]


def new_run(settings: DemoSettings, device: torch.device) -> DemoRun:
    """A run at its start: the classifier has a rate of its own, and only its weights decay."""
    kind = algorithm(settings.optimizer)
    model = build_model(settings.seed, device)
    accepted = inspect.signature(kind).parameters
    options: dict[str, Any] = dict(SGD_OPTIONS) if kind is steprule.SGD else {"lr": accepted["lr"].default}
    options["lr"] *= exponential(FALL ** (1 / STEPS))
    overrides: dict[str, dict[str, Any]] = {"classifier.*": {"lr": scale(CLASSIFIER_RATE)}}
    if "weight_decay" in accepted:
        options["weight_decay"] = 0.0
        overrides["classifier.*.weight"] = {"weight_decay": WEIGHT_DECAY}
    try:
        optimizer = kind(model, overrides=overrides, **options)
    except (TypeError, ValueError) as error:
        fail(f"{kind.__name__} does not fit this model: {error}")
    return DemoRun(settings, model, optimizer, History(rates=[[] for _ in optimizer.param_groups]))


def check_fits(settings: DemoSettings, batch: Digits) -> None:
    """Refuse an algorithm that cannot train this model, with a step that nothing keeps."""
    trial = new_run(settings, batch.images.device)
    try:
        train_step(trial, batch)
    except RuntimeError as error:
        fail(f"{settings.optimizer} does not fit this model: {error}")


def resumed_run(checkpoint: Path, given: Mapping[str, Any], device: torch.device) -> DemoRun:
    """The run that a checkpoint holds, where it was."""
    try:
        extra = load(checkpoint, None)
        settings, history = DemoSettings(**extra["settings"]), History(**extra["history"])
    except (CheckpointError, OSError) as error:
        fail(str(error))
    except (KeyError, TypeError):
        fail(f"{checkpoint} is not a checkpoint of the demo")
    for name in ("optimizer", "seed"):
        saved = getattr(settings, name)
        if given.get(name, saved) != saved:
            fail(f"{checkpoint} is of a run with --{name} {saved}; resume it with that, or without --{name}")
    done = len(history.right)
    if given.get("epochs", done) < done:
        fail(f"{checkpoint} is of a run after {done} epochs; resume it with --epochs {done} or more")
    run = new_run(replace(settings, epochs=given.get("epochs", settings.epochs)), device)
    run.history = history
    try:
        load(checkpoint, run.optimizer, run.model)
    except CheckpointError as error:
        fail(str(error))
    return run


def train_step(run: DemoRun, batch: Digits) -> float:
    """One step; its loss and the rates that it was taken with go into the history."""

    def closure() -> Tensor:
        run.optimizer.zero_grad()
        loss = cross_entropy(run.model(batch.images), batch.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    loss: float = run.optimizer.step(closure).item()
    run.history.loss.append(loss)
    for rates, group in zip(run.history.rates, run.optimizer.param_groups, strict=True):
        rates.append(group["lr"])
    return loss
