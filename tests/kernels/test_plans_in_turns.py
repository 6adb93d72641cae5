"""Flags and sets of gradients that come in turns: plans are kept, and change nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import steprule
from steprule import Optimizer
from steprule.rule import max_abs, norm, scalar
from steprule.stepping.planning import PLANS, Planner


class Counts(Optimizer):
    """Slots of every kind, some of which only one answer uses."""

    slots = {"pace": scalar(1.0), "common": scalar(scope="all")}  # noqa: RUF012

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        s.common = s.common + max_abs(g, scope="all")
        s.pace = 0.9 * s.pace + 0.1
        s.m = 0.5 * s.m + g
        if h.flag:
            s.largest = norm(s.m)
            return p - h.lr * s.m / (1 + s.largest + s.common) * s.step
        return p - h.lr * s.pace * g


def some_optimizer(kind: str, backend: str, count: int = 6) -> tuple[list[Tensor], Optimizer]:
    params = [torch.linspace(-1, 1, 5 + i).requires_grad_() for i in range(count)]
    if kind == "Counts":
        return params, Counts(params, dict(lr=0.1, flag=False), backend=backend)
    options: Any = {"SGD": dict(momentum=0.9, lr=0.1), "AdamW": dict(lr=0.1)}[kind]
    return params, getattr(steprule, kind)(params, backend=backend, **options)


def run_in_turns(kind: str, backend: str, steps: int = 12) -> tuple[list[Tensor], Optimizer]:
    params, optimizer = some_optimizer(kind, backend)
    for step in range(steps):
        for i, p in enumerate(params):
            p.grad = None if i == 2 and step % 3 else torch.full_like(p, 0.1 * (step - i))
        flag = {"Counts": "flag", "SGD": "nesterov", "AdamW": "amsgrad"}[kind]
        optimizer.param_groups[0][flag] = step % 2 == 1
        optimizer.step()
    return params, optimizer


@pytest.mark.parametrize("backend", ["llvm", "eager"])
@pytest.mark.parametrize("kind", ["Counts", "SGD", "AdamW"])
def test_plans_kept_do_as_new_ones(kind: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[object] = []
    make = Planner.make
    monkeypatch.setattr(Planner, "make", lambda self, *args: plans.append(make(self, *args)) or plans[-1])
    ours, one = run_in_turns(kind, backend)
    made_new = len(plans)
    assert len(one._workings.planner.recent) <= PLANS
    monkeypatch.setattr(Planner, "recall", lambda *args: None)
    theirs, other = run_in_turns(kind, backend)
    assert made_new < len(plans) - made_new
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(p, q)
        assert one.state[p].keys() == other.state[q].keys()
        for name, value in one.state[p].items():
            assert torch.equal(value, other.state[q][name]), name


def test_what_a_person_changes_in_the_state_in_between_counts() -> None:
    params, optimizer = some_optimizer("AdamW", "auto")
    flags = [False, True, False, True, False]
    for step, flag in enumerate(flags):
        optimizer.param_groups[0]["amsgrad"] = flag
        for p in params:
            p.grad = torch.ones_like(p)
        if step == 4:
            for p in params:
                optimizer.state[p]["step"].fill_(100.0)
                optimizer.state[p]["exp_avg"] = torch.full_like(p, 2.0)
        optimizer.step()
    for p in params:
        assert optimizer.state[p]["step"] == 101
        torch.testing.assert_close(optimizer.state[p]["exp_avg"], torch.full_like(p, 1.9))


def test_plans_are_let_go_with_what_they_were_made_for() -> None:
    params, optimizer = some_optimizer("AdamW", "auto")
    for flag in (False, True):
        optimizer.param_groups[0]["amsgrad"] = flag
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert len(optimizer._workings.planner.recent) == 2
    optimizer.add_param_group({"params": [torch.ones(2, requires_grad=True)]})
    assert not optimizer._workings.planner.recent


class Plain(Optimizer):
    def __init__(self, params: Any, lr: float) -> None:
        self.seen = lr
        super().__init__(params, dict(lr=lr))

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        return p - h.lr * g


class Nested(Plain):
    def __init__(self, params: Any) -> None:
        super().__init__(params, 0.5)


def test_a_constructor_without_options_takes_them() -> None:
    plain: Any = Plain  # options that its signature does not have
    nested: Any = Nested
    named = {"a": torch.zeros(2, requires_grad=True), "b": torch.zeros(2, requires_grad=True)}
    for p in named.values():
        p.grad = torch.ones(2)
    optimizer = plain(named.items(), 1.0, overrides={"b": dict(lr=2.0)}, maximize=True, clip_norm=100.0)
    optimizer.step()
    assert [p.tolist() for p in named.values()] == [[1.0, 1.0], [2.0, 2.0]]
    assert nested([torch.ones(1, requires_grad=True)], nonfinite="skip", l1=0.5).param_groups[0]["l1"] == 0.5
    with pytest.raises(TypeError, match="unexpected keyword argument 'momentum'"):
        plain(named.items(), 1.0, momentum=0.9)
    with pytest.raises(ValueError, match="Invalid l1 value: -1"):
        plain(named.items(), 1.0, l1=-1.0)
