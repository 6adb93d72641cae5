"""Loading happens whole or not at all, whatever raises, and keeps what people hold on to."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import same
from torch import nn
from training import train

import steprule
from steprule.checkpoint import CheckpointError, load, save
from steprule.schedules import cosine, plateau


class Counting(nn.Module):
    """A layer with state that is no tensor, and which refuses it on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.calls, self.seen, self.refuses = 0, {"calls": 0}, False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.seen["calls"] = self.calls
        return self.last(self.norm(self.first(x)))

    def get_extra_state(self) -> dict[str, Any]:
        return {"calls": self.calls, "seen": dict(self.seen)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.calls = state["calls"]
        self.seen.update(state["seen"])
        if self.refuses:
            self.refuses = False
            raise RuntimeError("no")


class Run:
    def __init__(self, seed: int, lr: Any, cls: Any = steprule.AdamW, **hyper: Any) -> None:
        torch.manual_seed(seed)
        self.model = Counting()
        self.optimizer = cls(self.model.named_parameters(), lr=lr, **hyper)
        for _ in range(seed):
            self.step()

    def step(self) -> None:
        train(self.model, self.optimizer, [torch.arange(15.0).view(5, 3)])

    def content(self) -> Any:
        plain = {k: v for k, v in vars(self.optimizer).items() if k in ("_steps", "_scheduled")}
        return copy.deepcopy(
            (self.model.state_dict(), self.optimizer.state_dict(), torch.get_rng_state(), plain, self.model.seen)
        )


def raising(error: BaseException) -> Callable[..., None]:
    def hook(*_: object) -> None:
        raise error

    return hook


def refuse_extra_state(run: Run) -> None:
    run.model.refuses = True


def refuse_after_the_model(run: Run) -> None:
    run.model.register_load_state_dict_post_hook(raising(KeyError("after the model")))


def refuse_before_a_layer(run: Run) -> None:
    run.model.last._register_load_state_dict_pre_hook(raising(ZeroDivisionError("before a layer")))


def refuse_after_the_optimizer(run: Run) -> None:
    def hook(optimizer: torch.optim.Optimizer) -> None:
        optimizer.param_groups[0]["lr"] = 9.0
        optimizer.param_groups[0]["more"] = 1
        optimizer.state.clear()
        optimizer.param_groups.append({})
        raise ValueError("after the optimizer")

    run.optimizer.register_load_state_dict_post_hook(hook)


def refuse_before_the_optimizer(run: Run) -> None:
    run.optimizer.register_load_state_dict_pre_hook(raising(AttributeError("before the optimizer")))


def overlap(run: Run) -> None:
    run.model.norm.running_mean = torch.zeros(1).expand(4)


REFUSALS = [
    refuse_extra_state,
    refuse_after_the_model,
    refuse_before_a_layer,
    refuse_after_the_optimizer,
    refuse_before_the_optimizer,
    overlap,
]


@pytest.mark.parametrize("cls", [steprule.AdamW, torch.optim.AdamW])
@pytest.mark.parametrize("refuse", REFUSALS)
def test_whatever_raises_everything_goes_back(tmp_path: Path, refuse: Callable[[Run], None], cls: Any) -> None:
    saved = Run(3, 0.5, cls)
    save(tmp_path / "run", saved.optimizer, saved.model, rng=True)
    run = Run(1, 0.01, cls)
    refuse(run)
    before, groups = run.content(), [id(group) for group in run.optimizer.param_groups]
    with pytest.raises(CheckpointError, match=str(tmp_path / "run")) as error:
        load(tmp_path / "run", run.optimizer, run.model)
    assert error.value.__cause__ is not None
    assert same(run.content(), before)
    assert [id(group) for group in run.optimizer.param_groups] == groups
    if refuse is not overlap:
        twin = Run(1, 0.01, cls)
        run.step()
        twin.step()
        assert same(run.content()[:2], twin.content()[:2])


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_an_interrupt_puts_everything_back_and_goes_on_as_it_is(tmp_path: Path, error: BaseException) -> None:
    saved = Run(3, 0.5)
    save(tmp_path / "run", saved.optimizer, saved.model)
    run = Run(1, 0.01)
    run.optimizer.register_load_state_dict_post_hook(raising(error))
    before = run.content()
    with pytest.raises(type(error)):
        load(tmp_path / "run", run.optimizer, run.model)
    assert same(run.content(), before)


def test_schedules_and_what_plateaus_saw_go_back_too() -> None:
    rate = 0.1 * plateau(factor=0.5, patience=0)
    first = Run(2, rate)
    for loss in (1.0, 2.0, 3.0):
        first.optimizer.report_metric(loss)
    mine = 0.1 * plateau(factor=0.5, patience=0)
    run = Run(1, mine)
    run.optimizer.register_load_state_dict_post_hook(raising(ValueError("no")))
    before = run.content()
    with pytest.raises(ValueError, match=r"^no$"):
        run.optimizer.load_state_dict(first.optimizer.state_dict())
    assert mine(0) == 0.1
    assert same(run.content(), before)
    assert run.optimizer.param_groups[0]["schedules"]["lr"] is mine


def test_weights_that_a_lazy_layer_got_go_away_again(tmp_path: Path) -> None:
    whole = nn.Sequential(nn.Linear(3, 2))
    save(tmp_path / "run", None, whole)
    lazy = nn.Sequential(nn.LazyLinear(2))
    lazy.register_load_state_dict_post_hook(raising(ValueError("no")))
    with pytest.raises(CheckpointError, match="no"):
        load(tmp_path / "run", None, lazy)
    assert isinstance(lazy[0].weight, nn.UninitializedParameter)
    assert lazy(torch.zeros(5, 7)).shape == (5, 2)


def test_a_warning_that_is_an_error_leaves_everything_as_it_was(tmp_path: Path) -> None:
    saved = Run(3, 0.5 * cosine(10))
    save(tmp_path / "run", saved.optimizer, saved.model)
    run = Run(1, 0.01 * cosine(10))
    before = run.content()
    with pytest.raises(UserWarning, match="lr of group 0 is"):
        load(tmp_path / "run", run.optimizer, run.model)
    with pytest.raises(UserWarning, match="lr of group 0 is"):
        run.optimizer.load_state_dict(saved.optimizer.state_dict())
    assert same(run.content(), before)


@pytest.mark.parametrize("cls", [steprule.AdamW, torch.optim.AdamW])
def test_group_dictionaries_stay_the_same_objects(tmp_path: Path, cls: Any) -> None:
    saved = Run(3, 0.5, cls)
    save(tmp_path / "run", saved.optimizer, saved.model)
    run = Run(1, 0.01, cls)
    groups = run.optimizer.param_groups
    group, keys = groups[0], list(groups[0])
    load(tmp_path / "run", run.optimizer, run.model)
    assert run.optimizer.param_groups is groups
    assert run.optimizer.param_groups[0] is group
    assert group["lr"] == 0.5
    assert list(group) == keys
    group["lr"] = 0.0
    weights = copy.deepcopy(run.model.first.weight)
    run.step()
    assert torch.equal(run.model.first.weight, weights)  # the group that somebody holds is the one that is stepped


def test_a_scheduler_of_torch_made_before_loading_goes_on_with_the_loaded_rate() -> None:
    saved = Run(3, 0.5)
    run = Run(1, 0.01)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(run.optimizer, 0.5)
    run.optimizer.load_state_dict(saved.optimizer.state_dict())
    run.step()
    scheduler.step()
    assert run.optimizer.param_groups[0]["lr"] == 0.25
