"""torch.distributed.checkpoint keeps of a state dictionary only state and groups; what is loaded goes on as before."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint import load, save
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import steprule
from steprule.schedules import linear

ALGORITHMS = [
    ("SGD", {}),
    ("SGD", dict(momentum=0.9)),
    ("SGD", dict(lr=0.1 * linear(10))),
    ("Lion", {}),
    ("AdamW", {}),
    ("Muon", {}),
]


def made(name: str, options: dict[str, Any]) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False))
    return model, getattr(steprule, name)(model, **{"lr": 0.1, **options})


def trained(model: nn.Module, optimizer: Any, steps: int) -> None:
    for _ in range(steps):
        model(torch.ones(3, 2)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(("name", "options"), ALGORITHMS, ids=str)
def test_the_count_of_steps_travels(name: str, options: dict[str, Any], flat: bool) -> None:
    how = StateDictOptions(flatten_optimizer_state_dict=flat)
    model, optimizer = made(name, options)
    trained(model, optimizer, 3)
    for _ in range(2):
        saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=how))
    assert optimizer.steps_taken == 3
    other, resumed = made(name, options)
    other.load_state_dict(model.state_dict())
    set_optimizer_state_dict(other, resumed, saved, options=how)
    assert resumed.steps_taken == 3
    trained(model, optimizer, 2)
    trained(other, resumed, 2)
    assert resumed.steps_taken == 5
    assert all(map(torch.equal, other.parameters(), model.parameters()))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize(("name", "options"), ALGORITHMS[:2], ids=str)
def test_it_travels_through_files(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    model, optimizer = made(name, options)
    trained(model, optimizer, 3)
    save({"optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=tmp_path, no_dist=True)
    other, resumed = made(name, options)
    state = {"optimizer": get_optimizer_state_dict(other, resumed)}
    load(state, checkpoint_id=tmp_path, no_dist=True)
    set_optimizer_state_dict(other, resumed, state["optimizer"])
    assert resumed.steps_taken == 3


def test_it_travels_through_an_optimizer_of_torch() -> None:
    model, optimizer = made("SGD", {})
    trained(model, optimizer, 3)
    theirs = torch.optim.SGD(model.parameters(), lr=0.1)
    theirs.load_state_dict(optimizer.state_dict())
    resumed = made("SGD", {})[1]
    resumed.load_state_dict(theirs.state_dict())
    assert resumed.steps_taken == 3


def test_a_step_that_changes_something_counts_however_it_is_called() -> None:
    weight = torch.ones(2, requires_grad=True)
    optimizer = steprule.SGD([weight], lr=0.0)
    for gradient in (1.0, 0.0):
        weight.grad = torch.full((2,), gradient)
        optimizer.step(closure=None)
        optimizer.step()
    assert optimizer.steps_taken == 3
