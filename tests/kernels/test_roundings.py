"""How every function of the language rounds: what the table in docs/rules.md promises, asked of every backend."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from every_algorithm import MATRIX, REDUCING, RULES
from kernel_cases import optimizer_of
from tensors import leaf, normal
from torch import Tensor

import steprule
from steprule import rule
from steprule.kernels.operations import root
from steprule.rule.functions import __all__ as functions

PAGE = (Path(__file__).parents[2] / "docs" / "rules.md").read_text(encoding="utf-8")
TABLE = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.split("## How it rounds")[1].split("\n\n")[2].splitlines()
]
BACKENDS = TABLE[0][1:]
PROMISED = {
    (name, backend): float(cell.split()[0])
    for row in TABLE[3:]
    for name in re.findall(r"[a-z0-9]+", row[0])
    for backend, cell in zip(BACKENDS, row[1:], strict=True)
}
"""In units of the last place, for each function that is not rounded correctly, and each backend."""
EXACT = re.findall(r"`([^`]+)`", TABLE[2][0])
DTYPES = [torch.float32, torch.float64]
HAVE = [b for b in BACKENDS if b != "triton" or importlib.util.find_spec("triton")]


def random(seed: int, low: float, high: float, count: int = 400) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).uniform(low, high, count)


def samples(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Operands over the whole range of a function, and more where its result is of the size of 1."""
    info = torch.finfo(dtype)
    small, large = np.log2(info.smallest_normal * info.eps), np.log2(info.max)
    second = random(1, -6, 6, 800)
    if name == "exp":
        first = [random(2, small * np.log(2), large * np.log(2)), random(3, -2, 2)]
    elif name in ("log", "sqrt"):
        first = [2.0 ** random(2, small, large), random(3, 0.5, 2)]
    elif name == "pow":
        first = [2.0 ** random(2, -20, 20), 2.0 ** random(3, -20, 20)]
        second[400:] = np.random.default_rng(4).choice([0.5, -0.5, 2, -2, 3, -3, -1, 1.5, 0.1], 400)
    elif name == "erf":
        first = [random(2, -6, 6), 10.0 ** random(3, small / 4, 1)]
    elif name == "tanh":
        first = [random(2, -20, 20), 10.0 ** random(3, small / 4, 1)]
    else:
        first = [random(2, -100, 100), random(3, -1, 1) * 10.0 ** random(4, -10, 6)]
    return tuple(torch.from_numpy(x).to(dtype) for x in (np.concatenate(first), second))  # type: ignore[return-value]


@cache
def truth(name: str, dtype: torch.dtype) -> list[Any]:
    """The results in 40 digits."""
    with mpmath.workdps(40):
        a, b = samples(name, dtype)
        if name in ("pow", "atan2"):
            of_two = mpmath.power if name == "pow" else mpmath.atan2
            return [of_two(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
        return [getattr(mpmath, name)(x) for x in a.tolist()]


def ulps(found: Tensor, exact: list[Any]) -> list[float]:
    """By how many units in the last place of the result each is off."""
    nearest = torch.tensor([float(x) for x in exact], dtype=torch.float64).to(found.dtype)
    one = np.spacing(np.abs(nearest.numpy()))
    with mpmath.workdps(40):
        return [float(abs(x - y) / u) for x, y, u in zip(found.tolist(), exact, one.tolist(), strict=True)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", HAVE)
@pytest.mark.parametrize("name", ["sqrt", *dict.fromkeys(name for name, _ in PROMISED)])
def test_functions_are_off_by_as_much_as_the_page_says(name: str, backend: str, dtype: torch.dtype) -> None:
    a, b = samples(name, dtype)
    p = leaf(a.clone(), b)
    call: Callable[..., Any] = {"pow": rule.power}.get(name) or getattr(rule, name)
    optimizer_of(lambda p, g, s, h: call(p, g) if name in ("pow", "atan2") else call(p), [p], backend).step()

    found = ulps(p.detach(), truth(name, dtype))
    worst = int(np.argmax(found))
    assert found[worst] <= PROMISED.get((name, backend), 0.5), (found[worst], a[worst].item(), b[worst].item())


@pytest.mark.parametrize("count", [1, 3, 7, 8, 9, 100_000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_root_of_the_reference_is_that_of_the_processor(dtype: torch.dtype, count: int) -> None:
    for seed in range(1 if count > 9 else 300):
        x = normal(count, seed=seed, dtype=dtype).abs()
        assert torch.equal(root(x), torch.from_numpy(np.sqrt(x.numpy())))
    special = torch.tensor([0.0, -0.0, torch.inf, -1.0, torch.nan, torch.finfo(dtype).tiny / 4], dtype=dtype)
    found, expected = root(special), torch.from_numpy(np.sqrt(special.abs().numpy()))
    assert found[:3].tolist() == [0.0, 0.0, torch.inf]
    assert found.signbit()[:2].tolist() == [False, True]
    assert found[3:5].isnan().all()
    assert found[5] == expected[5]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_root_of_the_reference_has_both_derivatives(dtype: torch.dtype) -> None:
    x = normal(5, seed=1, dtype=dtype).abs().requires_grad_()
    (first,) = torch.autograd.grad(root(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(first, 0.5 * x**-0.5)
    torch.testing.assert_close(second, -0.25 * x**-1.5)


EVERYTHING: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "+ - * /": (lambda a, b: (a + b) * a - b / a, lambda a, b: (a + b) * a - b / a),
    "%": (lambda a, b: a % b, lambda a, b: a - b * np.floor(a / b)),
    "sqrt": (lambda a, b: rule.sqrt(a), lambda a, b: np.sqrt(a)),
    "rsqrt": (lambda a, b: rule.rsqrt(a), lambda a, b: 1 / np.sqrt(a)),
    "square": (lambda a, b: rule.square(a), lambda a, b: a * a),
    "lerp": (lambda a, b: rule.lerp(a, b, 0.1), lambda a, b: a + a.dtype.type(0.1) * (b - a)),
    "abs": (lambda a, b: rule.abs(b), lambda a, b: np.abs(b)),
    "floor": (lambda a, b: rule.floor(b), lambda a, b: np.floor(b)),
    "ceil": (lambda a, b: rule.ceil(b), lambda a, b: np.ceil(b)),
    "round": (lambda a, b: rule.round(4 * b), lambda a, b: np.round(4 * b)),
    "sign": (lambda a, b: rule.sign(b), lambda a, b: np.sign(b)),
    "minimum": (rule.minimum, np.minimum),
    "maximum": (rule.maximum, np.maximum),
    "clip": (lambda a, b: rule.clip(b, -0.3, 0.3), lambda a, b: np.clip(b, *map(b.dtype.type, (-0.3, 0.3)))),
    "isnan": (lambda a, b: rule.where(rule.isnan(b), a, b), lambda a, b: b),
    "where": (lambda a, b: rule.where(b > 0, a, b), lambda a, b: np.where(b > 0, a, b)),
}


def test_the_page_names_every_function_with_its_roundings() -> None:
    named = {name for cell in EXACT for name in cell.split()} | {name for name, _ in PROMISED} | {"power"}
    reductions = {"matrix", "max_abs", "mean", "norm", "sum"}
    assert set(functions) - reductions - {"eps", "given", "ndim", "size", "stored"} <= named
    assert {name for cell in EXACT for name in cell.split()} == {n for key in EVERYTHING for n in key.split()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", HAVE)
@pytest.mark.parametrize("name", EVERYTHING)
def test_exact_functions_have_the_bits_of_numpy(name: str, backend: str, dtype: torch.dtype) -> None:
    ours, theirs = EVERYTHING[name]
    a = normal(4001, seed=5, dtype=dtype).abs() + 0.01
    b = normal(4001, seed=6, dtype=dtype)
    p = leaf(a.clone(), b)
    optimizer_of(lambda p, g, s, h: ours(p, g), [p], backend).step()
    assert torch.equal(p.detach(), torch.from_numpy(theirs(a.numpy(), b.numpy())))


POWERS = {"MADGRAD"}
"""Those that take powers of arrays, which each backend rounds in its own way."""


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", sorted(set(RULES) - REDUCING - MATRIX - POWERS))
def test_algorithms_give_the_same_bits_compiled_and_eager(name: str, dtype: torch.dtype) -> None:
    found = []
    for backend in ("llvm", "eager"):
        p = leaf(normal(50, 41, seed=7, dtype=dtype))
        optimizer = getattr(steprule, name)([p], backend=backend)
        for step in range(7):
            grad = normal(50, 41, seed=8 + step, dtype=dtype)
            p.grad = grad.to_sparse(1) if name == "SparseAdam" else grad
            optimizer.step()
        found.append([p.detach(), *(v for v in optimizer.state[p].values() if isinstance(v, Tensor))])
    for compiled, eager in zip(*found, strict=True):
        assert torch.equal(compiled, eager)
