"""torch.distributed.checkpoint keeps of a state dictionary only state and groups; what is loaded goes on as before."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from every_algorithm import ALGORITHMS, CLASSES, MOVING, ONLY_MATRICES
from torch import nn
from torch.distributed.checkpoint import load, save
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import steprule
from steprule.schedules import linear

RULES = [
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
@pytest.mark.parametrize(("name", "options"), RULES, ids=str)
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
@pytest.mark.parametrize(("name", "options"), RULES[:2], ids=str)
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


class Net(nn.Module):
    """Parameters of every shape that a rule may tell apart; a part of them for those that take only some."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        if name == "SparseAdam":
            self.table = nn.Embedding(5, 4, sparse=True)
            return
        self.matrix = nn.Linear(4, 6, bias=name not in ONLY_MATRICES)
        if name not in ONLY_MATRICES:
            self.table = nn.Embedding(5, 4)
            self.conv, self.scale = nn.Conv2d(2, 3, 2), nn.Parameter(torch.tensor(1.5))
        self.head = nn.Linear(2 if hasattr(self, "conv") else 6, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if hasattr(self, "table"):
            x = x + self.table(torch.arange(len(x)))
        if hasattr(self, "matrix"):
            x = torch.tanh(self.matrix(x))
        if hasattr(self, "conv"):
            x = self.scale * self.conv(x.reshape(-1, 2, 2, 3))
        if hasattr(self, "head"):
            x = self.head(x)
        return x.square().mean()


def fitted(net: nn.Module, optimizer: Any, steps: range) -> None:
    for seed in steps:
        x = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed))

        def closure(x: torch.Tensor = x) -> torch.Tensor:
            optimizer.zero_grad()
            loss: torch.Tensor = net(x)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        if isinstance(optimizer, steprule.LBFGS):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_goes_on_to_the_bit(name: str) -> None:
    def made() -> tuple[nn.Module, Any]:
        net = Net(name)
        return net, CLASSES[name](net, **MOVING.get(name, {}))

    # torch flattens no lists, and LBFGS keeps all state with its first parameter
    forms = [StateDictOptions(strict=name != "LBFGS")]
    forms += [] if name == "LBFGS" else [StateDictOptions(flatten_optimizer_state_dict=True)]
    net, optimizer = made()
    fitted(net, optimizer, range(2))
    saved = [copy.deepcopy(get_optimizer_state_dict(net, optimizer, options=form)) for form in forms]
    weights = copy.deepcopy(net.state_dict())
    fitted(net, optimizer, range(2, 3))
    for form, state in zip(forms, saved, strict=True):
        other, resumed = made()
        other.load_state_dict(weights)
        set_optimizer_state_dict(other, resumed, state, options=form)
        assert resumed.steps_taken == 2
        fitted(other, resumed, range(2, 3))
        assert all(map(torch.equal, other.parameters(), net.parameters()))


@pytest.mark.parametrize("name", ["LBFGS", "SparseAdam"])
def test_saving_before_the_first_step_is_no_step(name: str) -> None:
    net = Net(name)
    optimizer = CLASSES[name](net)
    before = copy.deepcopy(net.state_dict())
    get_optimizer_state_dict(net, optimizer)
    assert optimizer.steps_taken == 0
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
