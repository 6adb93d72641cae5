"""One number of the whole optimizer: Prodigy's estimate, where parameters have no gradient in some steps."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from tensors import parameters
from torch import Tensor

from steprule import Optimizer
from steprule.rule import RuleError, abs, array, max_abs, maximum, minimum, norm, scalar, sqrt, sum, trace, where

INTERPRETER = pytest.mark.skipif(
    find_spec("triton") is None or torch.cuda.is_available(), reason="Triton's interpreter is not switched on"
)
BACKENDS = pytest.mark.parametrize("backend", ["llvm", "eager", pytest.param("triton", marks=INTERPRETER)])
SHAPES = [(7,), (6, 5), (4, 3, 2, 2)]


class Prodigy(Optimizer):
    """Prodigy (Mishchenko and Defazio, 2023), with the bias correction of its authors' code."""

    slots = {  # noqa: RUF012
        "d": scalar("d0", scope="all"),
        "largest": scalar("d0", scope="all"),
        "numerator": scalar(scope="all"),
        "k": scalar(scope="all"),
        "start": array("parameter"),
    }

    def __init__(
        self, params: Any, lr: float = 1.0, betas: Any = (0.9, 0.99), d0: float = 1e-6, **options: Any
    ) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, d0=d0, eps=1e-8, growth=float("inf")), **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        beta1, beta2 = h.betas
        beta3, d = sqrt(beta2), s.d
        s.k = s.k + 1
        rate = d * h.lr * sqrt(1 - beta2**s.k) / (1 - beta1**s.k)
        s.mean = beta1 * s.mean + d * (1 - beta1) * g
        s.square = beta2 * s.square + d * d * (1 - beta2) * g * g
        s.sum = beta3 * s.sum + d / h.d0 * rate * g
        s.numerator = beta3 * s.numerator + sum(d / h.d0 * rate * g * (s.start - p), scope="all")
        weight = sum(abs(s.sum), scope="all")
        estimate = where(weight > 0, s.numerator / weight, d)
        s.largest = maximum(s.largest, estimate)
        s.d = minimum(s.largest, maximum(where(d == h.d0, maximum(d, estimate), d), d * h.growth))
        return p - rate * s.mean / (sqrt(s.square) + s.d * h.eps)


class ByHand:
    """The same by the authors' loop, in float64."""

    def __init__(self, params: list[Tensor]) -> None:
        self.params = [p.detach().double().clone() for p in params]
        self.state: list[dict[str, Tensor]] = [{} for _ in params]
        self.d = self.d0 = self.largest = 1e-6
        self.numerator, self.k = 0.0, 0

    def step(self, grads: list[Tensor | None]) -> None:
        beta1, beta2 = 0.9, 0.99
        beta3, d = beta2**0.5, self.d
        rate = d * (1 - beta2 ** (self.k + 1)) ** 0.5 / (1 - beta1 ** (self.k + 1))
        gained = weight = 0.0
        for p, state, g in zip(self.params, self.state, grads, strict=True):
            if g is None:
                continue
            if not state:
                zero = torch.zeros_like(p)
                state.update(sum=zero, start=p.clone(), mean=zero, square=zero)
            gained += d / self.d0 * rate * float((g * (state["start"] - p)).sum())
            state["mean"] = beta1 * state["mean"] + d * (1 - beta1) * g
            state["square"] = beta2 * state["square"] + d * d * (1 - beta2) * g * g
            state["sum"] = beta3 * state["sum"] + d / self.d0 * rate * g
            weight += float(state["sum"].abs().sum())
        self.numerator = beta3 * self.numerator + gained
        estimate = self.numerator / weight if weight else d
        if d == self.d0:
            self.d = max(d, estimate)
        self.largest = max(self.largest, estimate)
        self.d = min(self.largest, max(self.d, d * float("inf")))
        for p, state, g in zip(self.params, self.state, grads, strict=True):
            if g is not None:
                p -= rate * state["mean"] / (state["square"].sqrt() + self.d * 1e-8)
        self.k += 1


def gradients_of_some(params: list[Tensor], step: int) -> list[Tensor | None]:
    """The second has one in every third step only; the last from the fifth step on."""
    missing = {1: step % 3 != 0, 2: step < 5}
    return [None if missing.get(i) else (p.detach().double() - 3 + 0.1 * step) for i, p in enumerate(params)]


@BACKENDS
@pytest.mark.parametrize("groups", [1, 2])
def test_prodigy_is_that_of_its_authors(backend: str, groups: int) -> None:
    params = parameters(SHAPES, torch.float64)
    given: Any = params if groups == 1 else [{"params": params[:1]}, {"params": params[1:]}]
    ours, theirs = Prodigy(given, backend=backend), ByHand(params)
    for step in range(12):
        for p, g in zip(params, gradients_of_some(params, step), strict=True):
            p.grad = g
        theirs.step([p.grad for p in params])
        ours.step()
    assert theirs.d > 5e-6
    for p in params:
        assert ours.state[p]["d"].item() == pytest.approx(theirs.d, rel=1e-10)
    for p, q in zip(params, theirs.params, strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=1e-9, atol=1e-12)
    assert backend == "eager" or set(re.findall(r"in (\d) pass", ours.explain())) == {"2"}


def test_it_is_saved_and_goes_on_to_the_bit_and_newcomers_learn_it() -> None:
    def train(optimizer: Prodigy, params: list[Tensor], steps: range) -> None:
        for step in steps:
            for p, g in zip(params, gradients_of_some(params, step), strict=False):
                p.grad = g
            optimizer.step()

    straight = Prodigy(one := parameters(SHAPES, torch.float64))
    train(straight, one, range(9))
    first = Prodigy(two := parameters(SHAPES, torch.float64))
    train(first, two, range(4))
    second = Prodigy(three := [p.detach().clone().requires_grad_() for p in two])
    second.load_state_dict(first.state_dict())
    train(second, three, range(4, 9))
    for p, q in zip(one, three, strict=True):
        assert torch.equal(p, q)
    new = torch.ones(3, dtype=torch.float64, requires_grad=True)
    straight.add_param_group({"params": [new]})
    new.grad = torch.ones(3, dtype=torch.float64)
    for p in one:
        p.grad = None
    before = straight.state[one[0]]["k"].item()
    straight.step()
    assert straight.state[new]["k"] is straight.state[one[0]]["k"]
    assert straight.state[new]["k"].item() == before + 1


@BACKENDS
def test_every_parameter_has_the_numbers_of_the_first(backend: str) -> None:
    class Rated(Optimizer):
        slots = {"rate": scalar(2.0, scope="all")}  # noqa: RUF012

        def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            s.rate = s.rate * h.lr + max_abs(g, scope="all")
            return p - s.rate * g

    params = [torch.zeros(2, requires_grad=True), torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)]
    optimizer = Rated(
        [{"params": params[:1], "lr": 0.5}, {"params": params[1:], "lr": 3.0}], {"lr": 1}, backend=backend
    )
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert [p.unique().tolist() for p in params] == [[-2.0], [-2.0]]
    params[0].grad = None
    optimizer.step()
    assert params[1].unique().tolist() == [-2.0 - 7.0]
    assert optimizer.state[params[0]]["rate"].item() == 7.0
    optimizer.state[params[0]]["rate"].fill_(1.0)  # what a person writes counts
    optimizer.step()
    assert params[1].unique().tolist() == [-9.0 - 4.0]


@pytest.mark.parametrize(
    "value",
    [
        lambda p, g, s: norm(g),
        lambda p, g, s: s.step,
        lambda p, g, s: s.own + 1,
        lambda p, g, s: g,
        lambda p, g, s: s.m,
    ],
)
def test_what_each_parameter_has_of_its_own_is_refused(value: Any) -> None:
    def rule(p: Any, g: Any, s: Any, h: Any) -> Any:
        s.d = 0.5 * s.d + value(p, g, s)
        return p - s.d * g

    with pytest.raises(RuleError, match=r"s.d is one number of the whole optimizer .* each parameter has its own"):
        trace(rule, {}, {"d": scalar(scope="all"), "own": scalar()})


def test_other_scopes_and_autograd_are_refused() -> None:
    with pytest.raises(RuleError, match="scope is 'tensor'"):
        scalar(scope="group")  # type: ignore[arg-type]
    p = torch.ones(2, dtype=torch.float64, requires_grad=True).clone()
    p.retain_grad()
    p.sum().backward()
    with pytest.raises(RuntimeError, match=r"differentiable=True: .* is one number of the whole optimizer"):
        Prodigy([p], differentiable=True).step()
