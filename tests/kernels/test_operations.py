"""Every operation of the language, on every kind of value: as torch and math have it, eager and compiled."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import COMPILED, optimizer_of
from tensors import leaf, normal
from torch import Tensor

from steprule import rule
from steprule.rule.functions import __all__ as functions

SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -2.0, 3.0, 7.25, -7.5, 1e-3, 1e30, -1e30, 1e-42, math.inf, -math.inf, math.nan]

EXACT: dict[str, tuple[Callable[..., Any], Callable[..., Tensor]]] = {
    "add": (lambda a, b: a + b, torch.add),
    "sub": (lambda a, b: a - b, torch.sub),
    "mul": (lambda a, b: a * b, torch.mul),
    "div": (lambda a, b: a / b, torch.div),
    "neg": (lambda a, b: -a, lambda a, b: -a),
    "abs": (lambda a, b: rule.abs(a), lambda a, b: a.abs()),
    "square": (lambda a, b: rule.square(a), lambda a, b: a * a),
    "sqrt": (lambda a, b: rule.sqrt(a), lambda a, b: root(a)),
    "rsqrt": (lambda a, b: rule.rsqrt(a), lambda a, b: torch.ones_like(a) / root(a)),
    "lerp": (lambda a, b: rule.lerp(a, b, 0.25), lambda a, b: a + 0.25 * (b - a)),
    "floor": (lambda a, b: rule.floor(a), lambda a, b: a.floor()),
    "ceil": (lambda a, b: rule.ceil(a), lambda a, b: a.ceil()),
    "round": (lambda a, b: rule.round(a), lambda a, b: a.round()),
    "sign": (lambda a, b: rule.sign(a), lambda a, b: a.sign()),
    "minimum": (rule.minimum, torch.minimum),
    "maximum": (rule.maximum, torch.maximum),
    "clip": (lambda a, b: rule.clip(a, -1, 2.5), lambda a, b: a.clamp(-1, 2.5)),
    "isnan": (lambda a, b: rule.isnan(a), lambda a, b: a.isnan()),
    "where": (lambda a, b: rule.where(a, b, 2), lambda a, b: torch.where(a.bool(), b, 2)),
    "lt": (lambda a, b: a < b, torch.lt),
    "le": (lambda a, b: a <= b, torch.le),
    "gt": (lambda a, b: a > b, torch.gt),
    "ge": (lambda a, b: a >= b, torch.ge),
    "eq": (lambda a, b: a == b, torch.eq),
    "ne": (lambda a, b: a != b, torch.ne),
    "and": (lambda a, b: (a > 0) & b, lambda a, b: (a > 0) & b.bool()),
    "or": (lambda a, b: (a > 0) | b, lambda a, b: (a > 0) | b.bool()),
    "not": (lambda a, b: ~(a > b), lambda a, b: ~(a > b)),
    "where of a comparison": (
        lambda a, b: rule.where(a < b, a, b),
        lambda a, b: torch.where(a < b, a, b),
    ),
    "a comparison's number": (
        lambda a, b: (a > b) * 3 - (a < b) + (b > 0) + -(a > 0),
        lambda a, b: (a > b) * 3.0 - (a < b) * 1.0 + (b > 0) * 1.0 - (a > 0) * 1.0,
    ),
    "a comparison compared": (lambda a, b: (a > b) == (b > 0), lambda a, b: (a > b) == (b > 0)),
    "the least of comparisons": (
        lambda a, b: rule.minimum(a > b, b) + rule.maximum(a > b, a > 0),
        lambda a, b: torch.minimum((a > b).to(a.dtype), b) + torch.maximum((a > b), (a > 0)).to(a.dtype),
    ),
    "where of numbers": (
        lambda a, b: rule.where(a > b, 0.1, 0.7),
        lambda a, b: torch.where(a > b, torch.tensor(0.1, dtype=a.dtype), torch.tensor(0.7, dtype=a.dtype)),
    ),
    "where of comparisons": (
        lambda a, b: rule.where(a > 0, a > b, b > 0) + 1,
        lambda a, b: torch.where(a > 0, a > b, b > 0) + 1.0,
    ),
}
"""What has the same bits as IEEE 754 has it; torch's own root need not."""
ROUNDED: dict[str, tuple[Callable[..., Any], Callable[..., Tensor]]] = {
    "exp": (lambda a, b: rule.exp(a), lambda a, b: a.exp()),
    "log": (lambda a, b: rule.log(a), lambda a, b: a.log()),
    "tanh": (lambda a, b: rule.tanh(a), lambda a, b: a.tanh()),
    "sin": (lambda a, b: rule.sin(a), lambda a, b: a.sin()),
    "cos": (lambda a, b: rule.cos(a), lambda a, b: a.cos()),
    "atan2": (rule.atan2, torch.atan2),
    "erf": (lambda a, b: rule.erf(a), lambda a, b: a.erf()),
    "power": (rule.power, torch.pow),
}
OPERATIONS = EXACT | ROUNDED


def root(x: Tensor) -> Tensor:
    """The correctly rounded square root, as the processor has it."""
    with np.errstate(invalid="ignore"):
        return torch.from_numpy(np.sqrt(x.numpy()))


def test_every_function_is_tested() -> None:
    elsewhere = {"given", "matrix", "max_abs", "eps", "mean", "ndim", "norm", "size", "stored", "sum"}
    assert {name for name in functions if name not in elsewhere} <= OPERATIONS.keys() | {"power"}


def pairs(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Every two special values, and random ones of every size."""
    special = torch.tensor(SPECIAL, dtype=torch.float64).to(dtype)
    scale = 10.0 ** (6 * normal(400, seed=3, dtype=torch.float64)).clamp(-15, 15)
    random = (normal(2, 400, seed=4, dtype=torch.float64) * scale).to(dtype)
    a, b = torch.cartesian_prod(special, special).T
    return torch.cat([a, random[0]]), torch.cat([b, random[1]])


def assert_rounded(found: Tensor, expected: Tensor, exact: bool, what: Any) -> None:
    """Equal where torch's result is exact, to 4 roundings elsewhere; zeros of either sign are one."""
    expected = expected.to(found.dtype)
    rtol = 0.0 if exact else 4 * torch.finfo(found.dtype).eps
    atol = 0.0 if exact else 4 * torch.finfo(found.dtype).smallest_normal * torch.finfo(found.dtype).eps
    wrong = ~torch.isclose(found, expected, rtol=rtol, atol=atol, equal_nan=True)
    assert not wrong.any(), [
        (w, f.item(), e.item()) for w, f, e in zip(what(wrong), found[wrong], expected[wrong], strict=True)
    ][:5]


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_on_arrays(name: str, dtype: torch.dtype, backend: str) -> None:
    ours, theirs = OPERATIONS[name]
    a, b = pairs(dtype)
    p = leaf(a.clone(), b)

    optimizer_of(lambda p, g, s, h: ours(p, g), [p], backend).step()

    assert_rounded(p.detach(), theirs(a, b), name in EXACT, lambda w: zip(a[w].tolist(), b[w].tolist(), strict=True))


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_on_an_array_and_a_number_of_the_host(name: str, dtype: torch.dtype, backend: str) -> None:
    ours, theirs = OPERATIONS[name]
    a, _ = pairs(dtype)
    numbers = torch.tensor(SPECIAL, dtype=torch.float64).to(dtype)
    left = [leaf(a.clone(), torch.zeros_like(a)) for _ in numbers]
    right = [leaf(a.clone(), torch.zeros_like(a)) for _ in numbers]

    def groups(params: list[Tensor]) -> list[dict[str, Any]]:
        return [{"params": [p], "x": x.item()} for p, x in zip(params, numbers, strict=True)]

    optimizer_of(lambda p, g, s, h: ours(p, h.x), groups(left), backend, x=0.0).step()
    optimizer_of(lambda p, g, s, h: ours(h.x, p), groups(right), backend, x=0.0).step()

    for x, p, q in zip(numbers.tolist(), left, right, strict=True):
        # what torch has otherwise for a number than for a tensor of it
        compared = (a > -math.inf) | (x != 0.5) if name == "power" else torch.full((len(a),), True)
        numbered = [(v, x) for v in a[compared].tolist()]
        say = lambda w, shown=numbered: [v for v, wrong in zip(shown, w, strict=True) if wrong]
        filled = torch.full_like(a, x)
        assert_rounded(p.detach()[compared], theirs(a, filled)[compared], name in EXACT, say)
        # what has no array in it is computed in double and rounded once
        wide = (filled.double(), a.double()) if name == "rsqrt" else (filled, a)
        assert_rounded(q.detach()[compared], theirs(*wide).to(dtype)[compared], name in EXACT, say)


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("name", OPERATIONS)
def test_on_numbers_of_the_host(name: str, backend: str) -> None:
    ours, theirs = OPERATIONS[name]
    a, b = torch.cartesian_prod(*[torch.tensor(SPECIAL, dtype=torch.float64)] * 2).T
    params = [leaf(torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)) for _ in a]
    groups = [{"params": [p], "x": x.item(), "y": y.item()} for p, x, y in zip(params, a, b, strict=True)]

    optimizer_of(lambda p, g, s, h: ours(h.x, h.y), groups, backend, x=0.0, y=0.0).step()

    found = torch.cat(params).detach()
    assert_rounded(found, theirs(a, b), name in EXACT, lambda w: zip(a[w].tolist(), b[w].tolist(), strict=True))


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("name", OPERATIONS)
def test_on_results_of_reductions(name: str, backend: str) -> None:
    ours, theirs = OPERATIONS[name]
    # the sum of -0.0 alone is 0.0
    a, b = torch.cartesian_prod(*[torch.tensor(SPECIAL, dtype=torch.float64) + 0.0] * 2).T
    params = [leaf(x.reshape(1).clone(), y.reshape(1)) for x, y in zip(a, b, strict=True)]

    optimizer_of(lambda p, g, s, h: ours(rule.sum(p), rule.sum(g)), params, backend).step()

    found = torch.cat(params).detach()
    assert_rounded(found, theirs(a, b), name in EXACT, lambda w: zip(a[w].tolist(), b[w].tolist(), strict=True))


@pytest.mark.parametrize("backend", COMPILED)
def test_reduced_numbers_are_computed_in_double_precision(backend: str) -> None:
    p = leaf(torch.tensor([1.0, 2.0**-30], dtype=torch.float32), torch.ones(2))
    optimizer_of(lambda p, g, s, h: p * 0 + 2.0**40 * (rule.sum(p) - 1), [p], backend).step()
    assert p.tolist() == [1024.0, 1024.0]


# Random rules: the compiled kernel against the reference.

BINARY = [lambda a, b: a + b, lambda a, b: a - b, lambda a, b: a * b, rule.minimum, rule.maximum]
BINARY += [lambda a, b: a / (1 + b * b), lambda a, b: rule.where(a > b, a, 0.5 * b), lambda a, b: (a < b) * b]
UNARY = [lambda a: -a, rule.abs, rule.tanh, rule.sign, lambda a: rule.sqrt(rule.abs(a)), lambda a: rule.exp(-a * a)]
UNARY += [rule.norm, rule.mean, rule.max_abs, lambda a: rule.norm(a, "all"), lambda a: rule.max_abs(a, "all")]
LEAVES = ["p", "g", "m", "v", "lr", "x", "step", "new"]

recipes = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: (
        st.tuples(st.integers(0, len(UNARY) - 1), inner) | st.tuples(st.integers(0, len(BINARY) - 1), inner, inner)
    ),
    max_leaves=7,
)


def cook(recipe: Any, values: dict[str, Any], array: Any) -> Any:
    """An expression by its recipe; what is no array is made one where a reduction needs it."""
    if isinstance(recipe, str):
        return values[recipe]
    which, *inner = recipe
    cooked = [cook(r, values, array) for r in inner]
    if len(cooked) == 2:
        return BINARY[which](*cooked)
    if which >= UNARY.index(rule.norm):
        return UNARY[which](cooked[0] + 0 * array)
    return UNARY[which](cooked[0])


@settings(max_examples=40, deadline=None)
@given(recipes, recipes, recipes, st.sampled_from([torch.float64, torch.float32]))
def test_random_rules_do_the_same_compiled_and_eager(first: Any, second: Any, third: Any, dtype: torch.dtype) -> None:
    def random_rule(p: Any, g: Any, s: Any, h: Any) -> Any:
        names = {"p": p, "g": g, "lr": h.lr, "x": h.x, "step": s.step, "new": s.is_new}
        s.m = cook(first, names | {"m": s.m, "v": s.v}, p) + 0 * p
        s.v = cook(second, names | {"m": s.m, "v": s.v}, p) + 0 * p
        return rule.tanh(cook(third, names | {"m": s.m, "v": s.v}, p))

    found = []
    for backend in COMPILED:
        shapes: list[tuple[int, ...]] = [(), (7,), (4, 5)]
        params = [leaf(normal(*s, seed=len(s), dtype=dtype)) for s in shapes]
        optimizer = optimizer_of(random_rule, params, backend, x=0.75)
        for step in range(2):
            for p in params:
                p.grad = normal(*p.shape, seed=p.ndim + 100 * step, dtype=dtype)
            optimizer.step()
        found.append([t for p in params for t in (p.detach(), *(optimizer.state[p][k] for k in ("m", "v")))])

    wide = dtype == torch.float64
    torch.testing.assert_close(*found, rtol=1e-9 if wide else 2e-3, atol=1e-9 if wide else 2e-3, equal_nan=True)


@pytest.mark.parametrize("backend", COMPILED)
def test_slots_are_given_what_stood_there_before_the_step(backend: str) -> None:
    def update(p: Any, g: Any, s: Any, h: Any) -> Any:
        s.before = p
        s.chosen = rule.where(h.lr > 0, p, g)
        s.odd, s.even = s.even, s.odd
        return p - g

    p = leaf(torch.ones(3), torch.ones(3))
    optimizer = optimizer_of(update, [p], backend, {"odd": rule.array(1.0), "even": rule.array(2.0)})
    optimizer.step()
    found = {name: value.tolist() for name, value in optimizer.state[p].items()}
    assert found == {"before": [1.0] * 3, "chosen": [1.0] * 3, "odd": [2.0] * 3, "even": [1.0] * 3}
    assert p.tolist() == [0.0] * 3
