"""The optimizer's methods with the numbers that the notes print, from seed 1."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from tensors import grad_of
from torch import Tensor

import steprule as optim

BEFORE = torch.tensor([[0.6614, 0.2669], [0.0617, 0.6213]])
AFTER = torch.tensor([[0.5614, 0.1669], [-0.0383, 0.5213]])
SECOND = torch.tensor([[-0.4519, -0.1661, -1.5228], [0.3817, -1.0276, -0.5631], [-0.8923, -0.0583, -0.1955]])
BUFFER = torch.full((2, 2), 6.5132)


def assert_prints_as(actual: Tensor, printed: Tensor) -> None:
    torch.testing.assert_close(actual.detach(), printed, rtol=0, atol=5.1e-5)


@pytest.fixture
def weight() -> Tensor:
    torch.manual_seed(1)
    weight = torch.randn((2, 2), requires_grad=True)
    weight.grad = torch.ones((2, 2))
    return weight


def test_what_an_optimizer_is_made_of(weight: Tensor) -> None:
    optimizer = optim.SGD([weight], lr=0.1, momentum=0.9)

    assert optimizer.defaults["lr"] == 0.1
    assert optimizer.defaults["momentum"] == 0.9
    assert len(optimizer.state) == 0
    assert optimizer.state[weight] == {}  # a defaultdict, as in torch
    [group] = optimizer.param_groups
    assert group["params"] == [weight]
    expected = {"lr": 0.1, "momentum": 0.9, "dampening": 0, "weight_decay": 0, "nesterov": False}
    assert {name: group[name] for name in expected} == expected


def test_zero_grad(weight: Tensor) -> None:
    optimizer = optim.SGD([weight], lr=0.1)
    (weight.sum() * 2).backward()
    assert torch.equal(grad_of(weight), torch.full((2, 2), 3.0))  # gradients add up until they are cleared

    optimizer.zero_grad(set_to_none=False)

    assert torch.equal(grad_of(weight), torch.zeros(2, 2))


def test_the_address_in_the_optimizer_is_the_address_of_the_weight(weight: Tensor) -> None:
    optimizer = optim.SGD([weight], lr=0.1)

    assert id(optimizer.param_groups[0]["params"][0]) == id(weight)


def test_step(weight: Tensor) -> None:
    optimizer = optim.SGD([weight], lr=0.1)
    assert_prints_as(weight, BEFORE)

    assert optimizer.step() is None

    assert_prints_as(weight, AFTER)
    assert torch.equal(grad_of(weight), torch.ones(2, 2))  # a step leaves the gradient as it is


def test_step_evaluates_a_closure_once_and_returns_its_value(weight: Tensor) -> None:
    optimizer = optim.SGD([weight], lr=0.1)
    evaluations = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = weight.sum()
        loss.backward()
        evaluations.append(loss)
        return loss

    with torch.no_grad():  # the closure has gradients all the same
        value = optimizer.step(closure)

    assert value is evaluations[0]
    assert len(evaluations) == 1
    assert value.item() == pytest.approx(BEFORE.sum().item(), abs=2e-4)
    assert_prints_as(weight, AFTER)


def test_add_param_group(weight: Tensor) -> None:
    optimizer = optim.SGD([weight], lr=0.1)
    second = torch.randn((3, 3), requires_grad=True)

    optimizer.add_param_group({"params": second, "lr": 0.0001})

    first_group, second_group = optimizer.param_groups
    assert_prints_as(first_group["params"][0], BEFORE)
    assert_prints_as(second_group["params"][0], SECOND)
    assert (first_group["lr"], second_group["lr"]) == (0.1, 0.0001)
    shared = {"dampening": 0, "nesterov": False, "weight_decay": 0, "momentum": 0}
    for group in optimizer.param_groups:
        assert {name: group[name] for name in shared} == shared


def test_state_dict_before_and_after_ten_steps(weight: Tensor) -> None:
    optimizer = optim.SGD([weight], lr=0.1, momentum=0.9)
    before = optimizer.state_dict()
    assert before["state"] == {}
    [group] = before["param_groups"]
    expected = {"lr": 0.1, "momentum": 0.9, "dampening": 0, "weight_decay": 0, "nesterov": False}
    assert {name: group[name] for name in expected} == expected
    [key] = group["params"]

    for _ in range(10):
        optimizer.step()

    after = optimizer.state_dict()
    assert list(after["state"]) == [key]
    assert list(after["state"][key]) == ["momentum_buffer"]
    assert_prints_as(after["state"][key]["momentum_buffer"], BUFFER)
    closed_form = (1 - 0.9**10) / (1 - 0.9)
    assert after["state"][key]["momentum_buffer"][0, 0].item() == pytest.approx(closed_form, rel=1e-6)


def test_load_state_dict(weight: Tensor, tmp_path: Path) -> None:
    optimizer = optim.SGD([weight], lr=0.1, momentum=0.9)
    for _ in range(10):
        optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer_state_dict.pkl")

    optimizer = optim.SGD([weight], lr=0.1, momentum=0.9)
    state_dict = torch.load(tmp_path / "optimizer_state_dict.pkl")
    assert optimizer.state_dict()["state"] == {}
    optimizer.load_state_dict(state_dict)

    [loaded] = optimizer.state_dict()["state"].values()
    assert_prints_as(loaded["momentum_buffer"], BUFFER)
    optimizer.step()
    assert_prints_as(optimizer.state[weight]["momentum_buffer"], 0.9 * BUFFER + 1)
    [saved] = state_dict["state"].values()
    assert_prints_as(saved["momentum_buffer"], BUFFER)  # loading copies


ADDRESS = 140186313140480


def test_a_state_dict_of_2019_whose_keys_are_addresses_loads(weight: Tensor) -> None:
    printed = {
        "state": {ADDRESS: {"momentum_buffer": BUFFER.clone()}},
        "param_groups": [
            {
                "params": [ADDRESS],
                "nesterov": False,
                "weight_decay": 0,
                "lr": 0.1,
                "dampening": 0,
                "momentum": 0.9,
            }
        ],
    }
    as_printed = copy.deepcopy(printed)
    optimizer = optim.SGD([weight], lr=0.5)

    optimizer.load_state_dict(printed)

    assert printed.keys() == as_printed.keys()
    assert printed["param_groups"] == as_printed["param_groups"]
    [group] = optimizer.param_groups
    assert (group["lr"], group["momentum"]) == (0.1, 0.9)
    assert_prints_as(optimizer.state[weight]["momentum_buffer"], BUFFER)
    optimizer.step()
    assert_prints_as(weight, BEFORE - 0.1 * (0.9 * BUFFER + 1))
