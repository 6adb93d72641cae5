"""Weights in two parts on Triton: both parts of torch operations, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from inside import launches
from torch import Tensor

import steprule
from steprule import Optimizer

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BF16 = torch.bfloat16

KINDS: dict[str, Callable[..., Optimizer]] = {
    "AdamW": lambda params, **options: steprule.AdamW(params, lr=1e-2, **options),
    "SGD": lambda params, **options: steprule.SGD(params, lr=1e-2, **options),
    "Adafactor": lambda params, **options: steprule.Adafactor(params, lr=1e-2, **options),
}


def normal(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def taken(kind: str, backend: str, dtype: torch.dtype, flags: Any = (), **options: Any) -> tuple[list[Tensor], Any]:
    """Parameters and what stands beside them after three steps; steps with a flag are left out."""
    params = [normal(shape, k, dtype).requires_grad_() for k, shape in enumerate([(70, 65), (3, 7)])]
    optimizer = KINDS[kind](params, backend=backend, **options)
    if flags and backend == "triton":
        optimizer.explain()  # makes the plan, so that the flag is left to the kernels
    for step in range(3):
        for k, p in enumerate(params):
            p.grad = normal(tuple(p.shape), 10 * step + k, dtype)
        if flags and backend == "triton":
            optimizer.found_inf = torch.tensor(flags[step], device=DEVICE)
        elif flags and flags[step]:
            continue
        optimizer.step()
    return [*(p.detach() for p in params), *(optimizer.state[p]["master"] for p in params)], optimizer


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (BF16, {"master": "8bit"}),
        (BF16, {"master": "8bit", "rounding": "stochastic"}),
        (BF16, {"master": "16bit"}),
        (BF16, {"master": "float32"}),
        (torch.float16, {"master": "float32"}),
    ],
)
def test_both_parts_are_those_of_torch_operations(kind: str, dtype: torch.dtype, options: dict[str, Any]) -> None:
    if kind == "AdamW":
        options = {**options, "state_dtype": "8bit"}
    ours, optimizer = taken(kind, "triton", dtype, **options)
    assert {launch.backend for launch in launches(optimizer)} == {"triton"}
    theirs, _ = taken(kind, "eager", dtype, **options)
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.parametrize("master", ["8bit", "16bit", "float32"])
def test_a_step_that_is_skipped_leaves_both_parts(master: str) -> None:
    found = [taken("SGD", backend, BF16, (0.0, 1.0, 0.0), master=master)[0] for backend in ("triton", "eager")]
    assert all(map(torch.equal, *found))


def test_float16_is_rounded_at_random_as_by_torch_operations() -> None:
    found = []
    for backend in ("triton", "eager"):
        numbers = normal((4000,), 1, torch.float32) * 10.0 ** normal((4000,), 2, torch.float32).mul(3).clamp(-9, 3)
        p = numbers.half().requires_grad_()
        optimizer = steprule.SGD([p], lr=1e-3, rounding="stochastic", backend=backend)
        for step in range(2):
            p.grad = normal((4000,), step, torch.float16)
            optimizer.step()
        found.append(p.detach())
    assert torch.equal(*found)


def test_nan_and_infinity_keep_their_bits() -> None:
    found = []
    for backend in ("triton", "eager"):
        p = torch.ones(6, dtype=BF16, device=DEVICE)
        p[:2].view(torch.int16).copy_(torch.tensor([0x7FC3, 0x7FFF], dtype=torch.int16))
        p = p.requires_grad_()
        p.grad = torch.tensor([0.0, 0.0, float("nan"), float("inf"), -float("inf"), 3e38], dtype=BF16, device=DEVICE)
        steprule.SGD([p], lr=1.0, master="16bit", backend=backend).step()
        found.append(p.detach())
    assert found[0].view(torch.int16)[:2].tolist() == [0x7FC3, 0x7FFF]
    assert torch.equal(found[0].isnan(), found[1].isnan())
    assert torch.equal(found[0][3:], found[1][3:])
