"""Kernels touch their tensors and nothing else: guard bytes round every buffer, and pages that may not be read."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import FLOATS, optimizer_of
from tensors import give, grad_of, normal
from torch import Tensor

import steprule
from steprule import Optimizer
from steprule.kernels.coding import CODES
from steprule.kernels.cpu import llvm
from steprule.kernels.row_tables import Lines
from steprule.rule import array, column, lerp, max_abs, mean, norm, row, sum, where

GUARD = 0xA5
F32, F64, BF16, F16 = FLOATS
C64, C128 = torch.complex64, torch.complex128
DTYPES = [(F32, F32, F32), (F64, F64, F64), (BF16, BF16, BF16), (F16, F16, F16), (C64, C64, C64), (C128, C64, C128)]
DTYPES += [(BF16, F32, F32), (F32, F16, BF16), (F64, F16, BF16), (F16, F64, F32)]
"""Of parameter, gradient and state."""


class Arena:
    """Memory filled with guard bytes, from which tensors are cut at any byte.

    They are filled and read as bytes: torch itself does not copy what is not aligned.
    """

    def __init__(self) -> None:
        self.buffers: dict[int, tuple[Any, int, int]] = {}

    def place(self, value: Tensor, offset: int, order: list[int] | None = None) -> Tensor:
        """A copy of a tensor so many bytes into a buffer of its own, its dimensions in any order in memory."""
        if value.numel() == 0:
            return value.clone()
        order = order or list(range(value.ndim))
        content = value.detach().permute(order).contiguous().flatten().view(torch.uint8).numpy()
        buffer = np.full(offset + len(content) + 67, GUARD, np.uint8)
        buffer[offset : offset + len(content)] = content
        flat = torch.frombuffer(buffer, dtype=value.dtype, offset=offset, count=value.numel())
        self.buffers[flat.data_ptr()] = (buffer, offset, len(content))
        return flat.view([value.shape[i] for i in order]).permute([order.index(i) for i in range(value.ndim)])

    def copy(self, placed: Tensor) -> Tensor:
        """What a tensor that was placed holds now, elsewhere."""
        if placed.numel() == 0:
            return placed.clone()
        buffer, offset, nbytes = self.buffers[placed.data_ptr()]
        flat = torch.frombuffer(bytearray(buffer[offset : offset + nbytes]), dtype=placed.dtype)
        return flat.as_strided(placed.shape, placed.stride())

    def outside(self) -> list[Any]:
        """All bytes that belong to no tensor."""
        return [np.delete(b, np.s_[at : at + n]) for b, at, n in self.buffers.values()]

    def intact(self) -> bool:
        return all((guards == GUARD).all() for guards in self.outside())


@dataclass
class Case:
    """One parameter: what it is and where it, its gradient and its state lie."""

    shape: list[int]
    dtype: torch.dtype
    grad_dtype: torch.dtype
    state_dtype: torch.dtype
    offsets: tuple[int, int, int, int]
    order: list[int]
    grad_order: list[int]
    seed: int


@st.composite
def cases(draw: Any, max_dims: int = 4, permuted: bool = True) -> Case:
    shape = draw(st.lists(st.integers(0, 9), min_size=1, max_size=max_dims))
    shape[-1] *= draw(st.sampled_from([1, 1, 7, 40]))
    order, grad_order = (draw(st.permutations(range(len(shape)))) for _ in range(2))
    plain = list(range(len(shape)))
    dtype, grad_dtype, state_dtype = draw(st.sampled_from(DTYPES))
    return Case(
        shape,
        dtype,
        grad_dtype,
        state_dtype,
        draw(st.tuples(*[st.integers(0, 65)] * 4)),
        list(order) if permuted else plain,
        list(grad_order) if permuted and draw(st.booleans()) else list(order) if permuted else plain,
        draw(st.integers(0, 1000)),
    )


def elementwise(p: Any, g: Any, s: Any, h: Any) -> Any:
    s.m = h.mu * s.m + g
    s.v = where(g > 0, s.v + s.m, s.v)
    return p - h.lr * s.m


def reducing(p: Any, g: Any, s: Any, h: Any) -> Any:
    s.m = lerp(s.m, g, 1 - h.mu)
    s.v = s.v + max_abs(g) * p
    return p - h.lr * s.m / (1 + norm(s.m) + max_abs(g, "all"))


RULES = {"elementwise": elementwise, "reducing": reducing}


def close(found: Tensor, expected: Tensor, dtypes: list[torch.dtype]) -> None:
    eps = max(torch.finfo(d).eps for d in dtypes)
    torch.testing.assert_close(found, expected, rtol=8 * eps, atol=8 * eps)


def optimizers(cases: list[Case], rule: str, params: list[Tensor], backend: str) -> Optimizer:
    slots = {"m": array(), "v": array()}
    optimizer = optimizer_of(RULES[rule], params, backend, slots, mu=0.75, lr=0.5)
    for case, p in zip(cases, params, strict=True):
        optimizer.state[p]["m"] = normal(*case.shape, seed=case.seed + 1, dtype=case.state_dtype)
    return optimizer


@settings(max_examples=60, deadline=None)
@given(st.lists(cases(), min_size=1, max_size=4), st.sampled_from(sorted(RULES)))
def test_plain_tensors_anywhere_in_memory(given_cases: list[Case], rule: str) -> None:
    arena = Arena()
    references: list[Tensor] = []
    placed: list[Tensor] = []
    for c in given_cases:
        value, grad = normal(*c.shape, seed=c.seed, dtype=c.dtype), normal(*c.shape, seed=-c.seed, dtype=c.grad_dtype)
        references.append(value.clone().requires_grad_())
        placed.append(arena.place(value, c.offsets[0], c.order).requires_grad_())
        give(references[-1], grad)
        # torch makes the copy of a gradient that lies otherwise than its parameter
        offset = c.offsets[1] if c.grad_order == c.order else 16 * (c.offsets[1] // 16)
        give(placed[-1], arena.place(grad, offset, c.grad_order))
    theirs = optimizers(given_cases, rule, references, "eager")
    ours = optimizers(given_cases, rule, placed, "llvm")
    for c, p in zip(given_cases, placed, strict=True):
        ours.state[p]["m"] = arena.place(ours.state[p]["m"], c.offsets[2], c.order)
        ours.state[p]["v"] = arena.place(torch.zeros(c.shape, dtype=c.dtype), c.offsets[3], c.order)
    kept = [dict(ours.state[p]) for p in placed]

    for _ in range(2):
        ours.step()
        theirs.step()

    assert arena.intact()
    for c, p, q, before in zip(given_cases, placed, references, kept, strict=True):
        assert torch.equal(arena.copy(grad_of(p)), grad_of(q))
        close(arena.copy(p.detach()), q.detach(), [c.dtype, c.state_dtype])
        for name in ("m", "v"):
            assert ours.state[p][name] is before[name]
            close(arena.copy(ours.state[p][name]), theirs.state[q][name], [c.dtype, c.state_dtype])


@settings(max_examples=50, deadline=None)
@given(st.lists(cases(max_dims=3, permuted=False), min_size=1, max_size=3), st.integers(1, 2), st.data())
def test_sparse_gradients_anywhere_in_memory(given_cases: list[Case], depth: int, data: Any) -> None:
    arena = Arena()
    references: list[Tensor] = []
    placed: list[Tensor] = []
    for c in given_cases:
        sparse_dim = min(depth, len(c.shape))
        extents, width = c.shape[:sparse_dim], c.shape[sparse_dim:]
        every = int(np.prod(extents))
        rows = sorted(data.draw(st.sets(st.integers(0, every - 1)))) if every else []
        index = torch.tensor(np.array(np.unravel_index(np.array(rows, int), extents)), dtype=torch.int64)
        values = normal(len(rows), *width, seed=-c.seed, dtype=c.grad_dtype)
        value = normal(*c.shape, seed=c.seed, dtype=c.dtype)
        for made, keep in ((references, lambda t, _: t.clone()), (placed, arena.place)):
            p = keep(value, c.offsets[0]).requires_grad_()
            grad = torch.sparse_coo_tensor(
                index, keep(values, c.offsets[1]), c.shape, is_coalesced=True, check_invariants=True
            )
            give(p, grad)
            made.append(p)
    theirs = optimizers(given_cases, "elementwise", references, "eager")
    ours = optimizers(given_cases, "elementwise", placed, "llvm")
    for c, p in zip(given_cases, placed, strict=True):
        ours.state[p]["m"] = arena.place(ours.state[p]["m"], c.offsets[2])
        ours.state[p]["v"] = arena.place(torch.zeros(c.shape, dtype=c.dtype), c.offsets[3])

    for _ in range(2):
        ours.step()
        theirs.step()

    assert arena.intact()
    for c, p, q in zip(given_cases, placed, references, strict=True):
        close(arena.copy(p.detach()), q.detach(), [c.dtype, c.state_dtype])
        for name in ("m", "v"):
            close(arena.copy(ours.state[p][name]), theirs.state[q][name], [c.dtype, c.state_dtype])


@st.composite
def coded_cases(draw: Any) -> Case:
    """Parameters so large that their state is held in codes, of which the last block is full, or has few."""
    size = 4096 + draw(st.integers(0, 3)) * 256 + draw(st.sampled_from([0, 1, 255, 256]) | st.integers(0, 256))
    dtype, grad_dtype = draw(st.sampled_from([(F32, F32), (BF16, BF16), (BF16, F32), (F16, F16)]))
    offsets = draw(st.tuples(*[st.integers(0, 65)] * 4))
    return Case([size], dtype, grad_dtype, F32, offsets, [0], [0], draw(st.integers(0, 1000)))


@settings(max_examples=8, deadline=None)
@given(st.lists(coded_cases(), min_size=1, max_size=3), st.sampled_from(["AdamW", "SGD", "Lamb"]))
def test_codes_and_scales_anywhere_in_memory(given_cases: list[Case], algorithm: str) -> None:
    arena = Arena()
    more: dict[str, Any] = {"momentum": 0.9} if algorithm == "SGD" else {}
    params: dict[str, list[Tensor]] = {"eager": [], "llvm": []}
    for c in given_cases:
        value, grad = normal(*c.shape, seed=c.seed, dtype=c.dtype), normal(*c.shape, seed=-c.seed, dtype=c.grad_dtype)
        params["eager"].append(value.clone().requires_grad_())
        params["llvm"].append(arena.place(value, c.offsets[0]).requires_grad_())
        give(params["eager"][-1], grad)
        give(params["llvm"][-1], arena.place(grad, c.offsets[1]))
    theirs, ours = (
        getattr(steprule, algorithm)(params[backend], lr=0.5, state_dtype="8bit", backend=backend, **more)
        for backend in ("eager", "llvm")
    )
    theirs.step()
    ours.step()
    coded = 0
    for c, p in zip(given_cases, params["llvm"], strict=True):
        for name, value in list(ours.state[p].items()):
            if value.ndim:
                coded += value.dtype in CODES
                ours.state[p][name] = arena.place(value, c.offsets[2 + name.endswith("::scale")])
    kept = [dict(ours.state[p]) for p in params["llvm"]]
    for _ in range(2):
        ours.step()
        theirs.step()
    assert arena.intact()
    assert coded >= len(given_cases)
    for p, q, before in zip(params["llvm"], params["eager"], kept, strict=True):
        assert torch.equal(arena.copy(p.detach()), q.detach()) or algorithm == "Lamb"
        for name, value in theirs.state[q].items():
            if value.ndim:
                assert ours.state[p][name] is before[name]
                assert torch.equal(arena.copy(before[name]), value) or algorithm == "Lamb"


def by_rows(p: Any, g: Any, s: Any, h: Any) -> Any:
    s.m = lerp(s.m, g, 1 - h.mu)
    s.rows = s.rows + norm(s.m, dim=-1)
    s.columns = max_abs(g, dim=-2) + sum(s.rows * p, dim=-2)
    s.v = s.v + mean(s.rows, dim=-2) * g
    return p - h.lr * s.m / (1 + s.rows + s.columns * s.columns + norm(g))


REAL_MATRICES = cases(permuted=False).filter(lambda c: len(c.shape) > 1 and not c.dtype.is_complex)


@settings(max_examples=60, deadline=None)
@given(st.lists(REAL_MATRICES, min_size=1, max_size=4), st.integers(1, 300), st.integers(1, 5))
def test_rows_and_columns_and_their_tables_anywhere_in_memory(given_cases: list[Case], limit: int, least: int) -> None:
    arena, tables, references, placed = Arena(), Arena(), [], []
    make_table, lay_rows = Lines.table, llvm.LLVMLaunch.lay_rows

    def lay_guarded(launch: llvm.LLVMLaunch) -> None:
        lay_rows(launch)
        for k, part in enumerate(launch.parts):
            if len(part):
                launch.parts[k] = tables.place(torch.from_numpy(part), 8).numpy()
                launch.sum_pointers[k] = launch.parts[k].ctypes.data

    for c in given_cases:
        value, grad = normal(*c.shape, seed=c.seed, dtype=c.dtype), normal(*c.shape, seed=-c.seed, dtype=c.grad_dtype)
        references.append(value.clone().requires_grad_())
        placed.append(arena.place(value, c.offsets[0]).requires_grad_())
        give(references[-1], grad)
        give(placed[-1], arena.place(grad, c.offsets[1]))
    theirs, ours = (
        optimizer_of(by_rows, params, backend, {"rows": row(0.5), "columns": column()}, mu=0.75, lr=0.5)
        for params, backend in ((references, "eager"), (placed, "llvm"))
    )
    for c, p in zip(given_cases, placed, strict=True):
        for name, offset in zip(("m", "v"), c.offsets[2:], strict=True):
            ours.state[p][name] = arena.place(torch.zeros(c.shape, dtype=c.dtype), offset)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llvm, "LIMIT", limit)
        patch.setattr(llvm, "ROWS", least)
        patch.setattr(llvm.LLVMLaunch, "lay_rows", lay_guarded)
        patch.setattr(Lines, "table", lambda *of: tables.place(make_table(*of), 8))
        ours.step()
        ours.step()
    for _ in range(2):
        theirs.step()

    assert arena.intact()
    assert tables.intact()
    for c, p, q in zip(given_cases, placed, references, strict=True):
        close(arena.copy(p.detach()), q.detach(), [c.dtype])
        for name in ("m", "v"):
            close(arena.copy(ours.state[p][name]), theirs.state[q][name], [c.dtype])


@pytest.mark.parametrize("touched", [2, 23])
def test_the_guards_see_a_byte_that_is_touched(touched: int) -> None:
    arena = Arena()
    placed = arena.place(torch.ones(5), 3)
    [(buffer, _, _)] = arena.buffers.values()
    buffer[3:23] = 0
    assert arena.copy(placed).tolist() == [0] * 5
    assert arena.intact()
    buffer[touched] = 0
    assert not arena.intact()


ON_THE_EDGE = """
import ctypes, mmap
import torch
from steprule.rule import array, max_abs, norm
import steprule
from every_algorithm import RULES
from kernel_cases import FLOATS, optimizer_of
from tensors import give

PAGE = mmap.PAGESIZE
protect = ctypes.CDLL(None, use_errno=True).mprotect
maps = []

def on_an_edge(value, at_end):
    nbytes = value.numel() * value.element_size()
    pages = -(-nbytes // PAGE) + 2
    area = mmap.mmap(-1, pages * PAGE)
    maps.append(area)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    offset = (pages - 1) * PAGE - nbytes if at_end else PAGE
    made = torch.frombuffer(area, dtype=value.dtype, offset=offset, count=value.numel()).copy_(value.flatten())
    for page in (0, pages - 1):
        assert protect(ctypes.c_void_p(start + page * PAGE), PAGE, 0) == 0
    return made.view(value.shape)

def rule(p, g, s, h):
    s.m = 0.5 * s.m + g
    return p - h.lr * s.m

def reducing(p, g, s, h):
    s.m = 0.5 * s.m + g / (1 + norm(g) + max_abs(p))
    return p - h.lr * s.m

for dtype in (*FLOATS, torch.complex64):
    for grad_dtype in {dtype} if dtype.is_complex else {dtype, torch.float32}:
        for count in (1, 3, 8, 15, 17, 33, 64, 127, 1000):
            for at_end in (False, True):
                p = on_an_edge(torch.ones(count, 1, dtype=dtype), at_end).requires_grad_()
                q = on_an_edge(torch.ones(count, 1, dtype=dtype), at_end).requires_grad_()
                grad = on_an_edge(torch.ones(count, 1, dtype=grad_dtype), at_end)
                index = torch.arange(count).reshape(1, -1)
                for update in (rule, reducing):
                    give(p, grad)
                    give(q, torch.sparse_coo_tensor(index, grad, is_coalesced=True, check_invariants=False))
                    optimizer = optimizer_of(update, [p, q] if update is rule else [p], "llvm", {"m": array()})
                    for x in (p, q):
                        optimizer.state[x]["m"] = on_an_edge(torch.zeros(count, 1, dtype=dtype), at_end)
                    for _ in range(2):
                        optimizer.step()
                assert torch.equal(q.detach()[0].real.float(), torch.tensor([1 - 0.1 - 0.15]).to(q.dtype).real.float())
                maps.clear()
for name in RULES:
    for count in (3, 33):
        for at_end in (False, True):
            p = on_an_edge(torch.ones(count, 5), at_end).requires_grad_()
            optimizer = getattr(steprule, name)([p])
            for step in range(3):
                grad = on_an_edge(torch.ones(count, 5), at_end)
                p.grad = grad.to_sparse(1) if name == "SparseAdam" else grad
                optimizer.step()
                for slot, value in optimizer.state[p].items():
                    if getattr(value, "shape", None) == p.shape:
                        optimizer.state[p][slot] = on_an_edge(value, at_end)
            assert p.isfinite().all()
            maps.clear()
for name in ("AdamW", "SGD"):
    for count in (4097, 4351, 4352):
        for at_end in (False, True):
            p = on_an_edge(torch.ones(count, 1), at_end).requires_grad_()
            more = {"momentum": 0.9} if name == "SGD" else {}
            optimizer = getattr(steprule, name)([p], state_dtype="8bit", **more)
            for step in range(3):
                p.grad = on_an_edge(torch.ones(count, 1), at_end)
                optimizer.step()
                coded = [slot for slot in optimizer.state[p] if slot.endswith("::scale")]
                assert coded
                for slot in (*coded, *(slot.removesuffix("::scale") for slot in coded)):
                    optimizer.state[p][slot] = on_an_edge(optimizer.state[p][slot], at_end)
            assert p.isfinite().all()
            maps.clear()
print("untouched")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="protects pages with Linux's mprotect")
def test_nothing_is_read_beyond_a_tensor_at_the_edge_of_a_page() -> None:
    here = Path(__file__).parent
    code = f"import sys; sys.path[:0] = {[str(here), str(here.parent)]!r}; {ON_THE_EDGE}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert result.stdout.strip() == "untouched", result.stderr[-2000:]
    assert result.returncode == 0


def sparse_or_dense(case: Case, kind: str, place: Any, seed: int) -> Tensor | None:
    """A gradient of every other row, or a whole one, or none; its numbers are placed somewhere."""
    if kind == "none":
        return None
    values = normal(*case.shape, seed=seed, dtype=case.grad_dtype)
    if kind == "dense":
        return place(values, case.offsets[1])
    rows = torch.arange(case.shape[0])[seed % 2 :: 2]
    own = place(values[rows], case.offsets[1])
    return torch.sparse_coo_tensor(rows[None], own, case.shape, is_coalesced=True, check_invariants=True)


@settings(max_examples=25, deadline=None)
@given(st.lists(cases(max_dims=2, permuted=False), min_size=2, max_size=5), st.data())
def test_gradients_that_come_and_go_anywhere_in_memory(given_cases: list[Case], data: Any) -> None:
    """Parameters that are left out of a step have tables, and those of the others must not be taken for theirs."""
    arena = Arena()
    references = [normal(*c.shape, seed=c.seed, dtype=c.dtype).requires_grad_() for c in given_cases]
    placed = [
        arena.place(q.detach(), c.offsets[0]).requires_grad_() for c, q in zip(given_cases, references, strict=True)
    ]
    theirs = optimizers(given_cases, "elementwise", references, "eager")
    ours = optimizers(given_cases, "elementwise", placed, "llvm")
    for c, p in zip(given_cases, placed, strict=True):
        ours.state[p]["m"] = arena.place(ours.state[p]["m"], c.offsets[2])
        ours.state[p]["v"] = arena.place(torch.zeros(c.shape, dtype=c.dtype), c.offsets[3])
    kinds = st.sampled_from(["none", "none", "dense", "dense", "sparse"])
    kept = data.draw(st.lists(kinds, min_size=len(placed), max_size=len(placed)))
    for step in range(data.draw(st.integers(2, 6))):
        for i, (c, p, q) in enumerate(zip(given_cases, placed, references, strict=True)):
            # most have gradients of one kind, or none
            kind = data.draw(st.sampled_from([kept[i], kept[i], "none"])) if step else kept[i] if i else "dense"
            give(q, sparse_or_dense(c, kind, lambda value, _: value, 10 * step + i))
            give(p, sparse_or_dense(c, kind, arena.place, 10 * step + i))
        ours.step()
        theirs.step()
    assert arena.intact()
    for c, p, q in zip(given_cases, placed, references, strict=True):
        close(arena.copy(p.detach()), q.detach(), [c.dtype, c.state_dtype])
        for name in ("m", "v") if "v" in theirs.state[q] else ():  # or it never had a gradient
            close(arena.copy(ours.state[p][name]), theirs.state[q][name], [c.dtype, c.state_dtype])
