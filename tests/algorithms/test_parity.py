"""Every algorithm with every option: through 30 steps, where torch.optim is."""

from __future__ import annotations

import functools
from typing import Any, TypeAlias

import pytest
import torch
from algorithm_cases import (
    ALGORITHMS,
    BY_ROWS,
    DENSE,
    ELEMENTWISE,
    NO_COMPLEX,
    OPTIONS,
    SWITCHES,
    arguments,
    assert_same_update,
    case_parameters,
    cases,
    give_case_gradients,
    gradient,
    missing,
    shapes_for,
    take_step,
)
from torch import Tensor

import steprule

STEPS = 30
LOOKED_AT = (0, 1, 2, 5, 11, 20, 29)
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12, torch.complex64: 1e-6, torch.complex128: 1e-12}

Trajectory: TypeAlias = list[list[Tensor]]


def grouped(params: list[Tensor], options: dict[str, Any]) -> list[dict[str, Any]]:
    """Three groups with numbers of their own."""
    decay = {"weight_decay": 0.05} if "weight_decay" in options else {}
    return [
        {"params": params[0::3]},
        {"params": params[1::3], "lr": 0.03, **decay},
        {"params": params[2::3], "lr": 0.07},
    ]


def run(optimizer: Any, params: list[Tensor]) -> Trajectory:
    """Copies of the parameters after some of 30 steps; halfway the rate is halved."""
    seen = []
    for step in range(STEPS):
        give_case_gradients(params, step)
        if step == STEPS // 2:
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * 0.5
        optimizer.step()
        if step in LOOKED_AT:
            seen.append([p.detach().clone() for p in params])
    return seen


@functools.cache
def with_torch(name: str, number: int, dtype: torch.dtype) -> tuple[Trajectory, list[dict[str, Any]]]:
    params = case_parameters(dtype, shapes_for(name))
    options = OPTIONS[name][number]
    optimizer = getattr(torch.optim, name)(grouped(params, options), **options)
    return run(optimizer, params), [optimizer.state[p] for p in params]


def assert_same_state(ours: dict[str, Any], theirs: dict[str, Any], what: str) -> None:
    assert set(ours) == set(theirs), what
    for key, value in theirs.items():
        assert ours[key].dtype == value.dtype, (what, key)
        assert ours[key].shape == value.shape, (what, key)
        assert_same_update(ours[key], value, torch.zeros_like(value), TOLERANCE[value.dtype], f"{key} of {what}")


def test_every_algorithm_and_every_argument_has_a_case() -> None:
    assert set(OPTIONS) == set(ALGORITHMS)
    for name in ALGORITHMS:
        used = {key for options in OPTIONS[name] for key in options}
        assert not set(arguments(name)) - used - SWITCHES - {"lr"}, name


@pytest.mark.parametrize(("name", "number"), cases(DENSE))
@pytest.mark.parametrize(
    ("backend", "dtype"), [("llvm", d) for d in TOLERANCE] + [("eager", d) for d in list(TOLERANCE)[:3]], ids=str
)
def test_the_trajectory_and_the_state_are_those_of_torch(
    name: str, number: int, dtype: torch.dtype, backend: str
) -> None:
    if dtype.is_complex and name in NO_COMPLEX:
        pytest.skip("torch has no complex form of it")
    if name in BY_ROWS:
        backend = "auto"
    theirs, their_state = with_torch(name, number, dtype)
    start, params, options = (*(case_parameters(dtype, shapes_for(name)) for _ in range(2)), OPTIONS[name][number])
    optimizer = getattr(steprule, name)(grouped(params, options), **options, backend=backend)
    for step, ours in zip(LOOKED_AT, run(optimizer, params), strict=True):
        for p, q, p0 in zip(ours, theirs[LOOKED_AT.index(step)], start, strict=True):
            assert_same_update(p, q, p0.detach(), TOLERANCE[p.dtype], f"step {step}, shape {tuple(p.shape)}")
    for p, state in zip(params, their_state, strict=True):
        assert_same_state(optimizer.state[p], state, f"shape {tuple(p.shape)}")


@pytest.mark.parametrize(("name", "number"), cases(DENSE))
def test_bfloat16_is_float32_arithmetic_rounded_once(name: str, number: int) -> None:
    """From the same bfloat16 parameters and state, torch in float32 takes the same step."""
    options = OPTIONS[name][number]
    params = case_parameters(torch.bfloat16, shapes_for(name), size=1.0)
    ours = getattr(steprule, name)(params, **options)
    wide = [p.detach().float().requires_grad_() for p in params]
    theirs = getattr(torch.optim, name)(wide, **options)
    total = equal = 0
    for step in range(STEPS):
        give_case_gradients(params, step)
        if step == 0:
            ours.step()  # state that is made in float32 would not start at bfloat16 numbers
            continue
        before = [p.detach().clone() for p in params]
        theirs.load_state_dict(ours.state_dict())
        for p, q in zip(params, wide, strict=True):
            q.data.copy_(p.detach())
            q.grad = None if p.grad is None else p.grad.float()
        ours.step()
        theirs.step()
        for p, q, p0 in zip(params, wide, before, strict=True):
            rounded = q.detach().bfloat16().float()
            allowed = 2.0**-7 * rounded.abs() + 1e-6 * p0.float().abs()
            assert ((p.detach().float() - rounded).abs() <= allowed).all(), (step, tuple(p.shape))
            total, equal = total + p.numel(), equal + int((p.detach().float() == rounded).sum())
    assert all(value.dtype == torch.bfloat16 for p in params for value in ours.state[p].values() if value.ndim)
    assert equal > 0.99 * total


ROWS = torch.tensor([1, 2, 5])


def sparse(rows: Tensor, values: Tensor, count: int) -> Tensor:
    return torch.sparse_coo_tensor(rows[None], values, (count, *values.shape[1:]))


unchecked = pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")


@unchecked
@pytest.mark.parametrize(("name", "number"), cases(ELEMENTWISE))
@pytest.mark.parametrize(("backend", "dtype"), [("llvm", torch.float32), ("eager", torch.float64)], ids=str)
def test_a_sparse_gradient_updates_the_rows_it_holds_and_no_others(
    name: str, number: int, dtype: torch.dtype, backend: str
) -> None:
    options = OPTIONS[name][number]
    (p,) = case_parameters(dtype, [(7, 4)])
    start = p.detach().clone()
    rows = start[ROWS].clone().requires_grad_()
    ours = getattr(steprule, name)([p], **options, backend=backend)
    theirs = getattr(torch.optim, name)([rows], **options)
    for step in range(STEPS):
        rows.grad = gradient((3, 4), dtype, 0, step)
        p.grad = sparse(ROWS, rows.grad, 7)
        ours.step()
        theirs.step()
    assert_same_update(p.detach()[ROWS], rows.detach(), start[ROWS], TOLERANCE[p.dtype], "rows")
    others = [row for row in range(7) if row not in ROWS.tolist()]
    assert torch.equal(p.detach()[others], start[others])
    for key, value in theirs.state[rows].items():
        mine = ours.state[p][key]
        assert_same_update(
            mine[ROWS] if mine.ndim else mine, value, torch.zeros_like(value), TOLERANCE[mine.dtype], key
        )


WITH_SPARSE = [("SparseAdam", number) for number in range(len(OPTIONS["SparseAdam"]))]
WITH_SPARSE += [("SGD", 0), ("Adagrad", 0), ("Adagrad", 2)]


@unchecked
@pytest.mark.parametrize("shape", [(9,), (9, 4), (9, 2, 3)], ids=str)
@pytest.mark.parametrize(("name", "number"), WITH_SPARSE)
@pytest.mark.parametrize(("backend", "dtype"), [("llvm", torch.float64), ("eager", torch.float32)], ids=str)
def test_sparse_gradients_where_torch_takes_them(
    name: str, number: int, dtype: torch.dtype, backend: str, shape: tuple[int, ...]
) -> None:
    """Rows come and go, some twice in a gradient, sometimes none at all."""
    options = OPTIONS[name][number]
    ours_p, theirs_p = (case_parameters(dtype, [shape, shape]) for _ in range(2))
    start = [p.detach().clone() for p in ours_p]
    ours = getattr(steprule, name)(ours_p, **options, backend=backend)
    theirs = getattr(torch.optim, name)(theirs_p, **options)
    for step in range(STEPS):
        chosen = torch.randint(0, 9, (step % 6,), generator=torch.Generator().manual_seed(step))
        values = gradient((step % 6, *shape[1:]), dtype, 0, step)
        for p in (ours_p[0], theirs_p[0]):
            p.grad = sparse(chosen, values, 9)
        for p in (ours_p[1], theirs_p[1]):
            p.grad = None if missing(0, step) else sparse(chosen, values, 9).coalesce()
        ours.step()
        theirs.step()
    for p, q, p0 in zip(ours_p, theirs_p, start, strict=True):
        assert_same_update(p.detach(), q.detach(), p0, TOLERANCE[p.dtype], name)
        for key, value in theirs.state[q].items():
            mine, other = (torch.as_tensor(x) for x in (ours.state[p][key], value))
            assert_same_update(mine, other, torch.zeros(()), TOLERANCE[mine.dtype], key)


def as_numbers(state: dict[str, Any]) -> dict[str, Tensor]:
    """All of a state but lists and what is still None; torch has counts that are no tensors."""
    return {
        key: torch.as_tensor(value, dtype=torch.float64)
        for key, value in state.items()
        if value is not None and not isinstance(value, list)
    }


@pytest.mark.parametrize(("name", "number"), cases([*OPTIONS]))
@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_a_parameter_that_stands_twice_in_a_group_is_updated_twice_as_in_torch(
    name: str, number: int, backend: str
) -> None:
    """Every second one from the second step on, when the others have a state already."""
    options, found = OPTIONS[name][number], []
    for library, only in ((torch.optim, {"foreach": False}), (steprule, {"backend": backend})):
        params = case_parameters(torch.float64, shapes_for(name))
        how = {key: value for key, value in only.items() if key == "backend" or key in arguments(name)}
        with pytest.warns(UserWarning, match="duplicate parameters"):
            optimizer = getattr(library, name)([params[0], *params, *params[1:], params[-1]], **options, **how)
        for step in range(3, 8):
            take_step(name, optimizer, params, step)
        found.append((params, [as_numbers(optimizer.state[p]) for p in params]))
    (theirs, their_states), (ours, our_states) = found
    for p, q, p0 in zip(ours, theirs, case_parameters(torch.float64, shapes_for(name)), strict=True):
        assert_same_update(p.detach(), q.detach(), p0.detach(), TOLERANCE[p.dtype], f"shape {tuple(p.shape)}")
    for mine, other in zip(our_states, their_states, strict=True):
        assert_same_state(mine, other, name)
