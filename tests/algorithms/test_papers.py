"""Algorithms that torch.optim does not have, against their papers' formulas in a plain float64 loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from algorithm_cases import case_parameters, gradient, missing

import steprule

Array = npt.NDArray[np.float64]
SHAPES: list[tuple[int, ...]] = [(3, 4), (40, 50), (7,), ()]


def lamb(x: Array, gradients: list[Array], lr: float, beta1: float, beta2: float, eps: float, decay: float) -> Array:
    m, v = np.zeros_like(x), np.zeros_like(x)
    for t, g in enumerate(gradients, 1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        r = m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + eps)
        u = r + decay * x
        sizes = np.linalg.norm(x.ravel()), np.linalg.norm(u.ravel())
        x = x - lr * (sizes[0] / sizes[1] if all(sizes) else 1.0) * u
    return x


def lion(x: Array, gradients: list[Array], lr: float, beta1: float, beta2: float, eps: float, decay: float) -> Array:
    m = np.zeros_like(x)
    for g in gradients:
        c = beta1 * m + (1 - beta1) * g
        x = x - lr * (np.sign(c) + decay * x)
        m = beta2 * m + (1 - beta2) * g
    return x


FORMULAS: dict[str, Callable[..., Array]] = {"Lamb": lamb, "Lion": lion}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("backend", ["llvm", "eager"])
def test_the_papers_formula(name: str, decay: float, dtype: torch.dtype, backend: str) -> None:
    params = case_parameters(dtype, SHAPES)
    with torch.no_grad():
        params[2].zero_()  # a layer of norm zero
    options: dict[str, Any] = {"eps": 1e-5} if name == "Lamb" else {}
    optimizer = getattr(steprule, name)(
        params, lr=0.02, betas=(0.8, 0.95), weight_decay=decay, backend=backend, **options
    )
    expected = []
    for index, p in enumerate(params):
        gradients = [gradient(tuple(p.shape), dtype, index, step) for step in range(30) if not missing(index, step)]
        start = p.detach().double().numpy()
        expected.append(FORMULAS[name](start, [g.double().numpy() for g in gradients], 0.02, 0.8, 0.95, 1e-5, decay))
    starts = [p.detach().clone() for p in params]
    for step in range(30):
        for index, p in enumerate(params):
            p.grad = None if missing(index, step) else gradient(tuple(p.shape), dtype, index, step)
        optimizer.step()
    for p, x, first in zip(params, expected, starts, strict=True):
        moved = np.abs(x - first.double().numpy()).max()
        tolerance = (2e-6 if dtype == torch.float32 else 1e-12) * moved + 30 * torch.finfo(dtype).eps * np.abs(x)
        assert (np.abs(p.detach().double().numpy() - x) <= tolerance).all()
