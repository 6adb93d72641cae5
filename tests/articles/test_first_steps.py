"""The optimizer's five methods, one at a time, on a single weight of 2x2 (the lecture, first part)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import steprule as optim


def weight_of_ones_gradient() -> Tensor:
    """The lecture's weight: the first four normal numbers of seed 1, with a gradient of ones."""
    torch.manual_seed(1)
    weight = torch.randn((2, 2), requires_grad=True)
    weight.grad = torch.ones((2, 2))
    return weight


@pytest.mark.parametrize(("lr", "after"), [(1.0, -0.3386), (0.1, 0.5614)])
def test_a_step_subtracts_the_rate_times_the_gradient(lr: float, after: float) -> None:
    weight = weight_of_ones_gradient()
    before = weight.detach().clone()
    assert before[0, 0].item() == pytest.approx(0.6614, abs=5e-5)

    optim.SGD([weight], lr=lr).step()

    assert weight[0, 0].item() == pytest.approx(after, abs=5e-5)
    torch.testing.assert_close(weight.detach(), before - lr, rtol=0, atol=1e-7)


def test_zero_grad_leaves_none_or_on_request_zeros() -> None:
    weight = weight_of_ones_gradient()
    optimizer = optim.SGD([weight], lr=0.1)
    gradient = weight.grad

    optimizer.zero_grad(set_to_none=False)
    assert gradient is not None
    assert weight.grad is gradient
    assert torch.equal(gradient, torch.zeros(2, 2))

    optimizer.zero_grad()
    assert weight.grad is None


def test_the_optimizer_holds_the_weight_itself() -> None:
    weight = weight_of_ones_gradient()
    optimizer = optim.SGD([weight], lr=0.1)
    held = optimizer.param_groups[0]["params"][0]

    optimizer.step()

    assert held is weight
    assert held.data_ptr() == weight.data_ptr()


def test_a_second_group_has_its_own_rate() -> None:
    weight = weight_of_ones_gradient()
    optimizer = optim.SGD([weight], lr=0.1)
    second = torch.randn((3, 3), requires_grad=True)
    second.grad = torch.ones((3, 3))
    before = [tensor.detach().clone() for tensor in (weight, second)]
    assert len(optimizer.param_groups) == 1

    optimizer.add_param_group({"params": second, "lr": 0.0001})
    optimizer.step()

    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.0001]
    assert optimizer.param_groups[1]["params"][0] is second
    torch.testing.assert_close(before[0] - weight.detach(), torch.full((2, 2), 0.1), rtol=0, atol=1e-7)
    torch.testing.assert_close(before[1] - second.detach(), torch.full((3, 3), 1e-4), rtol=0, atol=1e-6)


def take_steps(weight: Tensor, optimizer: Any, first: int, last: int) -> None:
    """Steps `first` to `last` of a task whose gradient depends on the weight and on the step."""
    for step in range(first, last + 1):
        optimizer.zero_grad()
        (weight.pow(4) * (1 + step / 100)).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("nesterov", [False, True])
def test_saved_at_step_10_and_resumed_to_100_is_the_uninterrupted_run(tmp_path: Path, nesterov: bool) -> None:
    options: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "nesterov": nesterov}
    uninterrupted = weight_of_ones_gradient()
    take_steps(uninterrupted, optim.SGD([uninterrupted], **options), 1, 100)

    weight = weight_of_ones_gradient()
    optimizer = optim.SGD([weight], **options)
    assert optimizer.state_dict()["state"] == {}
    take_steps(weight, optimizer, 1, 10)
    assert list(optimizer.state[weight]) == ["momentum_buffer"]
    torch.save(optimizer.state_dict(), tmp_path / "optimizer_state_dict.pkl")

    resumed = weight.detach().clone().requires_grad_()
    optimizer = optim.SGD([resumed], **options)
    assert optimizer.state_dict()["state"] == {}
    optimizer.load_state_dict(torch.load(tmp_path / "optimizer_state_dict.pkl"))
    take_steps(resumed, optimizer, 11, 100)

    assert torch.equal(resumed, uninterrupted)
    assert not torch.equal(resumed, weight)
