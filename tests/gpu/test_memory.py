"""Small steps for a checker of memory: `compute-sanitizer --tool memcheck pytest tests/gpu/test_memory.py`.

They need no checker to fail: what lies around each tensor must stay as it is.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import steprule

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]
pytestmark.append(pytest.mark.filterwarnings("default"))

GUARD, FILL = 5, 77.0


class Guarded:
    """Tensors inside of buffers, at offsets that are odd in elements."""

    def __init__(self) -> None:
        self.buffers: list[tuple[Tensor, Tensor]] = []

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype, fill: float) -> Tensor:
        size = int(torch.Size(shape).numel())
        offset = GUARD + 2 * (len(self.buffers) % 4) + 1
        buffer = torch.full((offset + size + GUARD,), FILL, dtype=dtype, device="cuda")
        inside = buffer[offset : offset + size].fill_(fill).view(shape)
        self.buffers.append((buffer, inside))
        return inside

    def check(self) -> None:
        torch.cuda.synchronize()
        for buffer, inside in self.buffers:
            assert inside.isfinite().all()
            inside.fill_(FILL)
            assert (buffer == FILL).all()


def take_steps(guarded: Guarded, optimizer: steprule.Optimizer, params: list[torch.Tensor]) -> None:
    """Two steps with gradients between guards, all of which are there afterwards."""
    for _ in range(2):
        for p in params:
            p.grad = guarded.tensor(tuple(p.shape), p.dtype, 0.5)
        optimizer.step()
    with torch.no_grad():
        guarded.check()


@pytest.mark.parametrize("clip", [None, 0.5], ids=["", "clipped"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_odd_offsets(dtype: torch.dtype, clip: float | None) -> None:
    guarded = Guarded()
    params = [guarded.tensor((n,), dtype, 1.0).requires_grad_() for n in (1, 7, 1023, 1024, 4097, 8192)]
    optimizer = steprule.AdamW(params, clip_norm=clip, backend="triton")
    take_steps(guarded, optimizer, params)


@pytest.mark.parametrize("width", [1, 5, 64, 1000])
def test_sparse_rows(width: int) -> None:
    guarded = Guarded()
    p = guarded.tensor((9, width), torch.float32, 1.0).requires_grad_()
    optimizer = steprule.SparseAdam([p], backend="triton")
    for rows in ([0, 8], [3], []):
        values = torch.ones(len(rows), width, device="cuda")
        where = torch.tensor([rows], dtype=torch.int64, device="cuda")
        p.grad = torch.sparse_coo_tensor(where, values, p.shape, check_invariants=True)
        optimizer.step()
    assert (p[1] == 1.0).all()
    assert (p[3] != 1.0).all()
    with torch.no_grad():
        guarded.check()


SHAPES: list[Any] = [(5, 7), (33, 65), (64, 3, 3, 3), (16, 8, 1, 1), (1, 3000), (3000, 1), (200, 200)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_and_columns(dtype: torch.dtype) -> None:
    guarded = Guarded()
    params = [guarded.tensor(shape, dtype, 1.0).requires_grad_() for shape in SHAPES]
    optimizer = steprule.Adafactor(params, backend="triton")
    take_steps(guarded, optimizer, params)
