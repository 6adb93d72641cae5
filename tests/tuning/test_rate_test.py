"""find_lr: the rate that it finds, and that it leaves no trace."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import steprule
from steprule import find_lr
from steprule.schedules import cosine, warmup


def of(optimizer: steprule.Optimizer, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    return closure


@pytest.mark.parametrize("curvature", [0.1, 3.0, 200.0])
def test_the_rate_is_where_a_parabola_falls_fast(curvature: float) -> None:
    """Gradient descent on k w^2 / 2 converges for rates below 2 / k, and is best at 1 / k."""
    weight = torch.full((5,), 3.0, requires_grad=True)
    optimizer = steprule.SGD([weight], lr=1.0)
    closure = of(optimizer, lambda: curvature / 2 * weight.square().sum())
    found = find_lr(
        optimizer,
        closure,
        lowest=1e-5 / curvature,
        highest=1e3 / curvature,
    )
    assert 0.01 / curvature < found.rate < 2 / curvature
    assert len(found.rates) == len(found.losses) == len(found.smoothed) <= 100
    assert found.rates[-1] < 900 / curvature  # it ended early
    assert str(found).startswith(f"lr={found.rate:.2g}: the loss fell from")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Tanh(), nn.Linear(16, 1))


def run(look_at: int | None) -> list[Tensor]:
    """A few steps, of which one may have a range test before it."""
    model = network()
    rates: dict[Any, dict[str, Any]] = {"4.*": dict(lr=steprule.scale(0.1))}
    optimizer = steprule.AdamW(model, lr=0.01 * warmup(2).then(cosine(8)), overrides=rates, clip_norm=1.0)

    def loss() -> Tensor:
        x = torch.randn(64, 4) + 0.1 * random.random() + 0.1 * float(np.random.rand())
        return (model(x) - x.sum(1, keepdim=True)).square().mean()

    for step in range(5):
        if step == look_at:
            before = [(p, p.grad, p.detach().clone()) for p in model.parameters()]
            rate = find_lr(optimizer, of(optimizer, loss), steps=40).rate
            assert 1e-4 < rate < 1.0
            assert all(p.grad is grad and torch.equal(p, value) for p, grad, value in before)
        optimizer.step(of(optimizer, loss))
    state = [value for p in model.parameters() for value in optimizer.state[p].values()]
    numbers = [optimizer.steps_taken, *(group["lr"] for group in optimizer.param_groups)]
    return [*model.state_dict().values(), *state, torch.tensor(numbers, dtype=torch.float64), torch.rand(3)]


@pytest.mark.parametrize("look_at", [0, 3])
def test_model_optimizer_and_random_numbers_go_on_with_the_same_bits(look_at: int) -> None:
    results = []
    for at in (None, look_at):
        random.seed(5)
        np.random.seed(5)
        results.append([tensor.clone() for tensor in run(at)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_groups_keep_their_ratios_and_schedules_of_other_numbers_stay() -> None:
    weights = [torch.ones(2, requires_grad=True) for _ in range(2)]
    momentum = 0.9 * warmup(50)
    optimizer = steprule.SGD(
        [{"params": [weights[0]], "lr": 0.5}, {"params": [weights[1]], "lr": 0.05 * warmup(10)}], momentum=momentum
    )
    seen: list[tuple[float, float, float]] = []

    def watch(*_: object) -> None:
        first, second = optimizer.param_groups
        seen.append((first["lr"], second["lr"], first["momentum"]))

    handle = optimizer.register_step_post_hook(watch)
    find_lr(optimizer, of(optimizer, lambda: sum(w.square().sum() for w in weights)), lowest=1e-4, highest=0.1)  # type: ignore[arg-type,return-value]
    handle.remove()
    assert seen[0][0] == 1e-4
    assert all(abs(a / b - 10) < 1e-9 for a, b, _ in seen)
    assert seen[10][2] == momentum(10)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.0]


def test_what_finds_nothing_says_why_and_leaves_no_trace() -> None:
    weight = torch.ones(2, requires_grad=True)
    optimizer = steprule.SGD([weight], lr=0.1)
    for loss, message in [
        (lambda: weight.sum() * 0 + 1, "does the loss fall"),
        (lambda: weight.sum() * float("nan"), "not finite by a rate of 1e-06"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            find_lr(optimizer, of(optimizer, loss))
        assert weight.tolist() == [1.0, 1.0]
        assert optimizer.param_groups[0]["lr"] == 0.1
    for options, message in [
        ({"lowest": 0.0}, "positive and ascending"),
        ({"lowest": 1.0, "highest": 0.1}, "positive and ascending"),
        ({"steps": 3}, "steps must be at least 10"),
    ]:
        with pytest.raises(ValueError, match=message):
            find_lr(optimizer, of(optimizer, weight.sum), **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has a rate lr that is not 0"):
        find_lr(steprule.SGD([weight], lr=0.0), weight.sum)


def test_the_picture() -> None:
    weight = torch.ones(5, requires_grad=True)
    optimizer = steprule.SGD([weight], lr=1.0)
    found = find_lr(optimizer, of(optimizer, lambda: weight.square().sum()))
    [axes] = found.plot().axes
    assert axes.get_xscale() == "log"
    assert found._repr_png_().startswith(b"\x89PNG")
