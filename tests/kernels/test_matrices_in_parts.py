"""Functions of matrices are given a bounded number at a time, and what they return takes the place of that."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensors import give_gradients, parameters
from torch.profiler import ProfilerActivity, profile

from steprule import Optimizer, rule
from steprule.cli.bench.peak_memory import peak_bytes
from steprule.kernels import matrices

SHAPES = [(16, 32)] * 9 + [(8, 8)] * 2
SIZES: list[int] = []


def scaled(stack: torch.Tensor) -> torch.Tensor:
    SIZES.append(len(stack))
    return stack / torch.linalg.vector_norm(stack, dim=(1, 2), keepdim=True)


class Normalized(Optimizer):
    def __init__(self, params: Any) -> None:
        super().__init__(params, dict(lr=0.1))

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        return p - h.lr * rule.matrix(scaled, g)


def taken(most: int, monkeypatch: pytest.MonkeyPatch) -> tuple[list[torch.Tensor], int]:
    """The parameters after two steps, and the most bytes that the second had at once."""
    monkeypatch.setattr(matrices, "BATCH", most)
    params = parameters(SHAPES)
    optimizer = Normalized(params)
    for step in range(2):
        give_gradients(params, step)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            optimizer.step()
    return params, peak_bytes(found)


def test_parts_give_the_same_and_take_less_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, most = taken(2**26, monkeypatch)
    parts, less = taken(16 * 32, monkeypatch)
    assert all(map(torch.equal, whole, parts))
    stack = sum(p.nbytes for p in whole)
    assert most >= 2 * 9 * 16 * 32 * 4
    assert less < stack + 2.1 * 16 * 32 * 4  # and what is made of one part


@pytest.mark.parametrize(("most", "sizes"), [(2**26, [9, 2]), (3 * 16 * 32, [3, 3, 3, 2]), (1, [1] * 11)])
def test_a_function_is_given_so_many_at_a_time(most: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrices, "BATCH", most)
    params = parameters(SHAPES)
    give_gradients(params, 0)
    optimizer = Normalized(params)
    SIZES.clear()
    optimizer.step()
    assert sizes == SIZES
