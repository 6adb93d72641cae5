"""Machine code in memory: bounded, and freed with the last that runs it."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

import steprule
from steprule.kernels.cpu import machine
from steprule.rule.program import Program
from steprule.stepping import planning


class Power(steprule.Optimizer):
    """A rule of as many Programs as the flag has values."""

    def __init__(self, params: Any, power: str = "0", lr: float = 0.1) -> None:
        super().__init__(params, dict(power=power, lr=lr))

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        return p - h.lr * (g + float(h.power))


def stepping() -> Any:
    p = torch.zeros(3, requires_grad=True)
    p.grad = torch.ones(3)
    optimizer = Power([p])
    optimizer.step()
    return optimizer


@pytest.fixture(autouse=True)
def _few_are_kept(monkeypatch: pytest.MonkeyPatch) -> Any:
    machine.forget()
    monkeypatch.setattr(machine, "RECENT", 3)
    monkeypatch.setattr(planning, "PROGRAMS", 6)
    yield
    machine.forget()


def test_a_flag_of_many_values_keeps_the_latest() -> None:
    optimizer = stepping()
    programs: weakref.WeakSet[Program] = weakref.WeakSet()
    for value in range(9):
        optimizer.param_groups[0]["power"] = str(value)
        optimizer.step()
        programs.add(optimizer._workings.planner.plan.launches[0].program)
        gc.collect()
        # those of the last plans, and the last that were asked for, which are among them
        assert machine.living() <= planning.PLANS
        assert len(programs) <= 6
    [p] = optimizer.param_groups[0]["params"]
    torch.testing.assert_close(p.detach(), torch.full((3,), -0.1 - 0.1 * sum(1 + v for v in range(9))))


def test_the_latest_used_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "PLANS", 1)
    optimizer = stepping()
    for value in range(14):
        optimizer.param_groups[0]["power"] = "0" if value % 2 else str(value)
        optimizer.step()
    known = [program for _, program in optimizer._workings.planner.programs]
    assert any("0" in [guard.answer for guard in program.guards] for program in known)


def test_code_lives_as_long_as_a_launch_runs_it() -> None:
    first, second = stepping(), stepping()
    code = weakref.ref(first._workings.planner.plan.launches[0].code)
    assert second._workings.planner.plan.launches[0].code is code()
    machine.LAST.clear()
    del first
    gc.collect()
    assert code() is not None
    second.step()
    [p] = second.param_groups[0]["params"]
    torch.testing.assert_close(p.detach(), torch.full((3,), -0.2))
    del second
    gc.collect()
    assert code() is None
    assert machine.living() == 0
    assert not machine.LEFT


def test_engines_that_nobody_can_close_now_are_closed_later() -> None:
    optimizer, closed = stepping(), []

    class Engine:
        def close(self) -> None:
            closed.append(self)

    machine.LEFT.append(Engine())
    optimizer.param_groups[0]["power"] = "7"
    optimizer.step()
    assert len(closed) == 1
