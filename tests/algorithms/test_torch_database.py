"""torch's own list of what its optimizers take and what they refuse, asked of ours."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing._internal import common_optimizers as database

import steprule

KINDS = pytest.mark.parametrize("kind", database.optim_db, ids=lambda kind: kind.name)
TOLERANCE = {torch.float32: 3e-6, torch.complex64: 3e-6, torch.float64: 1e-12}


def two_matrices(dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=dtype).requires_grad_() for shape in [(10, 5), (3, 4)]]


def trained(optimizer: Any, params: list[Tensor], kind: Any, steps: int = 6) -> dict[str, Any]:
    """Take some steps, and give the state."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.stack([p.abs().square().sum() for p in params]).sum()
        loss.backward()
        return loss

    torch.manual_seed(1)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn_like(p)
            if kind.only_supports_sparse_grads:
                p.grad = p.grad.to_sparse()
        with torch.no_grad():
            optimizer.step(*[closure] * kind.step_requires_closure)
    state: dict[str, Any] = optimizer.state_dict()
    return state


def in_double(kwargs: dict[str, Any]) -> dict[str, Any]:
    """torch computes with a rate of float32 in float32, where ours does in double precision."""
    return {key: value.double() if isinstance(value, Tensor) else value for key, value in kwargs.items()}


@KINDS
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_every_input_of_torchs_database(kind: Any, dtype: torch.dtype) -> None:
    if dtype.is_complex and not kind.supports_complex:
        pytest.skip("torch's has no complex form")
    # torch has no fused form for complex numbers, and says so; ours are all one form
    fused = "cpu" in kind.supports_fused_on and not dtype.is_complex
    skip = ("differentiable",) if fused else ("differentiable", "fused")
    inputs = database._get_optim_inputs_including_global_cliquey_kwargs("cpu", dtype, kind, skip=skip)
    assert inputs
    for item in inputs:
        theirs, ours = two_matrices(dtype), two_matrices(dtype)
        optimizers = (
            kind.optim_cls(theirs, **in_double(item.kwargs)),
            getattr(steprule, kind.name)(ours, **in_double(item.kwargs)),
        )
        known, state = trained(optimizers[0], theirs, kind), trained(optimizers[1], ours, kind)
        for p, q in zip(ours, theirs, strict=True):
            assert (p - q).abs().max() <= TOLERANCE[dtype] * q.abs().max(), item.desc
        for key, slots in known["state"].items():
            assert set(state["state"][key]) == set(slots), item.desc
        assert set(state["param_groups"][0]) >= set(known["param_groups"][0]), item.desc


def first_step(kind: Any, params: Any, options: dict[str, Any]) -> None:
    optimizer = kind(params, **options)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()


@KINDS
def test_everything_that_torchs_database_says_is_refused(kind: Any) -> None:
    errors = kind.optim_error_inputs_func("cpu", torch.float32)
    assert errors
    for error in errors:
        given = error.optimizer_error_input
        params = two_matrices(torch.float32) if given.params is None else given.params
        with pytest.raises(error.error_type, match=error.error_regex):
            first_step(getattr(steprule, kind.name), params, copy.deepcopy(given.kwargs))
