"""Parameters, gradients and state that lie in memory in every way, and the tables that say where."""

from __future__ import annotations

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

from steprule import SGD, AdamW
from steprule.kernels.layout import dense
from steprule.kernels.tables import CHUNK, chunk_table, row_chunks

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(0, 3).contiguous().transpose(0, 3),
    "permuted": lambda t: t.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2),
    "offset": lambda t: torch.cat([torch.zeros(3, dtype=t.dtype), t.flatten()])[3:].view(t.shape),
    "unaligned": lambda t: unaligned(t.contiguous()),
    "every other": lambda t: torch.stack([t, t], -1)[..., 0],
    "cut": lambda t: torch.nn.functional.pad(t, (1, 2, 1, 0))[:, :, 1:, 1:-2],
    "negative view": lambda t: torch._neg_view(-t),
}
DENSE = ["contiguous", "channels_last", "transposed", "permuted", "offset", "unaligned"]
SHAPE = (3, 4, 2, 5)


def unaligned(t: Tensor) -> Tensor:
    """A copy one byte off any address that is a multiple of its elements' size."""
    buffer = np.zeros(t.numel() * t.element_size() + 1, np.uint8)
    made = torch.from_numpy(buffer[1:].view(t.numpy().dtype)).view(t.shape).copy_(t)
    assert made.data_ptr() % t.element_size() == 1
    return made


def trained(p: Tensor, grads: list[Tensor], backend: str = "auto") -> Any:
    optimizer = AdamW([p], lr=0.1, backend=backend)
    for g in grads:
        p.grad = g
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("of_grad", LAYOUTS)
@pytest.mark.parametrize("of_param", LAYOUTS)
def test_every_layout_of_parameter_and_gradient(of_param: str, of_grad: str) -> None:
    start = normal(*SHAPE, seed=1)
    grads = [normal(*SHAPE, seed=2 + i) for i in range(3)]
    p, q = leaf(LAYOUTS[of_param](start)), leaf(start.clone())

    ours = trained(p, [LAYOUTS[of_grad](g) for g in grads])
    theirs = trained(q, grads, "llvm")

    kernel = "llvm" if of_param in DENSE else "eager"
    assert ours.explain().startswith(f"{kernel}:")
    torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-6, atol=1e-7)
    for name in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(ours.state[p][name], theirs.state[q][name], rtol=1e-6, atol=1e-9)
        if of_param in DENSE:
            assert ours.state[p][name].stride() == p.stride()


@pytest.mark.parametrize("name", ["every other", "cut", "negative view"])
def test_what_is_not_dense_says_so_where_llvm_is_insisted_on(name: str) -> None:
    p = leaf(LAYOUTS[name](normal(*SHAPE)), normal(*SHAPE, seed=1))
    before = p.detach().clone()
    reason = "is a negative view" if name == "negative view" else "is not dense in memory"
    with pytest.raises(RuntimeError, match=f"backend='llvm' can't serve parameter 'conv': the parameter {reason}"):
        SGD([("conv", p)], backend="llvm").step()
    assert torch.equal(p.detach(), before)


def test_only_the_elements_of_a_view_are_written() -> None:
    whole = normal(6, 8, seed=1)
    before = whole.clone()
    rows, column = leaf(whole[1:3]), leaf(whole[3:, 2])
    for p in (rows, column):
        p.grad = torch.ones_like(p)
    SGD([rows, column], lr=1.0).step()
    before[1:3] -= 1
    before[3:, 2] -= 1
    assert torch.equal(whole, before)


@pytest.mark.parametrize("backend", COMPILED)
def test_expanded_and_conjugate_and_zero_gradients(backend: str) -> None:
    real, imaginary = torch.float64, torch.complex128
    z = normal(3, 4, dtype=imaginary)
    for grad, dtype in [
        (torch.ones((), dtype=real).expand(3, 4), real),
        (normal(4, dtype=real).expand(3, 4), real),
        (normal(3, 1, dtype=real).expand(3, 4), real),
        (z.conj(), imaginary),
        (z.t().contiguous().t().conj(), imaginary),
        (z.conj().imag, real),
        (z.t().conj().t().imag, real),
        (torch._efficientzerotensor(3, 4, dtype=real), real),
    ]:
        p = leaf(normal(3, 4, seed=7, dtype=dtype))
        start = p.detach().clone()
        optimizer = SGD([p], lr=0.5, backend=backend)
        for expected in (grad, grad.resolve_conj().resolve_neg().clone(), 2 * grad.clone(), grad):
            p.grad = expected
            optimizer.step()
        torch.testing.assert_close(p.detach(), start - 0.5 * 5 * grad.clone(), rtol=1e-14, atol=1e-14)


def test_a_conjugate_view_as_a_parameter_is_refused_as_in_torchs_adam() -> None:
    for algorithm in (torch.optim.Adam, AdamW, SGD):
        p = torch.ones(3, dtype=torch.complex64).conj().requires_grad_()
        p.grad = torch.ones(3, dtype=torch.complex64)
        with pytest.raises(RuntimeError, match="conjugate"):
            algorithm([p], lr=0.1).step()


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr], ids=str)
def test_sparse_parameters_are_refused_by_name(layout: torch.layout) -> None:
    p = leaf(torch.eye(3).to_sparse(layout=layout))
    p.grad = torch.eye(3).to_sparse(layout=layout)
    with pytest.raises(RuntimeError, match=f"parameter 'w' is a {layout} tensor; give it as torch.strided"):
        SGD([("w", p)], lr=0.1).step()


@pytest.mark.parametrize("backend", COMPILED)
def test_empty_and_zero_dimensional_parameters(backend: str) -> None:
    shapes: list[tuple[int, ...]] = [(), (0,), (3, 0), (0, 2, 2), (1,), (1, 1, 1)]
    ours, theirs = ([leaf(normal(*s, seed=i)) for i, s in enumerate(shapes)] for _ in range(2))
    optimizers = [AdamW(ours, lr=0.1, clip_norm=0.5, backend=backend), torch.optim.AdamW(theirs, lr=0.1)]
    for step in range(3):
        for params in (ours, theirs):
            for i, p in enumerate(params):
                p.grad = normal(*p.shape, seed=10 + i + step)
        torch.nn.utils.clip_grad_norm_(theirs, 0.5)
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
        state = optimizers[0].state[p]
        assert state["exp_avg"].shape == p.shape
        assert state["step"].item() == 3
    if backend == "llvm":
        assert optimizers[0].explain().count("llvm:") == 1


@pytest.mark.parametrize("backend", COMPILED)
def test_only_empty_parameters(backend: str) -> None:
    p = leaf(torch.empty(0, 4), torch.empty(0, 4))
    optimizer = AdamW([p], clip_norm=1.0, backend=backend)
    optimizer.step()
    optimizer.step()
    assert optimizer.grad_norm.item() == 0
    assert optimizer.state[p]["step"].item() == 2


def test_dimensions_of_one_may_have_any_stride() -> None:
    start, grad = normal(5, 1, 4), normal(5, 1, 4, seed=1)
    p = leaf(torch.empty_strided((5, 1, 4), (4, 77, 1)).copy_(start))
    p.grad = torch.empty_strided((5, 1, 4), (4, 1, 1)).copy_(grad)
    optimizer = SGD([p], lr=1.0, momentum=0.5)
    optimizer.step()
    assert torch.equal(p.detach(), start - grad)
    assert optimizer.explain().startswith("llvm:")


@pytest.mark.parametrize("backend", COMPILED)
def test_a_state_of_another_layout_is_brought_to_the_parameters(backend: str) -> None:
    p = leaf(normal(4, 6).t())
    optimizer = SGD([p], lr=1.0, momentum=0.5, backend=backend)
    state = normal(6, 4, seed=1)
    optimizer.state[p]["momentum_buffer"] = state.clone()
    p.grad = normal(6, 4, seed=2)
    start = p.detach().clone()
    optimizer.step()
    expected = 0.5 * state + p.grad
    torch.testing.assert_close(optimizer.state[p]["momentum_buffer"], expected)
    torch.testing.assert_close(p.detach(), start - expected)


@pytest.mark.parametrize("backend", COMPILED)
def test_a_state_that_is_a_view_of_other_values_is_resolved(backend: str) -> None:
    z = normal(4, dtype=torch.complex64)
    p, q = leaf(torch.zeros(4, dtype=torch.complex64)), leaf(torch.zeros(4))
    optimizer = SGD([p, q], lr=1.0, momentum=0.5, backend=backend)
    for x, state in ((p, z.conj()), (q, z.conj().imag)):
        optimizer.state[x]["momentum_buffer"] = state
        x.grad = torch.zeros_like(x)
    optimizer.step()
    torch.testing.assert_close(p.detach(), -0.5 * z.conj())
    torch.testing.assert_close(q.detach(), 0.5 * z.imag)
    torch.testing.assert_close(optimizer.state[p]["momentum_buffer"], 0.5 * z.conj().resolve_conj())
    torch.testing.assert_close(optimizer.state[q]["momentum_buffer"], -0.5 * z.imag)


# Whether a tensor is dense.


@given(
    st.lists(st.integers(0, 3), max_size=4),
    st.randoms(use_true_random=False),
    st.booleans(),
)
def test_dense_means_that_every_offset_occurs_once(shape: list[int], random: Any, gap: bool) -> None:
    order = list(range(len(shape)))
    random.shuffle(order)
    stride, strides = 1 + gap, [0] * len(shape)
    for i in order:
        strides[i] = stride
        stride *= max(shape[i], 1)
    tensor = torch.empty_strided(shape, strides)
    offsets = {sum(i * s for i, s in zip(index, strides, strict=True)) for index in np.ndindex(*shape)}
    assert dense(tensor) == (offsets == set(range(tensor.numel())))


# The tables.


@given(st.lists(st.integers(0, 100), min_size=1, max_size=12), st.integers(1, 17))
def test_chunks_cover_every_element_once_and_in_order(sizes: list[int], limit: int) -> None:
    table = chunk_table(sizes, limit)
    covered = [(t, i) for t, offset, grad, count in table.tolist() for i in range(offset, offset + count)]
    assert covered == [(t, i) for t, size in enumerate(sizes) for i in range(size)]
    assert (table[:, 1] == table[:, 2]).all()
    assert ((table[:, 3] >= 1) & (table[:, 3] <= limit)).all()


def test_chunks_of_tensors_beyond_32_bits() -> None:
    sizes = [5, 2**31 + 3, 0, 2**33 + CHUNK + 1]
    table = chunk_table(sizes)
    assert table.dtype == np.int64
    tensor, offset, grad, count = table.T
    assert (np.bincount(tensor, count, minlength=4) == sizes).all()
    for t, size in enumerate(sizes):
        mine = tensor == t
        ends = (offset + count)[mine]
        if size:
            assert ends[-1] == size
            assert (offset[mine][1:] == ends[:-1]).all()
            assert offset[mine][0] == 0
    assert offset.max() > 2**33
    assert (offset == grad).all()


def test_rows_of_tensors_beyond_32_bits() -> None:
    width = 2**20 + 7
    rows = np.array([0, 1, 2**12, 2**13 - 1, 2**13], np.int64)
    table = row_chunks(3, rows, width)
    assert table.dtype == np.int64
    assert table[:, 3].sum() == len(rows) * width
    elements = table[:, 3]
    assert (table[:, 2] == np.cumsum(elements) - elements).all()
    of_row = table[:, 2] // width
    assert (table[:, 1] - rows[of_row] * width == table[:, 2] - of_row * width).all()
    assert table[:, 1].max() > 2**33


@given(
    st.sets(st.integers(0, 40)).map(sorted),
    st.integers(0, 9),
    st.integers(1, 13),
)
def test_row_chunks_cover_the_rows_present_once_and_in_order(rows: list[int], width: int, limit: int) -> None:
    table = row_chunks(2, np.asarray(rows, np.int64), width, limit)
    found = [(o + i, g + i) for _, o, g, count in table.tolist() for i in range(count)]
    assert found == [(r * width + i, k * width + i) for k, r in enumerate(rows) for i in range(width)]
    assert (table[:, 0] == 2).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3 * CHUNK), min_size=1, max_size=5), st.sampled_from(COMPILED))
def test_every_element_of_every_size_is_updated_once(sizes: list[int], backend: str) -> None:
    params = [leaf(torch.arange(n, dtype=torch.float64), torch.arange(n, dtype=torch.float64)) for n in sizes]
    optimizer_of(lambda p, g, s, h: p + 3 * g + 1, params, backend).step()
    for p in params:
        assert torch.equal(p.detach(), 4 * torch.arange(len(p), dtype=torch.float64) + 1)
