"""A step that fails: it has changed nothing, or says that it has and can't be taken twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steprule
from steprule import Optimizer
from steprule.kernels.cpu.llvm import LLVMLaunch
from steprule.rule import matrix


def centred(stack: Tensor) -> Tensor:
    if failing:
        raise ValueError("no such matrix")
    return stack - stack.mean((1, 2), keepdim=True)


failing: list[bool] = []


class Centred(Optimizer):
    """Momentum for matrices, of which the mean is taken away; plain descent for the rest."""

    def __init__(self, params: Any, lr: float = 0.1, whole: bool = True, **options: Any) -> None:
        super().__init__(params, dict(lr=lr, whole=whole), **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        if not h.whole:
            s.count = s.count + g
            return p - h.lr * g
        s.momentum = 0.5 * s.momentum + g
        return p - h.lr * matrix(centred, s.momentum)


def contents(optimizer: Optimizer) -> list[Tensor]:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return [t.detach().clone() for p in params for t in (p, *optimizer.state[p].values())]


@pytest.mark.parametrize("backend", ["llvm", "eager"])
@pytest.mark.parametrize("steps", [0, 2])
def test_where_a_function_of_matrices_raises_everything_is_as_before(backend: str, steps: int) -> None:
    def made() -> tuple[Optimizer, Callable[[], None]]:
        torch.manual_seed(0)
        rest, whole = [torch.randn(5).requires_grad_()], [torch.randn(3, 4).requires_grad_() for _ in range(2)]
        optimizer = Centred([dict(params=rest, whole=False), dict(params=whole)], backend=backend)
        for p in (*rest, *whole):
            p.grad = torch.randn_like(p)
        return optimizer, optimizer.step

    failing.clear()
    (ours, step), (theirs, undisturbed) = made(), made()
    for _ in range(steps):
        step()
        undisturbed()
    before = contents(ours)
    for _ in range(2):
        failing.append(True)
        with pytest.raises(ValueError, match="no such matrix"):
            step()
        failing.clear()
        assert all(map(torch.equal, contents(ours), before))
        assert ours.steps_taken == steps
    step()
    undisturbed()
    assert all(map(torch.equal, contents(ours), contents(theirs)))


def broken_off(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> tuple[Optimizer, nn.Module]:
    """An optimizer of two launches, between which something came."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    optimizer = steprule.SGD(model, lr=1.0)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    run, calls = LLVMLaunch.run, []

    def interrupted(launch: LLVMLaunch, stage: int) -> None:
        calls.append(stage)
        if len(calls) == 2:
            raise error
        run(launch, stage)

    with monkeypatch.context() as patch:
        patch.setattr(LLVMLaunch, "run", interrupted)
        with pytest.raises(type(error)) as caught:
            optimizer.step()
    if hasattr(error, "__notes__"):
        assert "broke off" in caught.value.__notes__[0]
    return optimizer, model


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()], ids=repr)
def test_a_step_that_broke_off_cannot_be_taken_twice(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    optimizer, model = broken_off(monkeypatch, error)
    assert optimizer.steps_taken == 1
    before = [p.detach().clone() for p in model.parameters()]
    for attempt in range(3):
        with pytest.raises(RuntimeError, match="a step broke off after it had begun to change parameters"):
            optimizer.step()
        if attempt == 1:
            optimizer.add_param_group({"params": [("new", torch.zeros(2, requires_grad=True))]})
    assert all(map(torch.equal, model.parameters(), before))

    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    assert optimizer.steps_taken == 2
    assert all(torch.equal(p, b - 1) for p, b in zip(model.parameters(), before, strict=True))


def test_an_error_before_anything_was_written_lets_the_step_be_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    p = torch.zeros(3, requires_grad=True)
    p.grad = torch.ones(3)
    optimizer = steprule.SGD([p], lr=1.0)
    optimizer.step()
    with monkeypatch.context() as patch:
        patch.setattr(LLVMLaunch, "advance", lambda launch, groups: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            optimizer.step()
    optimizer.step()
    assert p.tolist() == [-2.0] * 3
