"""Half of a training with torch.optim and half with steprule is a whole training, in either order."""

from __future__ import annotations

import copy
import functools
import io
from typing import Any

import pytest
import torch
from algorithm_cases import OPTIONS, assert_same_update, case_parameters, cases, shapes_for, take_step
from torch import Tensor

import steprule

DTYPES = [torch.float32, torch.float64]
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
ROUNDED = {"Muon": 0.01}
"""The tolerance where products are in bfloat16."""
HALF = 5


def make(library: Any, name: str, params: list[Tensor], options: dict[str, Any]) -> Any:
    groups = [params] if name == "LBFGS" else [params[:1], params[1:]]
    return getattr(library, name)([{"params": group} for group in groups], **options)


def steps(name: str, optimizer: Any, params: list[Tensor], first: int) -> None:
    for step in range(first, first + HALF):
        take_step(name, optimizer, params, step)


@functools.cache
def with_torch(name: str, number: int, dtype: torch.dtype, reloaded: bool) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Parameters and state after ten steps with torch.

    Loading, torch makes numbers such as NAdam's ``mu_product`` as wide as the parameter, with which it then differs
    from itself.
    """
    params = case_parameters(dtype, shapes_for(name))
    optimizer = make(torch.optim, name, params, OPTIONS[name][number])
    steps(name, optimizer, params, 0)
    if reloaded:
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(name, optimizer, params, HALF)
    return [p.detach() for p in params], [optimizer.state[p] for p in params]


def saved_and_read(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "number"), cases(list(OPTIONS)))
@pytest.mark.parametrize("order", [(torch.optim, steprule), (steprule, torch.optim)], ids=["from torch", "to torch"])
def test_half_and_half(order: tuple[Any, Any], name: str, number: int, dtype: torch.dtype) -> None:
    options, start = OPTIONS[name][number], case_parameters(dtype, shapes_for(name))
    params = case_parameters(dtype, shapes_for(name))
    first = make(order[0], name, params, options)
    steps(name, first, params, 0)
    second = make(order[1], name, params, options if name == "LBFGS" else {})
    second.load_state_dict(saved_and_read(first.state_dict()))
    steps(name, second, params, HALF)
    theirs = with_torch(name, number, dtype, order[1] is torch.optim)
    tolerance = ROUNDED.get(name, TOLERANCE[dtype])
    for p, q, p0, state in zip(params, theirs[0], start, theirs[1], strict=True):
        assert_same_update(p.detach(), q, p0.detach(), tolerance, f"shape {tuple(p.shape)}")
        assert set(second.state.get(p, {})) == set(state)
        for key, value in state.items():
            if isinstance(value, (Tensor, int, float)):
                mine, other = (torch.as_tensor(x) for x in (second.state[p][key], value))
                assert_same_update(mine, other, torch.zeros(()), tolerance, key)


@pytest.mark.parametrize(("name", "number"), cases(list(OPTIONS)))
def test_resuming_gives_the_same_bits(name: str, number: int) -> None:
    params = case_parameters(torch.float32, shapes_for(name))
    first = make(steprule, name, params, OPTIONS[name][number])
    steps(name, first, params, 0)
    again = [p.detach().clone().requires_grad_() for p in params]
    second = make(steprule, name, again, OPTIONS[name][number])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(name, first, params, HALF)
    steps(name, second, again, HALF)
    for p, q in zip(params, again, strict=True):
        assert torch.equal(p, q)
