"""Rules of any size: thousands of steps, parts that are used many times, and zeros of either sign."""

from __future__ import annotations

import math
import re
import time
from typing import Any

import pytest
import torch
from kernel_cases import leaf, optimizer_of

from steprule import rule
from steprule.rule.expression import Expression, Level, RuleError
from steprule.rule.trace import trace

HOSTS = ["llvm", "eager"]
"""Triton's interpreter makes 0.0 of a number -0.0 that a kernel is given by value; a GPU does not."""


def grad() -> Expression:
    return Expression("grad", level=Level.ARRAY)


def squared(x: Any, times: int) -> Any:
    for _ in range(times):
        x = x * x
    return x


def test_what_is_used_twice_at_each_of_many_steps_is_shown_in_a_bounded_text() -> None:
    before = time.perf_counter()
    shown = str(squared(grad(), 1000))
    assert shown.startswith("t998 * t998 where ..., t987 = t986 * t986, ")
    assert len(shown) < 600
    assert time.perf_counter() - before < 5
    assert str(squared(grad(), 2)) == "g * g * (g * g)"


def test_an_error_in_a_large_rule_is_said_at_once() -> None:
    def update(p: Any, g: Any, s: Any, h: Any) -> Any:
        return p if squared(g, 200) > 0 else g

    with pytest.raises(RuleError, match="an update rule can't decide by `if` whether") as caught:
        trace(update, {"lr": 0.1})
    assert len(str(caught.value)) < 1000


def test_a_large_rule_is_explained_with_names_for_its_parts() -> None:
    p = leaf(torch.full((3,), 2.0), torch.ones(3))
    optimizer = optimizer_of(lambda p, g, s, h: p - squared(g, 60) * squared(h.lr + 1.0, 60), [p])
    optimizer.step()
    shown = optimizer.explain(source=True).split("define")[0]
    first = re.search(r"pass 1   (t\d+) = g \* g\n", shown)
    assert first
    assert f" = {first[1]} * {first[1]}\n" in shown
    assert len(shown) < 6000


@pytest.mark.parametrize("backend", ["llvm", "eager"])
def test_five_thousand_steps_one_after_the_other(backend: str) -> None:
    def chained(p: Any, g: Any, s: Any, h: Any) -> Any:
        number = h.lr
        for _ in range(5000):
            p = p + g
            number = number + 1.0
        s.kept = s.kept + p
        return p * number

    p = leaf(torch.zeros(3), torch.ones(3))
    optimizer = optimizer_of(chained, [p], backend, lr=0.0)
    optimizer.step()
    assert p.tolist() == [5000.0 * 5000.0] * 3
    assert optimizer.state[p]["kept"].tolist() == [5000.0] * 3
    if backend == "eager":
        assert len(optimizer.explain(source=True)) < 2_000_000
        assert len(str(chained(grad(), grad(), optimizer_state(), optimizer_state()))) < 20_000


def numbers(p: Any, g: Any, s: Any, h: Any) -> Any:
    """Thousands of numbers of the host, each of which is used at once and goes into the next."""
    number = h.lr
    for _ in range(1500):
        number = number + 1.0
        p = p + g * number
    s.kept = number
    return p


def functions(p: Any, g: Any, s: Any, h: Any) -> Any:
    x = g
    for _ in range(900):
        x = x * 0.5 + rule.sqrt(x * x + 1)
    return p - h.lr * x


def answers(p: Any, g: Any, s: Any, h: Any) -> Any:
    number = h.lr
    for _ in range(100):
        number = number + 1.0 if number else number
    return p * number


@pytest.mark.parametrize("update", [numbers, functions, answers])
def test_text_and_time_of_an_explanation_are_bounded(update: Any) -> None:
    p = leaf(torch.zeros(3), torch.ones(3))
    optimizer = optimizer_of(update, [p], "eager" if update is numbers else "llvm", {"kept": rule.scalar()})
    optimizer.step()
    before = time.process_time()
    shown = optimizer.explain(source=True)
    assert time.process_time() - before < 10
    assert len(shown) < 150_000
    assert update is answers or re.search(r"\.\.\. [\d,]+ lines \.\.\.", shown)


def test_what_is_too_large_for_vectors_has_the_same_bits() -> None:
    found = []
    for backend in ("llvm", "eager"):
        p = leaf(torch.linspace(-3, 3, 1001), torch.linspace(2, -5, 1001))
        optimizer_of(functions, [p], backend).step()
        found.append(p.detach())
    assert torch.equal(*found)


@pytest.mark.parametrize("backend", ["llvm", "eager"])
def test_three_thousand_steps_of_rows_one_after_the_other(backend: str) -> None:
    def chained(p: Any, g: Any, s: Any, h: Any) -> Any:
        rows = rule.mean(g, dim=-1)
        for _ in range(3000):
            rows = rows + 1.0
        return p + rows + rule.mean(rows, dim=-2)

    p = leaf(torch.zeros(2, 3), torch.ones(2, 3))
    optimizer_of(chained, [p], backend, lr=0.0).step()
    assert p.tolist() == [[2 * 3001.0] * 3] * 2


class optimizer_state:  # noqa: N801
    """Stands for state and hyperparameters where a rule is only written down."""

    lr = 0.0
    kept: Any = 0.0


@pytest.mark.parametrize("backend", ["llvm", "eager"])
def test_minus_zero_is_not_zero(backend: str) -> None:
    found = []
    for zero in (-0.0, 0.0, -0.0):
        p = leaf(torch.zeros(9), torch.ones(9))
        optimizer_of(lambda p, g, s, h, zero=zero: 1.0 / rule.minimum(g, zero), [p], backend).step()
        found.append(p.unique().tolist())
    assert found == [[-math.inf], [math.inf], [-math.inf]]


def test_minus_zero_and_zero_in_one_rule_and_of_the_host() -> None:
    p = leaf(torch.zeros(4), torch.ones(4))
    optimizer_of(
        lambda p, g, s, h: rule.where(p < 1, 1.0 / rule.minimum(g, -0.0), 1.0 / rule.minimum(g, 0.0)), [p]
    ).step()
    assert p.unique().tolist() == [-math.inf]
    found = []
    for zero in (-0.0, 0.0):
        p = leaf(torch.zeros(4), torch.ones(4))
        optimizer_of(lambda p, g, s, h, zero=zero: p + 1.0 / rule.minimum(h.lr, zero), [p]).step()
        found.append(p.unique().tolist())
    assert found == [[-math.inf], [math.inf]]


@pytest.mark.parametrize("backend", HOSTS)
def test_a_number_that_turns_to_minus_zero_counts(backend: str) -> None:
    p = leaf(torch.zeros(4), torch.ones(4))
    optimizer = optimizer_of(lambda p, g, s, h: 1.0 / (h.zero * g), [p], backend, zero=0.0)
    found = []
    for zero in (0.0, -0.0, 0.0):
        optimizer.param_groups[0]["zero"] = zero
        optimizer.step()
        found.append(p.unique().tolist())
    assert found == [[math.inf], [-math.inf], [math.inf]]


@pytest.mark.parametrize("backend", HOSTS)
def test_a_slot_of_minus_zero_beside_one_of_zero(backend: str) -> None:
    def update(p: Any, g: Any, s: Any, h: Any) -> Any:
        s.kept = s.kept * h.one
        return 1.0 / (s.kept * g)

    params = [leaf(torch.zeros(4), torch.ones(4)) for _ in range(2)]
    optimizer = optimizer_of(update, params, backend, {"kept": rule.scalar(0.0)}, one=1.0)
    optimizer.step()
    optimizer.state[params[1]]["kept"] = torch.tensor(-0.0)
    optimizer.step()
    assert [p.unique().tolist() for p in params] == [[math.inf], [-math.inf]]


@pytest.mark.parametrize("count", [3, 40])
@pytest.mark.parametrize("name", ["minimum", "maximum"])
def test_of_two_zeros_every_backend_takes_the_second(name: str, count: int) -> None:
    smaller = getattr(rule, name)
    for first, second in ((-0.0, 0.0), (0.0, -0.0)):
        for backend in ("llvm", "triton", "eager"):
            p = leaf(torch.full((count,), first), torch.ones(count))
            optimizer_of(lambda p, g, s, h, two=second: 1.0 / smaller(p, two), [p], backend).step()
            assert p.unique().tolist() == [math.copysign(math.inf, second)], (first, second, backend)
