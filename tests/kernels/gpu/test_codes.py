"""State in 8 bits on Triton: the codes and scales of torch operations, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparing import same
from inside import launches
from tensors import normal
from torch import Tensor

import steprule
from steprule import Optimizer
from steprule.kernels.gpu import triton

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

KINDS: dict[str, Callable[..., Optimizer]] = {
    "AdamW": lambda params, **options: steprule.AdamW(params, lr=1e-2, **options),
    "Lion": lambda params, **options: steprule.Lion(params, lr=1e-3, **options),
    "first alone": lambda params, **o: steprule.AdamW(params, lr=1e-2, **o | {"state_dtype": {"exp_avg": "8bit"}}),
}
SIZES = [4096, 4501]


def numbers(size: int, seed: int, dtype: torch.dtype) -> Tensor:
    return normal(size, seed=seed, dtype=dtype, device=DEVICE, size=0.1)


def taken(make: Callable[..., Optimizer], starts: list[Tensor], backend: str, flags: Any = None) -> Optimizer:
    """An optimizer after three steps over parameters that begin as they are given."""
    params = [start.detach().requires_grad_() for start in starts]
    optimizer = make(params, state_dtype="8bit", backend=backend)
    if flags is not None:
        optimizer.explain()  # makes the plan, so that the flag is left to the kernels
    for step in range(3):
        for k, p in enumerate(params):
            p.grad = numbers(p.numel(), 10 * step + k, p.dtype).view(p.shape)
        if flags is not None:
            optimizer.found_inf = torch.tensor(flags[step], device=DEVICE)
        optimizer.step()
    return optimizer


def everything(optimizer: Optimizer) -> list[Tensor]:
    (group,) = optimizer.param_groups
    states = [optimizer.state[p] for p in group["params"]]
    return [*group["params"], *(s[name].to(DEVICE) for s in states for name in sorted(s))]


@pytest.mark.parametrize(
    ("kind", "dtype", "chunk"),
    [
        ("AdamW", torch.float32, 1024),
        ("AdamW", torch.bfloat16, 4096),
        ("Lion", torch.float32, 4096),
        ("first alone", torch.float16, 4096),
    ],
)
def test_codes_and_scales_are_those_of_torch_operations(
    kind: str, dtype: torch.dtype, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "CHUNK", chunk)
    starts = [numbers(size, 50 + k, dtype) for k, size in enumerate(SIZES)]
    ours = taken(KINDS[kind], [s.clone() for s in starts], "triton")
    assert same(everything(ours), everything(taken(KINDS[kind], starts, "eager")))
    (launch,) = launches(ours)
    assert launch.backend == "triton"
    assert launch.coded


def test_views_of_a_bucket() -> None:
    """Whose elements are loaded one by one, in blocks all the same."""
    sizes = [4097, 4300]
    starts = list(numbers(sum(sizes), 1, torch.float32).split(sizes))
    copies = [s.clone() for s in starts]
    ours, theirs = taken(KINDS["AdamW"], starts, "triton"), taken(KINDS["AdamW"], copies, "eager")
    assert same(everything(ours), everything(theirs))


@pytest.mark.parametrize("flags", [(0.0, 1.0, 0.0)])
def test_a_step_that_is_skipped_leaves_codes_and_scales(flags: tuple[float, ...]) -> None:
    starts = [numbers(4100, 1, torch.float32)]
    ours = taken(KINDS["AdamW"], [s.clone() for s in starts], "triton", flags)
    assert ours.found_inf is not None
    params = [starts[0].clone().requires_grad_()]
    reference = KINDS["AdamW"](params, state_dtype="8bit", backend="eager")
    for step, flag in enumerate(flags):
        params[0].grad = numbers(4100, 10 * step, torch.float32)
        if not flag:
            reference.step()
    assert torch.equal(ours.param_groups[0]["params"][0].detach(), params[0].detach())
    assert same(everything(ours), everything(reference))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_block_that_is_not_finite_shows_it_and_the_others_do_not(bad: float) -> None:
    found = []
    for backend in ("triton", "eager"):
        p = numbers(4200, 1, torch.float32).requires_grad_()
        optimizer = steprule.AdamW([p], state_dtype="8bit", backend=backend)
        p.grad = numbers(4200, 2, torch.float32)
        p.grad[300] = bad
        optimizer.step()
        found.append([optimizer.state[p][name] for name in ("exp_avg", "exp_avg::scale", "exp_avg_sq::scale")])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=0.0, equal_nan=True)
    assert (~found[0][1].isfinite()).nonzero().flatten().tolist() == [1]


def test_nothing_outside_of_codes_and_scales_is_touched() -> None:
    p = numbers(4097, 1, torch.float32).requires_grad_()
    optimizer = steprule.AdamW([p], state_dtype="8bit", backend="triton")
    for step in range(2):
        p.grad = numbers(4097, step, torch.float32)
        optimizer.step()
        if step == 0:  # the same state in buffers with room around it
            buffers = {}
            for name in ("exp_avg", "exp_avg_sq", "exp_avg::scale", "exp_avg_sq::scale"):
                value = optimizer.state[p][name]
                buffer = torch.full((value.numel() + 64,), 77, dtype=value.dtype, device=DEVICE)
                inside = buffer[32 : 32 + value.numel()].copy_(value)
                buffers[name] = buffer
                optimizer.state[p][name] = inside
    for name, buffer in buffers.items():
        assert (buffer[:32] == 77).all(), name
        assert (buffer[len(buffer) - 32 :] == 77).all(), name
        assert optimizer.state[p][name].data_ptr() == buffer[32:].data_ptr()
