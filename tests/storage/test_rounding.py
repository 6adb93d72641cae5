"""Weights of 16 bits that are rounded at random."""

import copy
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from held_state import Make, assert_refused, gradients, hashed, run, stochastically_rounded
from hypothesis import given, settings
from hypothesis import strategies as st

from steprule import LBFGS, SGD, AdamW, Lamb, Lion, Muon


def test_weights_are_rounded_by_the_random_bits_of_element_step_and_parameter() -> None:
    grads = gradients((70, 50), 3, torch.bfloat16, scale=1.0)
    weight, state, _ = run(
        lambda p: SGD(p, lr=0.0078125, seed=3, rounding="stochastic"), torch.ones(70, 50, dtype=torch.bfloat16), grads
    )
    tag, key = (zlib.crc32(text) for text in (b"the parameter", b"0 of group 0"))
    p: Any = np.ones((70, 50), np.float32)
    index = np.arange(3500).reshape(70, 50)
    for step, grad in enumerate(grads, 1):
        p = p - np.float32(0.0078125) * grad.float().numpy()
        p = stochastically_rounded(p, hashed(index, 3, tag, key, step))
    np.testing.assert_array_equal(weight.float().numpy(), p)
    assert float(state["step"]) == 3


def test_updates_below_half_a_unit_are_not_lost() -> None:
    grads = [torch.ones(4096, dtype=torch.bfloat16)] * 200

    def mean(rounding: str) -> float:
        start = torch.ones(4096, dtype=torch.bfloat16)
        weight, _, _ = run(lambda p: SGD(p, lr=1e-4, rounding=rounding), start, grads)
        return float(weight.double().mean())

    assert mean("nearest") == 1
    assert abs(mean("stochastic") - 0.98) < 1e-3


@pytest.mark.parametrize("backend", ["llvm", "eager"])
@pytest.mark.parametrize("exponent", [0, -13, -14, -16, -20, -24, 3])
def test_float16_weights_are_one_of_two_neighbours_the_nearer_more_often(backend: str, exponent: int) -> None:
    """Below 2**-14 neighbours are 2**-24 apart, above by a 1024th of the power of two."""
    unit = 2.0 ** max(exponent - 10, -24)
    start = torch.full((40000,), 2.0**exponent + 3 * unit, dtype=torch.float16)
    sign = torch.where(torch.arange(40000) % 2 == 0, 1.0, -1.0).half()
    grad = -0.25 * unit * torch.ones(40000)
    scale = 2.0**20  # for the gradient to be no small number of float16
    weight, _, _ = run(
        lambda p: SGD(p, lr=1 / scale, rounding="stochastic", backend=backend), start * sign, [(grad * scale).half()]
    )
    moved = (weight.double() - (start * sign).double()) / unit
    assert sorted(set(moved.tolist())) == [0.0, 1.0]
    assert abs(moved.mean() - 0.25) < 0.01


def test_float16_weights_lose_nothing_on_average_and_show_what_is_not_finite() -> None:
    grads = [torch.ones(4096, dtype=torch.float16)] * 200
    weight, _, _ = run(lambda p: SGD(p, lr=1e-5, rounding="stochastic"), torch.ones(4096, dtype=torch.float16), grads)
    assert abs(float(weight.double().mean()) - 0.998) < 1e-4
    bad = torch.tensor([1.0, torch.nan, torch.inf, -torch.inf], dtype=torch.float16)
    weight, _, _ = run(lambda p: SGD(p, lr=1.0, rounding="stochastic"), torch.ones(4, dtype=torch.float16), [bad])
    assert weight.isnan().tolist() == [False, True, False, False]
    assert weight[2:].tolist() == [-torch.inf, torch.inf]


@settings(deadline=None, max_examples=8)
@given(kind=st.sampled_from([AdamW, Lion]), shape=st.sampled_from([(7, 3), (64, 80)]), size=st.integers(-8, 3))
def test_every_kernel_rounds_float16_to_the_same_bits(kind: Make, shape: tuple[int, ...], size: int) -> None:
    grads = gradients(shape, 3, torch.float16, scale=1.0)
    start = (gradients(shape, 1, torch.float32, scale=10.0**size)[0]).half()
    found = [
        run(lambda p, b=b: kind(p, lr=10.0 ** (size - 2), rounding="stochastic", backend=b), start, grads)
        for b in ("llvm", "eager")
    ]
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][0].dtype == torch.float16


@settings(deadline=None, max_examples=10)
@given(
    kind=st.sampled_from([AdamW, Lion, Lamb, Muon]),
    shape=st.sampled_from([(7, 3), (64, 80), (300, 70)]),
    asked=st.sampled_from([None, "bfloat16", "8bit"]),
)
def test_every_kernel_gives_the_same_bits(kind: Make, shape: tuple[int, ...], asked: Any) -> None:
    grads, start = gradients(shape, 3, torch.bfloat16), torch.ones(shape, dtype=torch.bfloat16)
    found = [
        run(lambda p, b=b: kind(p, lr=1e-3, state_dtype=asked, rounding="stochastic", backend=b), start, grads)
        for b in ("llvm", "eager")
    ]
    if kind is not Lamb:  # whose norms are added up in another order
        assert torch.equal(found[0][0], found[1][0])


def test_float32_weights_are_not_rounded() -> None:
    grads, start = gradients((40, 30), 3, torch.float32), torch.ones(40, 30)
    a, _, _ = run(lambda p: AdamW(p, rounding="stochastic"), start, grads)
    b, _, _ = run(lambda p: AdamW(p), start, grads)
    assert torch.equal(a, b)


def test_resuming_gives_the_same_bits() -> None:
    grads, start = gradients((40, 30), 6, torch.bfloat16), torch.ones(40, 30, dtype=torch.bfloat16)

    def make(p: Any) -> torch.optim.Optimizer:
        return SGD(p, lr=1e-2, rounding="stochastic")

    wanted, _, _ = run(make, start, grads)
    weight, _, optimizer = run(make, start, grads[:3])
    other = weight.clone().requires_grad_()
    resumed = make([other])
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for grad in grads[3:]:
        other.grad = grad.clone()
        resumed.step()
    assert torch.equal(other, wanted)


def test_nan_and_infinity_stay_what_they_are() -> None:
    weight = torch.ones(4, dtype=torch.bfloat16, requires_grad=True)
    weight.grad = torch.tensor([1.0, torch.nan, torch.inf, -torch.inf], dtype=torch.bfloat16)
    SGD([weight], lr=1.0, rounding="stochastic").step()
    assert weight.isnan().tolist() == [False, True, False, False]
    assert weight[2:].tolist() == [-torch.inf, torch.inf]


@pytest.mark.parametrize(
    ("make", "dtype", "words"),
    [
        (lambda p: SGD(p, rounding="up"), torch.bfloat16, "rounding"),
        (lambda p: SGD(p, rounding="stochastic"), torch.complex64, "is for weights that are real numbers"),
        (lambda p: SGD(p, rounding="stochastic", differentiable=True), torch.bfloat16, "differentiable=True"),
        (lambda p: AdamW(p, rounding="stochastic", capturable=True), torch.bfloat16, "capturable=True"),
        (lambda p: LBFGS(p, rounding="stochastic"), torch.bfloat16, "LBFGS does not support rounding"),
    ],
)
def test_what_is_not_served_is_refused_by_name(make: Make, dtype: torch.dtype, words: str) -> None:
    assert_refused(make, dtype, words)
