"""Sparse gradients: only the rows they hold are read and written, state too, and nothing is lost or counted twice."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import COMPILED, optimizer_of
from tensors import coo, leaf, normal
from torch import nn

import steprule
from steprule import SGD, Adagrad, Adam, AdamW
from steprule.rule import max_abs, mean, norm, sum, where


def everything(p: Any, g: Any, s: Any, h: Any) -> Any:
    """A rule with state, decay, conditions, a scalar slot and the step."""
    g = g + h.decay * p
    s.m = where(s.is_new, g, 0.9 * s.m + g)
    s.count = s.step
    return p - h.lr / s.step * where(s.m > 0, s.m, 2 * s.m)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from(COMPILED))
def test_the_rows_present_do_what_a_dense_parameter_of_them_would(data: Any, backend: str) -> None:
    depth = data.draw(st.integers(1, 2))
    size = tuple(data.draw(st.lists(st.integers(1, 9), min_size=depth, max_size=depth + 2)))
    extents, width = size[:depth], size[depth:]
    every = int(np.prod(extents))
    p = leaf(normal(*size, seed=1, dtype=torch.float64))
    whole, state = p.detach().clone(), torch.zeros(size, dtype=torch.float64)
    optimizer = optimizer_of(everything, [p], backend, decay=0.1, lr=0.25)

    for step in range(1, 4):
        given_rows = data.draw(st.lists(st.integers(0, every - 1), max_size=12))
        index = np.array(np.unravel_index(np.array(given_rows, int), extents))
        values = normal(len(given_rows), *width, seed=step, dtype=torch.float64)
        p.grad = coo(index, values, size)
        kept, before = p.grad.clone(), p.detach().reshape(every, -1).clone()
        optimizer.step()

        present = sorted(set(given_rows))
        flat, memory = whole.reshape(every, -1), state.reshape(every, -1)
        for row in present:
            g = values[[k for k, r in enumerate(given_rows) if r == row]].sum(0).reshape(-1) + 0.1 * flat[row]
            memory[row] = g if step == 1 else 0.9 * memory[row] + g
            flat[row] -= 0.25 / step * torch.where(memory[row] > 0, memory[row], 2 * memory[row])
        torch.testing.assert_close(p.detach(), whole, rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(optimizer.state[p]["m"], state, rtol=1e-13, atol=1e-14)
        absent = sorted(set(range(every)) - set(present))
        assert torch.equal(p.detach().reshape(every, -1)[absent], before[absent])
        assert optimizer.state[p]["count"].item() == step
        assert p.grad._nnz() == kept._nnz()
        assert torch.equal(p.grad._values(), kept._values())


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        (SGD, {"lr": 0.1}),
        (Adagrad, {"lr": 0.1, "lr_decay": 0.1}),
        (steprule.SparseAdam, {"lr": 0.1}),
    ],
)
def test_an_embedding_trains_as_with_torch(algorithm: Any, options: dict[str, Any], backend: str) -> None:
    theirs = getattr(torch.optim, algorithm.__name__)
    words = torch.tensor([[1, 5, 5, 2], [0, 1, 1, 9], [9, 9, 9, 9]])
    models = []
    for library, more in ((algorithm, {"backend": backend}), (theirs, {})):
        embedding = nn.Embedding(20, 3, sparse=True)
        with torch.no_grad():
            embedding.weight.copy_(normal(20, 3))
        optimizer = library(embedding.parameters(), **options, **more)
        for batch in words:
            optimizer.zero_grad()
            embedding(batch).square().sum().backward()
            with torch.sparse.check_sparse_tensor_invariants(False):
                optimizer.step()
        models.append(embedding.weight.detach())
    torch.testing.assert_close(*models, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64], ids=str)
def test_every_dtype_duplicates_and_no_rows_at_all(dtype: torch.dtype, backend: str) -> None:
    start = normal(6, 3, dtype=dtype)
    p, q = leaf(start.clone()), leaf(start.clone())
    optimizer = SGD([p, q], lr=0.5, maximize=True, l1=0.125, backend=backend)
    values = normal(4, 3, seed=1, dtype=dtype)
    p.grad = coo([4, 1, 4, 0], values, (6, 3))
    q.grad = coo(np.empty((1, 0)), torch.empty(0, 3, dtype=dtype), (6, 3))
    optimizer.step()
    dense = p.grad.to_dense()[[0, 1, 4]]
    real = torch.view_as_real if dtype.is_complex else torch.Tensor.clone
    before, grad, after = real(start[[0, 1, 4]]), real(dense), real(p.detach()[[0, 1, 4]].clone())
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(after, before - 0.5 * (0.125 * before.sign() - grad), rtol=4 * eps, atol=4 * eps)
    assert torch.equal(p.detach()[[2, 3, 5]], start[[2, 3, 5]])
    assert torch.equal(q.detach(), start)


@pytest.mark.parametrize("backend", COMPILED)
def test_a_sparse_gradient_of_a_number_and_of_an_empty_table(backend: str) -> None:
    number, empty, cut = leaf(torch.tensor(1.0)), leaf(torch.zeros(0, 3)), leaf(torch.zeros(3, 0))
    number.grad = coo(np.empty((0, 2)), torch.tensor([2.0, 3.0]), ())
    empty.grad = coo(np.empty((1, 0)), torch.empty(0, 3), (0, 3))
    cut.grad = coo([0, 2], torch.empty(2, 0), (3, 0))
    AdamW([number, empty, cut], lr=0.1, weight_decay=0, eps=0.0, backend=backend).step()
    assert number.item() == pytest.approx(0.9)


@pytest.mark.parametrize("backend", COMPILED)
def test_dense_and_sparse_gradients_may_alternate(backend: str) -> None:
    p, q = leaf(normal(5, 2, dtype=torch.float64)), leaf(normal(5, 2, dtype=torch.float64))
    ours, theirs = (optimizer_of(everything, [x], backend, decay=0.0, lr=0.1) for x in (p, q))
    for step in range(4):
        grad = normal(5, 2, seed=step, dtype=torch.float64)
        q.grad = grad
        p.grad = coo(range(5), grad, (5, 2)) if step % 2 else grad
        ours.step()
        theirs.step()
    assert torch.equal(p, q)
    assert ours.state[p]["step"].item() == 4


def test_a_launch_of_many_tables() -> None:
    params = [leaf(normal(n, 5, seed=n)) for n in (3, 40, 7, 1)]
    before = [p.detach().clone() for p in params]
    rows = [[0, 2], [3, 4, 5, 17, 39], [], [0]]
    for p, r in zip(params, rows, strict=True):
        p.grad = coo(r, torch.ones(len(r), 5), tuple(p.shape))
    optimizer = SGD(params, lr=1.0)
    optimizer.step()
    assert optimizer.explain().count("llvm:") == 1
    assert "float32, sparse gradients" in optimizer.explain()
    for p, r, start in zip(params, rows, before, strict=True):
        start[r] -= 1
        assert torch.equal(p.detach(), start)


def test_a_step_costs_what_its_rows_cost_whatever_the_size_of_the_table() -> None:
    seconds = []
    for count in (10_000, 1_000_000):
        p = leaf(torch.zeros(count, 16))
        p.grad = coo(torch.arange(64) * (count // 64), torch.ones(64, 16), (count, 16), is_coalesced=True)
        optimizer = Adam([p])
        optimizer.step()
        times = []
        for _ in range(30):
            start = time.perf_counter()
            optimizer.step()
            times.append(time.perf_counter() - start)
        seconds.append(min(times))
    # a pass over the larger table and its state would take 100 times as long
    assert seconds[1] < 10 * seconds[0]


def test_parameters_whose_rows_do_not_follow_each_other_go_to_torch_operations() -> None:
    p = leaf(normal(3, 4).t())
    start = p.detach().clone()
    p.grad = coo([1, 3], torch.ones(2, 3), (4, 3))
    optimizer = SGD([("embedding", p)], lr=1.0)
    optimizer.step()
    start[[1, 3]] -= 1
    assert torch.equal(p.detach(), start)
    assert optimizer.explain().startswith("eager: the parameter's rows are not contiguous")


# Reductions.


@pytest.mark.parametrize("backend", COMPILED)
def test_reductions_of_what_is_zero_in_absent_rows_are_those_of_the_dense_gradient(backend: str) -> None:
    def reducing(p: Any, g: Any, s: Any, h: Any) -> Any:
        return p - g * (norm(g) + sum(p * g) + max_abs(-g / 2) + mean(where(g > 0, g, 0.0)) + norm(g, "all"))

    p, q = leaf(normal(5, 2, dtype=torch.float64)), leaf(normal(5, 2, dtype=torch.float64))
    p.grad = coo([3, 1, 3], normal(3, 2, seed=1, dtype=torch.float64), (5, 2))
    q.grad = p.grad.to_dense()
    for x in (p, q):
        optimizer_of(reducing, [x], backend).step()
    torch.testing.assert_close(p, q, rtol=1e-14, atol=0)


@pytest.mark.parametrize("backend", COMPILED)
def test_clip_norm_of_sparse_and_dense_gradients_together(backend: str) -> None:
    sparse, dense = leaf(torch.zeros(5, 2)), leaf(torch.zeros(3))
    sparse.grad = coo([3, 1, 3], torch.tensor([[1.0, 2.0], [2.0, 0.0], [1.0, 2.0]]), (5, 2))
    dense.grad = torch.tensor([2.0, 2.0, 2.0])
    optimizer = SGD([sparse, dense], lr=1.0, clip_norm=3.0, backend=backend)
    optimizer.step()
    assert optimizer.grad_norm.item() == pytest.approx(6.0)
    torch.testing.assert_close(sparse.detach(), -0.5 * sparse.grad.to_dense())
    torch.testing.assert_close(dense.detach(), -0.5 * dense.grad)


@pytest.mark.parametrize(
    "reduced",
    [
        lambda p, g, s: norm(p),
        lambda p, g, s: sum(g + 1),
        lambda p, g, s: norm(s.m),
        lambda p, g, s: mean(g, "all"),
        lambda p, g, s: max_abs(where(g > 0, 1.0, 0.0) + where(g == 0, 1, 0)),
    ],
)
def test_rules_that_need_the_whole_parameter_are_refused_by_name(reduced: Any) -> None:
    def whole(p: Any, g: Any, s: Any, h: Any) -> Any:
        s.m = s.m + g
        return p - h.lr * g / reduced(p, g, s)

    p = leaf(torch.ones(4, 2))
    p.grad = coo([1], torch.ones(1, 2), (4, 2))
    optimizer = optimizer_of(whole, [("words.weight", p)])
    with pytest.raises(RuntimeError, match=r"does not support sparse gradients.*parameter 'words\.weight'"):
        optimizer.step()
    assert torch.equal(p.detach(), torch.ones(4, 2))
    assert not optimizer.state


def test_lamb_refuses_sparse_gradients() -> None:
    p = leaf(torch.ones(4, 2))
    p.grad = coo([1], torch.ones(1, 2), (4, 2))
    with pytest.raises(RuntimeError, match="Lamb does not support sparse gradients"):
        steprule.Lamb([p]).step()
