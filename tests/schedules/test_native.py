"""The scheduler that does nothing, beside a schedule that drives the rate."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch.optim.lr_scheduler import ChainedScheduler, SequentialLR, StepLR

import steprule
from steprule.schedules import Native, linear


def stepped(optimizer: torch.optim.Optimizer, weight: torch.Tensor) -> None:
    weight.grad = torch.ones_like(weight)
    optimizer.step()


def test_the_schedule_alone_drives_the_rate() -> None:
    weight = torch.ones(2, requires_grad=True)
    optimizer = steprule.SGD([weight], lr=0.5 * linear(4))
    before = set(optimizer.param_groups[0])
    scheduler = Native(optimizer)
    assert isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler)
    assert optimizer.param_groups[0].keys() == before | {"initial_lr"}
    assert "step" not in vars(optimizer)
    rates = []
    for _ in range(5):
        stepped(optimizer, weight)
        scheduler.step()
        rates.append(scheduler.get_last_lr())
    assert rates == [[0.5], [0.375], [0.25], [0.125], [0.0]]
    assert scheduler.last_epoch == 5


def test_sequential_schedulers_go_round_it() -> None:
    weight = torch.ones(2, requires_grad=True)
    optimizer = steprule.SGD([weight], lr=0.5 * linear(4))
    scheduler = SequentialLR(optimizer, [Native(optimizer), Native(optimizer)], milestones=[2])
    for step in range(4):
        stepped(optimizer, weight)
        scheduler.step()
        assert scheduler.get_last_lr() == [0.5 * linear(4)(step)]
    assert [part.last_epoch for part in scheduler._schedulers] == [1, 2]
    assert ChainedScheduler([Native(optimizer)]).get_last_lr() == [0.125]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a scheduler that begins after steps
        SequentialLR(optimizer, [Native(optimizer)], milestones=[])  # while a schedule is under way, too
    stepped(optimizer, weight)


def test_sequential_schedulers_hold_a_number_by_it() -> None:
    optimizer = steprule.SGD([torch.ones(2, requires_grad=True)], lr=0.5)
    steady, falling = Native(optimizer), StepLR(optimizer, 1, gamma=0.5)
    scheduler = SequentialLR(optimizer, [steady, falling], milestones=[2])
    rates = []
    for _ in range(4):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [0.5, 0.5, 0.25, 0.125]


def test_it_is_named_where_a_scheduler_of_torch_stands_in_the_way() -> None:
    weight = torch.ones(2, requires_grad=True)
    optimizer = steprule.SGD([weight], lr=0.5 * linear(4))
    other = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    stepped(optimizer, weight)
    other.step()
    with pytest.raises(RuntimeError, match=r"hand steprule.schedules.Native\(optimizer\), which does nothing"):
        stepped(optimizer, weight)


def test_it_is_saved_and_loaded_as_a_scheduler_of_torch() -> None:
    optimizer = steprule.SGD([torch.ones(2, requires_grad=True)], lr=0.5)
    scheduler = Native(optimizer)
    for _ in range(3):
        scheduler.step()
    again = Native(steprule.SGD([torch.ones(2, requires_grad=True)], lr=0.25))
    again.load_state_dict(copy.deepcopy(scheduler.state_dict()))
    assert again.last_epoch == 3
    assert again.get_last_lr() == [0.25]


def test_a_rate_that_is_a_tensor_is_told_as_a_copy() -> None:
    optimizer = steprule.SGD([torch.ones(2, requires_grad=True)], lr=torch.tensor(0.5))
    (rate,) = Native(optimizer).get_last_lr()
    rate.fill_(7.0)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_what_is_no_optimizer_is_refused_as_by_torch() -> None:
    with pytest.raises(TypeError, match="list is not an Optimizer"):
        Native([])  # type: ignore[arg-type]
