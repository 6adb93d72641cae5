"""Clipping, gradient scaling, maximize and l1: part of the update, with gradients left as they are."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from kernel_cases import COMPILED, FLOATS, optimizer_of
from tensors import grad_of, leaf, normal
from torch import Tensor

import steprule
from steprule import SGD, AdamW
from steprule.rule import sign

SHAPES: list[tuple[int, ...]] = [(40, 30), (7,), (), (0, 3), (2, 3, 4)]


def params_with_grads(seed: int, dtype: torch.dtype = torch.float64, size: float = 1.0) -> list[Tensor]:
    return [
        leaf(normal(*s, seed=seed + i, dtype=dtype), size * normal(*s, seed=seed + 50 + i, dtype=dtype))
        for i, s in enumerate(SHAPES)
    ]


# clip_norm.


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("algorithm", ["SGD", "AdamW", "Adagrad", "NAdam", "Rprop", "Lamb", "Lion"])
def test_clip_norm_is_clip_grad_norm_before_the_step(algorithm: str, size: float, backend: str) -> None:
    make = getattr(steprule, algorithm)
    ours, theirs = params_with_grads(1), params_with_grads(1)
    clipping, plain = make(ours, clip_norm=2.0, backend=backend), make(theirs, backend=backend)
    for step in range(3):
        for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            p.grad = size * normal(*p.shape, seed=100 * step + i, dtype=p.dtype)
            q.grad = p.grad.clone()
        kept = [grad_of(p).clone() for p in ours]
        norm = torch.nn.utils.clip_grad_norm_(theirs, 2.0)
        clipping.step()
        plain.step()
        assert clipping.grad_norm.item() == pytest.approx(norm.item(), rel=1e-12)
        assert all(torch.equal(grad_of(p), g) for p, g in zip(ours, kept, strict=True))
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_a_parameter_that_stands_twice_is_not_clipped() -> None:
    """torch's clip_grad_norm_ would count it once or twice, as the model's or the group's parameters are given."""
    params = params_with_grads(1)
    start, optimizer = [p.detach().clone() for p in params], SGD([*params, params[1]], lr=0.1, clip_norm=2.0)
    with pytest.raises(RuntimeError, match="parameter 5 of group 0 stands more than once in a group"):
        optimizer.step()
    assert all(map(torch.equal, params, start))
    params[1].grad = None
    optimizer.step()
    assert not torch.equal(params[0], start[0])


@pytest.mark.parametrize("backend", COMPILED)
def test_against_torch_in_float32(backend: str) -> None:
    ours, theirs = params_with_grads(1, torch.float32), params_with_grads(1, torch.float32)
    mine, other = AdamW(ours, lr=0.01, clip_norm=0.5, backend=backend), torch.optim.AdamW(theirs, lr=0.01)
    for step in range(30):
        for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            p.grad = normal(*p.shape, seed=100 * step + i)
            q.grad = p.grad.clone()
        torch.nn.utils.clip_grad_norm_(theirs, 0.5)
        mine.step()
        other.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_does_what_clip_grad_norm_does(bad: float) -> None:
    ours, theirs = params_with_grads(1), params_with_grads(1)
    for params in (ours, theirs):
        params[1].grad[3] = bad
    SGD(ours, lr=0.1, clip_norm=1.0).step()
    torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    torch.optim.SGD(theirs, lr=0.1).step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_groups_with_and_without_clip_norm_share_one_norm() -> None:
    params = [leaf(torch.zeros(4, dtype=d), torch.ones(4, dtype=d)) for d in (torch.float64, torch.float32) * 2]
    groups = [
        {"params": params[:1], "clip_norm": 2.0},
        {"params": params[1:2]},
        {"params": params[2:3], "clip_norm": 1.0},
        {"params": params[3:], "clip_norm": 100.0},
    ]
    optimizer = SGD(groups, lr=1.0)
    optimizer.step()
    assert optimizer.grad_norm.item() == 4.0
    assert optimizer.grad_norm.dtype == torch.float64
    moved = [-p[0].item() for p in params]
    assert moved == pytest.approx([0.5, 1.0, 0.25, 1.0], rel=1e-6)


def test_clip_norm_may_change_and_come_and_go() -> None:
    p = leaf(torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64))
    optimizer = SGD([p], lr=1.0)
    [group] = optimizer.param_groups
    moved = []
    for value in (None, 1.0, 0.5, None, torch.tensor(0.25), 8.0):
        group["clip_norm"] = value
        with torch.no_grad():
            p.zero_()
        optimizer.step()
        moved.append(-p[0].item())
        if value is None:
            with pytest.raises(RuntimeError, match="grad_norm is computed where clip_norm is set"):
                _ = optimizer.grad_norm
        else:
            assert optimizer.grad_norm.item() == 2.0
    assert moved == pytest.approx([1, 0.5, 0.25, 1, 0.125, 1], rel=1e-6)


def test_grad_norm_counts_the_parameters_that_have_a_gradient() -> None:
    p, q = leaf(torch.zeros(1), torch.tensor([3.0])), leaf(torch.zeros(1), torch.tensor([4.0]))
    optimizer = SGD([p, q], lr=0.1, clip_norm=1.0)
    with pytest.raises(RuntimeError, match="neither is so yet"):
        _ = optimizer.grad_norm
    optimizer.step()
    assert optimizer.grad_norm.item() == 5.0
    q.grad = None
    optimizer.step()
    assert optimizer.grad_norm.item() == 3.0


def test_a_rules_own_clip_norm_is_the_rules_to_apply() -> None:
    p = leaf(torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
    optimizer_of(lambda p, g, s, h: p - g * h.clip_norm, [p], clip_norm=0.25).step()
    assert p.tolist() == [-0.25, -0.25]


# GradScaler's numbers.


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_grad_scale_divides_the_gradients_first(clip_norm: float | None, dtype: torch.dtype, backend: str) -> None:
    ours, theirs = params_with_grads(1, dtype, 64.0), params_with_grads(1, dtype)
    options: dict[str, Any] = dict(
        lr=0.1, momentum=0.9, weight_decay=0.1, l1=0.01, clip_norm=clip_norm, backend=backend
    )
    scaled, plain = SGD(ours, **options), SGD(theirs, **options)
    for _ in range(2):
        scaled.grad_scale = torch.tensor(64.0)
        scaled.found_inf = torch.tensor(0.0)
        scaled.step()
        plain.step()
        for p, q in zip(ours, theirs, strict=True):
            assert torch.equal(p, q)
            assert torch.equal(grad_of(p), grad_of(q))
            grad_of(p).mul_(64)
    if clip_norm:
        assert scaled.grad_norm == plain.grad_norm


@pytest.mark.parametrize("backend", COMPILED)
def test_a_scale_may_change_come_and_go(backend: str) -> None:
    p = leaf(torch.zeros(3, dtype=torch.float64))
    optimizer = SGD([p], lr=1.0, backend=backend)
    for scale in (2.0, 8.0, None, 4.0):
        if scale is None:
            del optimizer.grad_scale
        else:
            optimizer.grad_scale = torch.tensor([scale])
        p.grad = torch.full((3,), scale or 1.0, dtype=torch.float64)
        optimizer.step()
    assert p.tolist() == [-4.0] * 3


@pytest.mark.parametrize("backend", COMPILED)
def test_found_inf_skips_everything(backend: str) -> None:
    p = leaf(torch.ones(3), torch.ones(3))
    optimizer = AdamW([p], backend=backend)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert p.tolist() == [1.0] * 3
    assert not optimizer.state
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    after, state = p.detach().clone(), {k: v.clone() for k, v in optimizer.state[p].items()}
    assert state["step"].item() == 1
    optimizer.found_inf = torch.tensor([1.0])
    optimizer.step()
    assert torch.equal(p.detach(), after)
    assert all(torch.equal(v, state[k]) for k, v in optimizer.state[p].items())


def test_a_closure_runs_though_the_step_is_skipped() -> None:
    p = leaf(torch.ones(3), torch.ones(3))
    optimizer = SGD([p], lr=0.1)
    optimizer.found_inf = torch.tensor(1.0)
    assert optimizer.step(lambda: 7.0) == 7.0
    assert p.tolist() == [1.0] * 3


# maximize and l1.


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("dtype", [*FLOATS, torch.complex64], ids=str)
@pytest.mark.parametrize("maximize", [False, True])
def test_l1_is_added_to_the_gradient_and_maximize_goes_up(maximize: bool, dtype: torch.dtype, backend: str) -> None:
    value = normal(50, seed=1, dtype=dtype)
    value[:3] = 0
    ours, theirs = leaf(value.clone()), leaf(value.clone())
    mine = AdamW([ours], lr=0.01, l1=0.25, maximize=maximize, backend=backend)
    other = AdamW([theirs], lr=0.01, backend=backend)
    real = torch.view_as_real if dtype.is_complex else Tensor.clone
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for step in range(3):
        ours.grad = normal(50, seed=10 + step, dtype=dtype)
        if step == 1:
            ours.grad.zero_()
        theirs.grad_dtype = None
        full = real(theirs.detach()).to(wide).sign() * 0.25 + (-1 if maximize else 1) * real(ours.grad).to(wide)
        theirs.grad = torch.view_as_complex(full) if dtype.is_complex else full
        mine.step()
        other.step()
    assert torch.equal(ours, theirs)
    assert backend == "eager" or "in 1 pass over memory" in mine.explain()


def test_maximize_comes_before_weight_decay_as_in_torch() -> None:
    ours, theirs = params_with_grads(1), params_with_grads(1)
    options: dict[str, Any] = dict(lr=0.1, momentum=0.9, weight_decay=0.3, maximize=True)
    mine, other = SGD(ours, **options), torch.optim.SGD(theirs, **options)
    for _ in range(3):
        mine.step()
        other.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-14, atol=1e-15)


def test_a_rules_own_l1_is_not_applied_twice() -> None:
    def elastic(p: Any, g: Any, s: Any, h: Any) -> Any:
        return p - h.lr * (g + h.l1 * sign(p) + h.l2 * p)

    p = leaf(torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    optimizer_of(elastic, [p], lr=1.0, l1=0.25, l2=0.5).step()
    assert p.tolist() == [0.25, -0.75, 0.0]


@pytest.mark.parametrize(("option", "value"), [("l1", -0.1), ("clip_norm", -1.0), ("l1", math.nan)])
def test_options_out_of_range_are_refused(option: str, value: float) -> None:
    p = leaf(torch.ones(3), torch.ones(3))
    with pytest.raises(ValueError, match=f"Invalid {option} value: {value}"):
        SGD([p], lr=0.1, **{option: value})  # type: ignore[arg-type]
    optimizer = SGD([p], lr=0.1)
    with pytest.raises(ValueError, match=f"Invalid {option} value: {value}"):
        optimizer.add_param_group({"params": [leaf(torch.ones(2))], option: value})
    assert len(optimizer.param_groups) == 1
