"""Reductions over all but the first dimension, as matrix() views a convolution, and numbers for each matrix."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from tensors import grad_of, normal
from torch import Tensor

from steprule import Optimizer
from steprule.algorithms.matrix.newton_schulz import orthogonalized
from steprule.rule import (
    RuleError,
    array,
    channel,
    column,
    lerp,
    matrix,
    max_abs,
    mean,
    norm,
    row,
    size,
    sqrt,
    square,
    sum,
    trace,
    where,
)

INTERPRETER = pytest.mark.skipif(
    find_spec("triton") is None or torch.cuda.is_available(), reason="Triton's interpreter is not switched on"
)
BACKENDS = pytest.mark.parametrize("backend", ["llvm", "eager", pytest.param("triton", marks=INTERPRETER)])
SHAPES: list[tuple[int, ...]] = [
    (5, 3),
    (4, 3, 2, 2),
    (2, 3, 4),
    (1, 9),
    (9, 1),
    (0, 3),
    (3, 0),
    (3, 0, 4),
    (70, 3, 33),
]


class Channels(Optimizer):
    """Every reduction over channels, mixed with each other kind of value."""

    slots = {"kept": channel(0.5), "low": row(), "high": column(), "double": channel(dtype="float64")}  # noqa: RUF012

    def __init__(self, params: Any, lr: float = 0.1, **options: Any) -> None:
        super().__init__(params, dict(lr=lr), **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        s.kept = 0.5 * s.kept + norm(g, scope="channel") + max_abs(p, scope="channel") * norm(g) + s.step
        s.double = mean(square(g), scope="channel")
        s.low = norm(g, dim=-1) / (1 + s.kept) + mean(norm(g, dim=-1), dim=-2)
        s.high = norm(g, dim=-2) / (1 + mean(norm(g, dim=-2), dim=-1)) + sum(s.low, dim=-2)
        return p - h.lr * g / (1 + s.kept + s.high + s.low) - h.lr * sum(g, scope="channel") * s.double


def step_by_torch(p: Tensor, g: Tensor, state: dict[str, Tensor], step: int) -> Tensor:
    rest = tuple(range(1, p.ndim))

    def over(x: Tensor, kind: str) -> Tensor:
        if kind == "max" and not x[:1].numel():
            return x.sum(rest, keepdim=True)
        return x.abs().amax(rest, keepdim=True) if kind == "max" else x.sum(rest, keepdim=True)

    size_of = torch.tensor(float(p[:1].numel()))
    kept = 0.5 * state["kept"] + over(g * g, "sum").sqrt() + over(p, "max") * g.norm() + step
    double = over(g * g, "sum") / size_of
    rows, columns = g.norm(dim=-1, keepdim=True), g.norm(dim=-2, keepdim=True)
    low = rows / (1 + kept) + rows.mean(-2, keepdim=True)
    high = columns / (1 + columns.mean(-1, keepdim=True)) + low.sum(-2, keepdim=True)
    state |= {"kept": kept, "double": double, "low": low, "high": high}
    return p - 0.1 * g / (1 + kept + high + low) - 0.1 * over(g, "sum") * double


def wide_normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return normal(*shape, seed=seed, dtype=torch.float64)


@BACKENDS
def test_channels_are_what_torch_says(backend: str) -> None:
    params = [wide_normal(shape, i).requires_grad_() for i, shape in enumerate(SHAPES)]
    wide = [p.detach().clone() for p in params]
    states = [{"kept": p.new_full((p.shape[0], *[1] * (p.ndim - 1)), 0.5)} for p in wide]
    optimizer = Channels(params, backend=backend)
    for step in range(1, 4):
        for i, p in enumerate(params):
            p.grad = wide_normal(p.shape, 100 * step + i)
        optimizer.step()
        wide = [step_by_torch(q, grad_of(p), s, step) for q, p, s in zip(wide, params, states, strict=True)]
    for p, q, state in zip(params, wide, states, strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=1e-12, atol=1e-12)
        for name, value in state.items():
            assert optimizer.state[p][name].shape == value.shape
            torch.testing.assert_close(optimizer.state[p][name], value, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_the_compiled_kernel_and_the_reference_agree_in_float32() -> None:
    found = []
    for backend in ("llvm", "eager"):
        params = [wide_normal(shape, i).float().requires_grad_() for i, shape in enumerate(SHAPES)]
        for i, p in enumerate(params):
            p.grad = wide_normal(p.shape, 50 + i).float()
        Channels(params, backend=backend).step()
        found.append([p.detach() for p in params])
    torch.testing.assert_close(*found, rtol=2e-6, atol=2e-6)


class NorMuon(Optimizer):
    """Muon with a second moment for each neuron (Li et al., 2025)."""

    slots = {"second": channel()}  # noqa: RUF012

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        s.momentum = lerp(s.momentum, g, 0.05)
        o = matrix(orthogonalized, lerp(g, s.momentum, 0.95), 3.4445, -4.775, 2.0315, 1e-7, 5)
        s.second = lerp(s.second, mean(square(o), scope="channel"), 0.05)
        u = o / (sqrt(s.second) + 1e-8)
        return p - h.lr * 0.2 * sqrt(size(p)) / norm(u) * u


@BACKENDS
def test_normuon_on_a_convolution_is_that_of_its_matrix(backend: str) -> None:
    p = wide_normal((6, 3, 2, 2), 0).requires_grad_()
    w, momentum, second = p.detach().reshape(6, 12).clone(), torch.zeros(6, 12).double(), torch.zeros(6, 1).double()
    optimizer = NorMuon([p], dict(lr=0.02), backend=backend)
    for step in range(4):
        p.grad = wide_normal(p.shape, 10 + step)
        optimizer.step()
        g = p.grad.reshape(6, 12)
        momentum += 0.05 * (g - momentum)
        o = orthogonalized((g + 0.95 * (momentum - g)).clone()[None], 3.4445, -4.775, 2.0315, 1e-7, 5)[0]
        second += 0.05 * (o.square().mean(1, keepdim=True) - second)
        u = o / (second.sqrt() + 1e-8)
        w -= 0.02 * 0.2 * w.numel() ** 0.5 / u.norm() * u
    torch.testing.assert_close(p.detach().reshape(6, 12), w, rtol=1e-10, atol=1e-10)
    assert optimizer.state[p]["second"].shape == (6, 1, 1, 1)


class Projected(Optimizer):
    """The projection of AdamP (Heo et al., 2021): by channel, where the gradient hardly turns the weights."""

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        length = norm(p, scope="channel") + 1e-8
        cosine = max_abs(sum(p * g, scope="channel") / (length * (norm(g, scope="channel") + 1e-8)) + 0 * p)
        n = p / length
        u = where(cosine < 0.5, g - n * sum(n * g, scope="channel"), g)
        return p - h.lr * u


@BACKENDS
def test_the_projection_of_adamp_on_a_convolution(backend: str) -> None:
    p = wide_normal((4, 3, 2, 2), 0).requires_grad_()
    p.grad = wide_normal(p.shape, 1)
    w, g = p.detach().reshape(4, 12).clone(), p.grad.reshape(4, 12)
    cosine = torch.nn.functional.cosine_similarity(w, g, dim=1).abs().max()
    assert cosine < 0.5
    n = w / (w.norm(dim=1, keepdim=True) + 1e-8)
    Projected([p], dict(lr=0.1), backend=backend).step()
    expected = w - 0.1 * (g - n * (n * g).sum(1, keepdim=True))
    torch.testing.assert_close(p.detach().reshape(4, 12), expected, rtol=1e-12, atol=1e-12)


def test_a_row_divided_by_a_number_of_each_matrix_is_a_row() -> None:
    def rule(p: Any, g: Any, s: Any, h: Any) -> Any:
        s.rows, s.columns = norm(g, dim=-1), norm(g, dim=-2)
        s.one = s.rows / mean(s.columns, dim=-1)
        s.two = s.columns / mean(s.rows, dim=-2)
        return p - s.one * s.two

    found = {slot.name: slot.kind for slot in trace(rule, {"lr": 0.1}).state}
    assert found == {"rows": "row", "columns": "column", "one": "row", "two": "column"}


def test_what_a_channel_can_not_hold_is_refused() -> None:
    def channel_of(make: Any) -> Any:
        def rule(p: Any, g: Any, s: Any, h: Any) -> Any:
            s.kept = make(g)
            return p - s.kept

        return lambda: trace(rule, {}, {"kept": channel()})

    with pytest.raises(RuleError, match=r"s.kept is one number for each channel but is given one number for each row"):
        channel_of(lambda g: norm(g, dim=-1))()
    with pytest.raises(RuleError, match=r"for each channel but is given one number for each matrix"):
        channel_of(lambda g: mean(norm(g, dim=-1), dim=-2))()
    with pytest.raises(RuleError, match=r"mean\(\) reduces an array, but \(.*\) has been reduced over a dimension"):
        channel_of(lambda g: mean(norm(g, dim=-1), scope="channel"))()
    with pytest.raises(RuleError, match=r"scope is 'tensor' .* or 'all' .*, not 'channels'"):
        channel_of(lambda g: mean(g, scope="channels"))()  # type: ignore[arg-type]
    assert channel_of(lambda g: norm(g, scope="channel"))().line_slots
    assert "sum_of_squares(g, channel)" in str(channel_of(lambda g: norm(g, scope="channel"))())
    assert array() != channel()


def test_a_vector_has_no_channels() -> None:
    p = torch.ones(3, requires_grad=True)
    p.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match=r"reduces rows or columns, but parameter 0 of group 0 has shape \(3,\)"):
        NorMuon([p], dict(lr=0.1)).step()
