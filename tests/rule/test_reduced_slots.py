"""Slots of one number that a reduction gives: rules that learn something about all of a parameter, and remember it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from captures import as_if_capturing
from tensors import grad_of, parameters
from torch import Tensor

import steprule
from steprule import Optimizer
from steprule.rule import abs, array, max_abs, maximum, norm, scalar, sqrt, sum, where

INTERPRETER = pytest.mark.skipif(
    find_spec("triton") is None or torch.cuda.is_available(), reason="Triton's interpreter is not switched on"
)
SHAPES: list[tuple[int, ...]] = [(7, 5), (300,), (), (0, 3), (4, 3, 2)]


class Prodigy(Optimizer):
    """The distance to the solution is estimated along the way (Mishchenko, Defazio 2023, arXiv:2306.06101, alg. 4)."""

    slots = {"d": scalar("d0"), "r": scalar(0.0), "x0": array("parameter")}  # noqa: RUF012

    def __init__(
        self, params: Any, lr: float = 1.0, betas: Any = (0.9, 0.999), d0: float = 1e-6, **options: Any
    ) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, d0=d0), **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        beta1, beta2 = h.betas
        d, beta3 = s.d, sqrt(beta2)
        s.m = beta1 * s.m + (1 - beta1) * d * g
        s.v = beta2 * s.v + (1 - beta2) * d * d * g * g
        s.r = beta3 * s.r + (1 - beta3) * h.lr * d * d * sum(g * (s.x0 - p), scope="all")
        s.s = beta3 * s.s + (1 - beta3) * h.lr * d * d * g
        s.d = maximum(d, s.r / maximum(sum(abs(s.s), scope="all"), 1e-300))
        return p - h.lr * d * s.m / (sqrt(s.v) + d * 1e-8)


def prodigy(params: list[Tensor], gradients: list[list[Tensor]], lr: float = 1.0) -> list[float]:
    """The same in plain torch operations; gives the estimates."""
    d, r, estimates = 1e-6, 0.0, []
    x0 = [p.clone() for p in params]
    m, v, s = ([torch.zeros_like(p) for p in params] for _ in range(3))
    beta3 = 0.999**0.5
    for step in gradients:
        inner = torch.stack([(g * (x - p)).sum() for g, x, p in zip(step, x0, params, strict=True)])
        r = beta3 * r + (1 - beta3) * lr * d * d * float(inner.sum())
        for i, (p, g) in enumerate(zip(params, step, strict=True)):
            m[i] = 0.9 * m[i] + 0.1 * d * g
            v[i] = 0.999 * v[i] + 0.001 * d * d * g * g
            s[i] = beta3 * s[i] + (1 - beta3) * lr * d * d * g
            p -= lr * d * m[i] / (v[i].sqrt() + d * 1e-8)
        d = max(d, r / float(torch.stack([x.abs().sum() for x in s]).sum()))
        estimates.append(d)
    return estimates


def gradients_of(params: list[Tensor]) -> list[Tensor]:
    return [(3 * p.detach() + p.detach().sin() + 0.1) for p in params]


BACKENDS = pytest.mark.parametrize("backend", ["llvm", "eager", pytest.param("triton", marks=INTERPRETER)])


@BACKENDS
def test_prodigy_is_prodigy(backend: str) -> None:
    params, estimates, steps = parameters(SHAPES, torch.float64), [], []
    optimizer = Prodigy(params, lr=1.0, d0=1e-6, backend=backend)
    for _ in range(40):
        for p, g in zip(params, gradients_of(params), strict=True):
            p.grad = g
        steps.append([grad_of(p).clone() for p in params])
        optimizer.step()
        estimates.append(optimizer.state[params[0]]["d"].item())
    plain = [p.detach() for p in parameters(SHAPES, torch.float64)]
    expected = prodigy(plain, steps)
    assert estimates == pytest.approx(expected, rel=1e-12)
    assert estimates[-1] > 100 * estimates[0]
    for p, q in zip(params, plain, strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=1e-11, atol=1e-13)


class Smoothed(Optimizer):
    """The size of each gradient, smoothed, with what is known of a parameter's first update and of the step."""

    slots = {"size": scalar(1.0), "steps": scalar(0.0), "half": scalar("start")}  # noqa: RUF012

    def __init__(self, params: Any, lr: float = 0.1, momentum: float = 0.9, start: float = 5.0, **options: Any) -> None:
        super().__init__(params, dict(lr=lr, momentum=momentum, start=start), **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        s.size = where(s.is_new, norm(g), h.momentum * s.size + (1 - h.momentum) * norm(g))
        s.half = s.half / 2 + s.size
        s.steps = s.steps + 1
        return p - h.lr * g / (1 + s.size * s.step)


def smoothed(params: list[Tensor], skip: int | None = None, steps: int = 8, **options: Any) -> Any:
    optimizer = Smoothed(params, **options)
    for step in range(steps):
        for i, p in enumerate(params):
            p.grad = None if step == 3 and i == skip else ((i + 1) * (p.detach() + step + 1)).to(p.dtype)
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@BACKENDS
def test_each_parameter_has_its_own_number(backend: str, dtype: torch.dtype) -> None:
    params = parameters(SHAPES, dtype)
    optimizer = smoothed(params, skip=1, backend=backend)
    for i, q in enumerate(parameters(SHAPES, dtype)):
        x, size, half, count = q.detach(), 1.0, 5.0, 0
        for step in range(8):
            if step == 3 and i == 1:
                continue
            g = ((i + 1) * (x + step + 1)).to(dtype)
            length = g.double().norm().item()
            count += 1
            size = length if count == 1 else 0.9 * size + 0.1 * length
            half = half / 2 + size
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            x = (x.to(wide) - 0.1 * g.to(wide) / (1 + size * count)).to(dtype)
        state = optimizer.state[params[i]]
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
        torch.testing.assert_close(params[i].detach(), x, rtol=tolerance, atol=tolerance)
        assert state["size"].item() == pytest.approx(size, rel=tolerance)
        assert state["half"].item() == pytest.approx(half, rel=tolerance)
        assert state["steps"].item() == count
        assert state["size"].dtype == torch.float64
        assert state["size"].shape == ()


def test_saved_and_resumed_to_the_bit(tmp_path: Path) -> None:
    straight = parameters(SHAPES, torch.float32)
    smoothed(straight)
    params = parameters(SHAPES, torch.float32)
    first = smoothed(params, steps=5)
    for how in ("state_dict", "file"):
        again = [p.detach().clone().requires_grad_() for p in params]
        optimizer = Smoothed(again)
        if how == "file":
            steprule.save(tmp_path / "run", first)
            steprule.load(tmp_path / "run", optimizer)
        else:
            optimizer.load_state_dict(first.state_dict())
        assert optimizer.state[again[0]]["size"].dtype == torch.float64
        for step in range(5, 8):
            for i, p in enumerate(again):
                p.grad = (i + 1) * (p.detach() + step + 1)
            optimizer.step()
        assert all(map(torch.equal, again, straight)), how


def test_what_a_person_writes_into_the_state_counts() -> None:
    p = torch.ones(3, requires_grad=True)
    optimizer = smoothed([p], steps=2)
    for change in ("in place", "replaced"):
        if change == "in place":
            optimizer.state[p]["size"].fill_(100.0)
        else:
            optimizer.state[p]["size"] = torch.tensor(100.0)
        p.grad = torch.zeros(3)
        optimizer.step()
        assert optimizer.state[p]["size"].item() == pytest.approx(90.0)


def test_a_program_shows_them() -> None:
    p = torch.ones(3, requires_grad=True)
    p.grad = torch.ones(3)
    text = Prodigy([p]).explain(source=True)
    assert "after    d ← " in text
    assert "after    r ← " in text


def test_groups_with_rules_that_finish_differently_share_no_launch() -> None:
    class Either(Optimizer):
        slots = {"n": scalar(0.0)}  # noqa: RUF012

        def __init__(self, params: Any, lr: float = 0.0, twice: bool = False) -> None:
            super().__init__(params, dict(lr=lr, twice=twice))

        def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            s.n = norm(g) * 2 if h.twice else norm(g)
            return p - h.lr * g

    params = [torch.ones(4, requires_grad=True) for _ in range(2)]
    optimizer = Either([{"params": params[:1], "twice": True}, {"params": params[1:]}])
    for p in params:
        p.grad = torch.ones(4)
    optimizer.step()
    assert [optimizer.state[p]["n"].item() for p in params] == [4.0, 2.0]


@BACKENDS
def test_conditions_count_as_numbers_and_numbers_keep_their_digits(backend: str) -> None:
    class Asking(Optimizer):
        slots = {name: scalar(0.0) for name in ("chosen", "scaled", "both", "minus")}  # noqa: RUF012

        def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            large = norm(g) > 1
            s.chosen = where(large, 0.1, 0.2)
            s.scaled = large * 0.1
            s.both = large + (norm(p) > 1)
            s.minus = -large
            return p

    p = torch.full((4,), 3.0, requires_grad=True)
    p.grad = torch.full((4,), 2.0)
    optimizer = Asking([p], {}, backend=backend)
    optimizer.step()
    assert {name: value.item() for name, value in optimizer.state[p].items()} == {
        "chosen": 0.1,
        "scaled": 0.1,
        "both": 2.0,
        "minus": -1.0,
    }


def test_differentiable_reaches_through_them() -> None:
    start, rate, first = (
        torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in ([[1.0, 2.0], [0.5, -1.0]], 0.1, 0.7)
    )

    class Growing(Optimizer):
        slots = {"size": scalar("first")}  # noqa: RUF012

        def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            old = s.size
            s.size = 0.9 * old + 0.1 * norm(g)
            return p - h.lr * g * old

    params = [row.clone() for row in start]
    optimizer = Growing(params, dict(lr=rate, first=first), differentiable=True)
    expected, sizes = list(start), [first, first]
    for _ in range(3):
        for i, p in enumerate(params):
            p.grad = p.clone() ** 2
            g = expected[i] ** 2
            expected[i], sizes[i] = expected[i] - rate * g * sizes[i], 0.9 * sizes[i] + 0.1 * g.norm()
        optimizer.step()
    found = torch.autograd.grad(torch.cat(params).sum(), [start, rate, first])
    torch.testing.assert_close(found, torch.autograd.grad(torch.cat(expected).sum(), [start, rate, first]))
    assert [optimizer.state[p]["size"].item() for p in params] == pytest.approx([s.item() for s in sizes], rel=1e-12)


@INTERPRETER
def test_a_rate_that_changed_before_a_graph_is_recorded_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rated(Optimizer):
        slots = {"size": scalar(0.0)}  # noqa: RUF012

        def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            s.size = h.lr * max_abs(g)
            return p - h.lr * g

    p = torch.ones(3, dtype=torch.float64, requires_grad=True)
    p.grad = torch.full((3,), 4.0, dtype=torch.float64)
    optimizer = Rated([p], dict(lr=0.5), backend="triton")
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.25
    as_if_capturing(monkeypatch)
    optimizer.step()
    assert p.tolist() == [-2.0] * 3
    assert optimizer.state[p]["size"].item() == 1.0


@pytest.mark.parametrize("value", [torch.ones(3), torch.tensor(1j), "many"], ids=str)
@pytest.mark.parametrize("name", ["size", "step"])
def test_what_is_no_number_is_refused_by_name(name: str, value: object) -> None:
    p = torch.ones(3, requires_grad=True)
    optimizer = smoothed([p], steps=2)
    before, optimizer.state[p][name] = p.detach().clone(), value
    with pytest.raises(RuntimeError, match=rf"state '{name}' of parameter 0 of group 0 is .*but it is one number"):
        optimizer.step()
    assert torch.equal(p, before)
