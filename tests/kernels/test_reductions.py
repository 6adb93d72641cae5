"""Norms, sums, means and largest values, over a parameter and over all: right, and the same bits on any threads."""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import COMPILED, FLOATS, optimizer_of
from tensors import grad_of, leaf, normal
from torch import Tensor

import steprule
from steprule.kernels.cpu import pool
from steprule.kernels.tables import CHUNK
from steprule.rule import array, isnan, matrix, max_abs, mean, norm, sum, where

THREADS = [1, 2, 4, 7]


REDUCED: dict[str, tuple[Callable[..., Any], Callable[[Tensor], Tensor]]] = {
    "sum": (sum, lambda x: x.sum()),
    "norm": (norm, lambda x: x.norm()),
    "mean": (mean, lambda x: x.mean()),
    "max_abs": (max_abs, lambda x: x.abs().max()),
}


def measured(params: list[Tensor], what: str, scope: str, backend: str) -> list[Tensor]:
    """What a reduction of 2 p - g gives in each parameter, as a slot of float64."""

    def measure(p: Any, g: Any, s: Any, h: Any) -> Any:
        found = REDUCED[what][0](2 * p - g, scope)
        s.found = where(isnan(p), found, found)
        return p

    optimizer = optimizer_of(measure, params, backend, {"found": array(dtype="float64")})
    optimizer.step()
    return [optimizer.state[p]["found"] for p in params]


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("scope", ["tensor", "all"])
@pytest.mark.parametrize("what", REDUCED)
def test_against_torch_in_float64(what: str, scope: str, backend: str) -> None:
    """Parameters of several dtypes make several launches; the tensors have one chunk, many, or a bit of one."""
    sizes = [1, 7, CHUNK, 3 * CHUNK + 5]
    params = [leaf(normal(n, seed=n, dtype=d), normal(n, seed=n + 1, dtype=d)) for d in FLOATS for n in sizes]
    exact = [2 * p.detach().double() - grad_of(p).double() for p in params]

    found = measured(params, what, scope, backend)

    # 2 p - g is computed in float32, but for float64 parameters
    of_all = REDUCED[what][1](torch.cat(exact))
    for p, x, value in zip(params, exact, found, strict=True):
        expected = of_all if scope == "all" else REDUCED[what][1](x)
        size = x.abs().max() if what != "sum" else x.abs().sum()
        wide = p.dtype == torch.float64
        assert value.unique().numel() == 1
        torch.testing.assert_close(
            value[0], expected, rtol=1e-6, atol=(1e-13 if wide and scope == "tensor" else 2e-7) * size.item()
        )


@pytest.mark.parametrize("scope", ["tensor", "all"])
@pytest.mark.parametrize("what", REDUCED)
def test_the_same_bits_on_any_number_of_threads(what: str, scope: str) -> None:
    sizes = [1, 3 * CHUNK + 5, 100, 9 * CHUNK, 77_777]
    assert math.fsum(sizes) > pool.ALONE
    results = []
    for count in THREADS:
        torch.set_num_threads(count)
        params = [leaf(normal(n, seed=n), normal(n, seed=n + 1)) for n in sizes]
        results.append([x[0].item() for x in measured(params, what, scope, "llvm")])
        assert count == 1 or len(pool.pool.queues) >= count - 1
    assert all(result == results[0] for result in results)
    assert len(set(results[0])) == (1 if scope == "all" else len(sizes))


def test_whole_trainings_have_the_same_bits_on_any_number_of_threads() -> None:
    results = []
    for count in THREADS:
        torch.set_num_threads(count)
        params = [leaf(normal(n, seed=n)) for n in (40_000, 3, 130_001, 1, 17_000)]
        optimizer = steprule.Lamb(params, lr=0.01, clip_norm=1.0)
        for step in range(5):
            for i, p in enumerate(params):
                p.grad = normal(len(p), seed=100 * step + i)
            optimizer.step()
        results.append(torch.cat([*(p.detach() for p in params), optimizer.grad_norm.float().reshape(1)]))
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("what", REDUCED)
def test_nan_and_infinities_come_through_reductions_as_in_torch(what: str, bad: float, backend: str) -> None:
    sizes = [40, 2 * CHUNK + 3, 40]
    for place in (0, 17, CHUNK, 2 * CHUNK + 2):
        params = [leaf(normal(n, seed=n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)) for n in sizes]
        with torch.no_grad():
            params[1][place] = bad
        of_each = [x[0] for x in measured(params, what, "tensor", backend)]
        of_all = [x[0] for x in measured(params, what, "all", backend)]
        expected = [REDUCED[what][1](2 * p.detach()) for p in params]
        torch.testing.assert_close(torch.stack(of_each), torch.stack(expected), equal_nan=True)
        together = REDUCED[what][1](torch.cat([2 * p.detach() for p in params]))
        torch.testing.assert_close(torch.stack(of_all), together.expand(3), equal_nan=True)


@pytest.mark.parametrize("backend", COMPILED)
def test_reductions_of_empty_and_of_zero_dimensional_parameters(backend: str) -> None:
    def rule(p: Any, g: Any, s: Any, h: Any) -> Any:
        return p + norm(p) + 10 * sum(g) + 100 * max_abs(p) + 1000 * norm(g, "all") + 10000 * max_abs(g, "all")

    number, empty = leaf(torch.tensor(2.0), torch.tensor(3.0)), leaf(torch.empty(0, 2), torch.empty(0, 2))
    optimizer_of(rule, [empty, number], backend).step()
    assert number.item() == pytest.approx(2 + 2 + 30 + 200 + 3000 + 30000)


@pytest.mark.parametrize("backend", COMPILED)
def test_reductions_of_reductions_pass_by_pass(backend: str) -> None:
    def standardized(p: Any, g: Any, s: Any, h: Any) -> Any:
        centred = g - mean(g)
        return p - centred / (norm(centred) / h.root) + max_abs(centred - sum(centred) * p, "all")

    params = [leaf(normal(9, seed=i, dtype=torch.float64), normal(9, seed=i + 5, dtype=torch.float64)) for i in (0, 1)]
    expected = []
    centred = [grad_of(p) - grad_of(p).mean() for p in params]
    largest = max((c - c.sum() * p.detach()).abs().max() for c, p in zip(centred, params, strict=True))
    for p, c in zip(params, centred, strict=True):
        expected.append(p.detach() - c / (c.norm() / 3.0) + largest)
    optimizer_of(standardized, params, backend, root=3.0).step()
    for p, value in zip(params, expected, strict=True):
        torch.testing.assert_close(p.detach(), value, rtol=1e-13, atol=1e-13)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=5), st.integers(1, 3), st.sampled_from(COMPILED))
def test_all_means_all_groups_launches_and_dtypes(sizes: list[int], every: int, backend: str) -> None:
    def rule(p: Any, g: Any, s: Any, h: Any) -> Any:
        if h.decay:
            g = g * 1.0 + 0.0 * h.decay
        return p * 0 + sum(g, "all")

    dtypes = [torch.float32, torch.float64, torch.bfloat16]
    params = [leaf(torch.zeros(n, dtype=dtypes[i % every])) for i, n in enumerate(sizes)]
    for i, p in enumerate(params):
        p.grad = torch.full_like(p, i + 1)
    groups = [{"params": params[::2], "decay": 0.0}, {"params": params[1::2], "decay": 0.5}]
    optimizer_of(rule, groups if len(params) > 1 else groups[:1], backend, decay=0.0).step()
    expected = float(builtins.sum((i + 1) * n for i, n in enumerate(sizes)))
    for p in params:
        assert p.tolist() == [torch.tensor(expected).to(p.dtype).item()] * len(p)


def test_groups_that_reduce_different_things_over_all_are_refused_before_anything_changes() -> None:
    def rule(p: Any, g: Any, s: Any, h: Any) -> Any:
        s.m = s.m + g
        scale = max_abs(g, "all") if h.largest else norm(g, "all")
        return p - g / scale

    def later(p: Any, g: Any, s: Any, h: Any) -> Any:
        g = g / norm(g) if h.largest else g
        return p - g / norm(g, "all")

    for update in (rule, later):
        p, q = leaf(torch.ones(3), torch.ones(3)), leaf(torch.ones(3), torch.ones(3))
        groups = [{"params": [p], "largest": True}, {"params": [q], "largest": False}]
        optimizer = optimizer_of(update, groups, largest=False)
        with pytest.raises(RuntimeError, match=r"rules of .* reduce different things over all parameters.* in pass \d"):
            optimizer.step()
        assert torch.equal(torch.cat([p, q]), torch.ones(6))
        assert not optimizer.state


def test_a_group_that_reduces_nothing_over_all_is_left_out() -> None:
    def rule(p: Any, g: Any, s: Any, h: Any) -> Any:
        return p - g / norm(g, "all") if h.scaled else p - g

    p, q = leaf(torch.zeros(4), torch.ones(4)), leaf(torch.zeros(4), torch.ones(4))
    optimizer_of(rule, [{"params": [p], "scaled": True}, {"params": [q]}], scaled=False).step()
    assert p.tolist() == [-0.5] * 4
    assert q.tolist() == [-1.0] * 4


@pytest.mark.parametrize("backend", COMPILED)
def test_a_matrix_step_between_reductions(backend: str) -> None:
    def doubled(x: Tensor) -> Tensor:
        return 2 * x

    def rule(p: Any, g: Any, s: Any, h: Any) -> Any:
        s.m = 0.5 * s.m + g / norm(g)
        update = matrix(doubled, s.m)
        return p - update / norm(update) * max_abs(p) - sum(s.m)

    p = leaf(normal(3, 4, dtype=torch.float64), normal(3, 4, seed=1, dtype=torch.float64))
    start, m = p.detach().clone(), torch.zeros(3, 4, dtype=torch.float64)
    optimizer = optimizer_of(rule, [p], backend)
    for _ in range(2):
        m = 0.5 * m + grad_of(p) / grad_of(p).norm()
        start = start - 2 * m / (2 * m).norm() * start.abs().max() - m.sum()
        optimizer.step()
        torch.testing.assert_close(p.detach(), start, rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(optimizer.state[p]["m"], m, rtol=1e-13, atol=1e-14)
