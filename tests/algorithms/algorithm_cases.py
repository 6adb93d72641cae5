"""Every algorithm of torch.optim with every option it has, and what its parameters may be."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

ALGORITHMS = [name for name in torch.optim.__all__ if isinstance(getattr(torch.optim, name), type)]
ALGORITHMS.remove("Optimizer")

SWITCHES = {"foreach", "fused", "capturable", "differentiable"}
"""What chooses between torch's implementations; the formulas are the same."""

NO_COMPLEX = {"SparseAdam", "Adafactor", "Muon", "LBFGS"}
ONLY_SPARSE = {"SparseAdam"}
ONLY_MATRICES = {"Muon"}
NEEDS_CLOSURE = {"LBFGS"}
BY_ROWS = {"Adafactor"}
"""Which no compiled kernel serves in channels_last, and which torch has for no empty parameters."""


def tensor(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


OPTIONS: dict[str, list[dict[str, Any]]] = {
    "SGD": [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
        {"momentum": 0.8, "nesterov": True, "lr": tensor(0.1)},
        {"weight_decay": tensor(0.1), "maximize": True},
    ],
    "Adam": [
        {},
        {"betas": (0.7, 0.9), "eps": 1e-3, "weight_decay": 0.1},
        {"amsgrad": True, "betas": (tensor(0.8), tensor(0.9)), "lr": tensor(0.01)},
        {"decoupled_weight_decay": True, "weight_decay": 0.2, "maximize": True},
    ],
    "AdamW": [
        {},
        {"betas": (0.4, 0.95), "eps": 1e-4, "weight_decay": 0.3, "lr": tensor(0.02)},
        {"amsgrad": True, "betas": (0.0, 0.5), "maximize": True},
    ],
    "Adagrad": [
        {},
        {"lr": tensor(0.1), "lr_decay": 0.05, "weight_decay": 0.1, "eps": 1e-4},
        {"initial_accumulator_value": 0.2, "maximize": True},
    ],
    "RMSprop": [
        {},
        {"lr": tensor(0.02), "alpha": 0.8, "eps": 1e-3, "weight_decay": 0.1},
        {"momentum": 0.9, "maximize": True},
        {"centered": True, "momentum": 0.5},
    ],
    "Adamax": [
        {},
        {"lr": tensor(0.01), "betas": (0.8, 0.7), "eps": 1e-2, "weight_decay": 0.1},
        {"maximize": True},
    ],
    "NAdam": [
        {},
        {"lr": tensor(0.01), "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1, "momentum_decay": 0.1},
        {"decoupled_weight_decay": True, "weight_decay": 0.2, "maximize": True},
    ],
    "RAdam": [
        {},
        {"lr": tensor(0.01), "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1},
        {"decoupled_weight_decay": True, "weight_decay": 0.2, "maximize": True, "betas": (0.9, 0.99)},
    ],
    "Adadelta": [
        {},
        {"lr": tensor(0.5), "rho": 0.6, "eps": 1e-3, "weight_decay": 0.1},
        {"maximize": True},
    ],
    "Rprop": [
        {},
        {"lr": tensor(0.05), "etas": (0.3, 1.7), "step_sizes": (1e-2, 0.07)},
        {"maximize": True},
    ],
    "ASGD": [
        {},
        {"lr": tensor(0.05), "lambd": 0.1, "alpha": 0.6, "t0": 7, "weight_decay": 0.1},
        {"maximize": True, "t0": 0},
    ],
    "LBFGS": [
        {"line_search_fn": "strong_wolfe"},
        {"lr": tensor(0.0625), "max_iter": 5, "history_size": 3},
        {"lr": 0.0078125, "max_eval": 7, "tolerance_grad": 1e-3, "tolerance_change": 1e-5},
    ],
    "Muon": [
        {},
        {"weight_decay": 0.0, "momentum": 0.8, "nesterov": False, "adjust_lr_fn": "match_rms_adamw"},
        {"ns_coefficients": (2.0, -1.5, 0.5), "ns_steps": 8, "eps": 1e-3},
    ],
    "Adafactor": [
        {},
        {"lr": tensor(0.3), "beta2_decay": -0.5, "eps": (1e-3, 1e-2), "d": 1.5, "weight_decay": 0.1},
        {"maximize": True, "eps": (2.0, 1e-3), "lr": 0.05},
    ],
    "SparseAdam": [
        {},
        {"lr": tensor(0.01), "betas": (0.7, 0.9), "eps": 1e-3},
        {"maximize": True},
    ],
}

SHAPES: list[tuple[int, ...]] = [(), (0,), (3, 0), (1,), (7,), (5, 3), (4, 3, 3, 3), (1, 1, 2, 2)]
"""Those of four dimensions are channels_last."""

DENSE = [name for name in OPTIONS if name not in ONLY_SPARSE | ONLY_MATRICES | NEEDS_CLOSURE]
ELEMENTWISE = [name for name in DENSE if name not in BY_ROWS]


def cases(names: list[str]) -> list[Any]:
    """A pytest parameter (name, number of the options) for each case."""
    return [
        pytest.param(name, number, id=f"{name}-{'-'.join(options) or 'defaults'}")
        for name in names
        for number, options in enumerate(OPTIONS[name])
    ]


def arguments(name: str) -> dict[str, inspect.Parameter]:
    """What torch's constructor takes, but for the parameters."""
    taken = dict(inspect.signature(getattr(torch.optim, name).__init__).parameters)
    return {key: value for key, value in taken.items() if key not in ("self", "params")}


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype.is_complex else torch.float64


def case_parameters(dtype: torch.dtype, shapes: list[tuple[int, ...]] = SHAPES, size: float = 0.1) -> list[Tensor]:
    """The same values at every call."""
    generator = torch.Generator().manual_seed(1)
    made = [(size * torch.randn(shape, generator=generator, dtype=wide(dtype))).to(dtype) for shape in shapes]
    return [(p.to(memory_format=torch.channels_last) if p.ndim == 4 else p).requires_grad_() for p in made]


@functools.cache
def noise(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=wide(dtype)).to(dtype)


@functools.cache
def gradient(shape: tuple[int, ...], dtype: torch.dtype, index: int, step: int) -> Tensor:
    """A contiguous gradient that keeps its sign in most elements and changes it in some."""
    return noise(shape, dtype, index) + 0.7 * noise(shape, dtype, 1000 * (index + 1) + step)


def missing(index: int, step: int) -> bool:
    """Whether a parameter has no gradient in a step."""
    return (step == 3 and index % 2 == 0) or (step == 17 and index % 3 > 0)


def give_case_gradients(params: list[Tensor], step: int) -> None:
    for index, p in enumerate(params):
        p.grad = None if missing(index, step) else gradient(tuple(p.shape), p.dtype, index, step)


def shapes_for(name: str) -> list[tuple[int, ...]]:
    if name in ONLY_MATRICES:
        return [(4, 4), (3, 5), (6, 2)]
    if name in ONLY_SPARSE | NEEDS_CLOSURE:
        return [(6,), (6, 3)]
    return [shape for shape in SHAPES if 0 not in shape] if name in BY_ROWS else SHAPES


def take_step(name: str, optimizer: Any, params: list[Tensor], step: int) -> None:
    """A step with the kind of gradient, or the closure, that the algorithm needs."""
    give_case_gradients(params, step)
    if name in ONLY_SPARSE:
        for p in params:
            p.grad = None if p.grad is None else some_rows(p.grad)
    if name in NEEDS_CLOSURE:
        optimizer.step(lambda: quadratic(params))
    else:
        optimizer.step()


def some_rows(grad: Tensor) -> Tensor:
    kept = grad.clone()
    kept[[0, -1]] = 0
    return kept.to_sparse(1)


def quadratic(params: list[Tensor]) -> Tensor:
    """A loss whose curvature differs in every direction, with its gradient."""
    loss = torch.zeros((), dtype=params[0].dtype)
    for index, p in enumerate(params):
        p.grad = None
        scale = torch.arange(1, p.numel() + 1, dtype=p.dtype).view(p.shape)
        loss = loss + (scale * (p - index) ** 2).sum() + (p - p.flatten().sum()).pow(4).sum() / 100
    loss.backward()
    return loss


def assert_same_update(ours: Tensor, theirs: Tensor, start: Tensor, tolerance: float, what: str) -> None:
    """To a fraction of the update taken, and four roundings of the value itself."""
    if ours.numel() == 0:
        return
    eps = torch.finfo(ours.dtype).eps if ours.is_floating_point() or ours.is_complex() else 0.0
    allowed = tolerance * (theirs - start).abs().max() + 4 * eps * theirs.abs()
    error = (ours - theirs).abs()
    assert (error <= allowed).all(), f"{what}: off by {(error / allowed).max().item():.3g} times what is allowed"
