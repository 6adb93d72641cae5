"""Groups with the same numbers share their evaluation: every step is what it would be if each were alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparing import same
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import give_gradients, normal
from torch import Tensor

import steprule
from steprule.rule.program import Program
from steprule.schedules import Timetable, cosine, function, linear, separate

COUNT = 5


def grouped(name: str, backend: str = "auto", **options: Any) -> tuple[list[Tensor], Any]:
    params = [normal(3, seed=i).requires_grad_() for i in range(COUNT)]
    groups = [{"params": [p]} for p in params]
    return params, getattr(steprule, name)(groups, backend=backend, **options)


def fill_rate(group: dict[str, Any], x: float) -> None:
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(x)
    else:
        group["lr"] = torch.tensor(x)


def change_beta_in_place(group: dict[str, Any], x: float) -> None:
    if not isinstance(group["betas"], list):
        group["betas"] = list(group["betas"])
    group["betas"][0] = x


EVENTS: dict[str, Callable[[dict[str, Any], float], object]] = {
    "rate": lambda group, x: group.update(lr=x),
    "whole rate": lambda group, x: group.update(lr=1),
    "negative zero": lambda group, x: group.update(lr=-0.0 if x > 0.2 else 0.0),
    "rate in a tensor": fill_rate,
    "betas": lambda group, x: group.update(betas=(x, 0.9)),
    "betas in place": change_beta_in_place,
    "decay": lambda group, x: group.update(weight_decay=x),
    "decay as a flag": lambda group, x: group.update(weight_decay=x > 0.2),
    "flag": lambda group, x: group.update(amsgrad=not group["amsgrad"]),
    "penalty": lambda group, x: group.update(l1=0.0 if group["l1"] else x),
    "infinity": lambda group, x: group.update(eps=math.inf),
    "eager": lambda group, x: group.update(backend="eager"),
}
HAPPENING = st.tuples(st.sampled_from(list(EVENTS)), st.integers(0, COUNT - 1), st.sampled_from([0.1, 0.3]))


@pytest.mark.parametrize("backend", ["auto", "eager"])
@settings(max_examples=25, deadline=None)
@given(steps=st.lists(st.lists(HAPPENING, max_size=3), min_size=2, max_size=6))
def test_what_is_changed_by_hand_counts_in_the_next_step(backend: str, steps: Any) -> None:
    """The other optimizer loads its own state before each step, after which it knows nothing any more."""
    (ours, mine), (theirs, anew) = (grouped("AdamW", backend) for _ in range(2))
    for seed, events in enumerate(steps):
        for optimizer in (mine, anew):
            for name, place, x in events:
                EVENTS[name](optimizer.param_groups[place], x)
        give_gradients(ours, seed)
        give_gradients(theirs, seed)
        anew.load_state_dict(anew.state_dict())
        mine.step()
        anew.step()
        for p, q in zip(ours, theirs, strict=True):
            assert same(p, q)
            assert all(same(value, anew.state[q][name]) for name, value in mine.state[p].items())


def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The rates with which the host computes numbers from now on."""
    seen: list[float] = []
    host = Program.host.func

    def counting(program: Program) -> Any:
        def call(group: Any, *args: Any) -> Any:
            seen.append(group["lr"])
            return host(program)(group, *args)

        return call

    monkeypatch.setattr(Program, "host", property(counting))
    return seen


@pytest.mark.parametrize("name", ["AdamW", "NAdam", "ASGD", "SGD"])
def test_equal_numbers_are_computed_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    params, optimizer = grouped(name)
    give_gradients(params, 0)
    optimizer.step()
    seen = evaluations(monkeypatch)
    optimizer.step()
    assert len(seen) == 1
    for group in optimizer.param_groups[:2]:
        group["lr"] *= 0.5
    optimizer.step()
    assert len(seen) == 3
    for group in optimizer.param_groups:
        group["lr"] *= 3.0  # as torch's schedulers do: equal numbers that are not the same object
    optimizer.step()
    assert len(seen) == 5
    assert len(set(seen[-2:])) == 2


def test_parameters_of_different_age_share_no_numbers() -> None:
    params, optimizer = grouped("AdamW", lr=0.1)
    others = [p.detach().clone().requires_grad_() for p in params]
    theirs = torch.optim.AdamW([{"params": [p]} for p in others], lr=0.1)
    for step in range(4):
        give_gradients(params, step)
        give_gradients(others, step)
        params[1].grad = others[1].grad = None if step % 2 else others[1].grad
        optimizer.step()
        theirs.step()
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_a_schedule_is_evaluated_once_for_all_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[int] = Counter()

    def rate(step: int) -> float:
        calls[step] += 1
        return 0.5**step

    params, optimizer = grouped("AdamW", lr=0.1 * function(rate))
    calls.clear()
    for step in range(4):
        give_gradients(params, step)
        if step == 3:
            seen = evaluations(monkeypatch)
        optimizer.step()
    assert calls[2] == calls[3] == 1
    assert seen == [0.1 * 0.5**3]


def test_schedules_of_groups_that_come_apart() -> None:
    params = [normal(3, seed=i).requires_grad_() for i in range(4)]
    rates = [0.1 * linear(8), 0.1 * linear(8), 0.1 * linear(4), 0.1 * cosine(8)]
    optimizer = steprule.SGD([{"params": [p], "lr": rate} for p, rate in zip(params, rates, strict=True)])
    start = [p.detach().clone() for p in params]
    for step in range(6):
        for p in params:
            p.grad = torch.ones(3)
        if step == 3:
            del optimizer.param_groups[1]["schedules"]["lr"]
            optimizer.param_groups[1]["lr"] = 1.0
        optimizer.step()
    gone = [[rate(step) for step in range(6)] for rate in rates]
    gone[1][3:] = [1.0] * 3
    for p, first, steps in zip(params, start, gone, strict=True):
        torch.testing.assert_close(p.detach(), first - sum(steps))


def test_numbers_of_schedules_that_somebody_set_are_refused_in_any_group() -> None:
    groups: list[dict[str, Any]] = [{"lr": linear(4)}, {"lr": linear(4)}]
    for group in groups:
        group["schedules"] = separate(group)
    table = Timetable()
    for step in range(2):
        table.write(groups, step)
    groups[1]["lr"] = 0.7
    with pytest.raises(RuntimeError, match="both a schedule and something else set lr of group 1"):
        table.write(groups, 2)
    assert groups[0]["lr"] == 0.75
