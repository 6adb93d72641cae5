"""The Triton kernels against the eager reference: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import os
import runpy
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensors
import torch
from captures import as_if_capturing
from every_algorithm import BY_SHAPE, MATRIX, ONLY_MATRICES, RULES, TIMED
from hypothesis import given, settings
from hypothesis import strategies as st
from inside import launches
from tensors import coo, give_gradients, grad_of, normal
from torch import Tensor
from torch.optim import optimizer as torch_optimizer
from torch.utils._python_dispatch import TorchDispatchMode

import steprule
from steprule import Optimizer, rule
from steprule.kernels import choose
from steprule.kernels.gpu import device_table, row_tiles, triton, tune
from steprule.kernels.tables import row_chunks
from steprule.stepping import options as stepping_options

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float64: 1e-13, torch.float32: 3e-7, torch.bfloat16: 0.0, torch.float16: 0.0}
if DEVICE == "cuda":  # its exp, log and pow round otherwise than the reference's
    TOLERANCE |= {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor of forty elements is two chunks, of whole blocks and a rest."""
    monkeypatch.setattr(triton, "CHUNK", 32)
    monkeypatch.setattr(triton, "GATHER", 4)
    monkeypatch.setattr(triton, "DEFAULT", tune.Block(16, 1))
    monkeypatch.setattr(triton, "narrow_block", lambda width: tune.Block(16, 1))
    monkeypatch.setattr(triton, "TILE", 16)
    monkeypatch.setattr(triton, "SPAN", 32)
    monkeypatch.setattr(row_tiles, "NARROW", 4)


@pytest.fixture(autouse=True)
def capturable_in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_optimizer, "_get_capturable_supported_devices", lambda *_: ["cuda", "cpu"])
    monkeypatch.setattr(stepping_options, "capturable_devices", lambda: ["cuda", "cpu"])


def numbers(shape: Any, seed: int, dtype: torch.dtype = torch.float32, size: float = 1.0) -> Tensor:
    return normal(*shape, seed=seed, dtype=dtype, device=DEVICE, size=size)


parameters = partial(tensors.parameters, device=DEVICE)


def assert_near(ours: Any, theirs: Any, tolerance: float | None = None) -> None:
    for a, b in zip(ours, theirs, strict=True):
        rtol = TOLERANCE[b.dtype] if tolerance is None else tolerance
        torch.testing.assert_close(a.detach(), b.detach(), rtol=rtol, atol=rtol, equal_nan=True)


def states(optimizer: Optimizer) -> list[Tensor]:
    flat = (value for state in optimizer.state.values() for _, value in sorted(state.items()))
    return [value.detach().to(DEVICE) for value in flat]


def compare(
    make: Callable[[list[Any], str], Optimizer],
    start: Callable[[], list[Tensor]],
    steps: int = 3,
    gradients: Callable[[list[Tensor], int], None] = give_gradients,
    tolerance: float | None = None,
) -> Optimizer:
    """Take the same steps with both backends, and compare parameters and state; gives the Triton optimizer."""
    results = []
    for backend in ("triton", "eager"):
        params = start()
        optimizer = make(params, backend)
        for step in range(steps):
            gradients(params, step)
            optimizer.step()
        results.append((optimizer, params))
    (ours, mine), (theirs, reference) = results
    assert {launch.backend for launch in launches(ours)} == {"triton"}
    assert_near(mine, reference, tolerance)
    assert_near(states(ours), states(theirs), tolerance)
    return ours


# -- every algorithm -------------------------------------------------------------------------------------------------

SHAPES = [(3, 5), (37,), (), (0, 4), (4, 11)]
ALGORITHMS = sorted(RULES)
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "SGD": [
        dict(momentum=0.9, nesterov=True, weight_decay=0.1),
        dict(momentum=0.9, dampening=0.5),
        dict(maximize=True),
    ],
    "Adam": [dict(amsgrad=True, weight_decay=0.1)],
    "RMSprop": [dict(centered=True, momentum=0.9)],
    "NAdam": [dict(weight_decay=0.1, decoupled_weight_decay=True)],
}
ONCE = {name for name in ALGORITHMS if not hasattr(torch.optim, name)} - {"Lamb", "Lion"} - MATRIX
"""Those that the interpreter runs in float32 alone, and of which the device computes the numbers for some only."""
ON_DEVICE = {"ADOPT", "AdaBound", "Prodigy", "ScheduleFreeRAdam"}
CASES = [(name, i) for name in ALGORITHMS for i in range(len(OPTIONS.get(name, [{}])))]


def sparse_gradients(params: list[Tensor], step: int) -> None:
    for i, p in enumerate(params):
        p.grad = coo([[0, p.shape[0] - 1, 0]], numbers((3, *p.shape[1:]), 100 * step + i, p.dtype), p.shape)


def in_two_groups(name: str, number: int) -> Callable[[list[Any], str], Optimizer]:
    """Two groups with numbers of their own."""
    options = OPTIONS.get(name, [{}])[number]

    def make(params: list[Any], backend: str) -> Optimizer:
        groups = [dict(params=params[0::2]), dict(params=params[1::2], lr=0.03)]
        return getattr(steprule, name)(groups, backend=backend, **options)

    return make


@pytest.mark.parametrize(
    ("dtype", "name", "number"),
    [(torch.float32, *case) for case in CASES]
    + [(torch.float64, *case) for case in CASES if case[0] not in ONCE | MATRIX]  # these in tests/parity
    + [(torch.bfloat16, *case) for case in CASES if case[0] not in ONCE],
)
def test_every_algorithm_is_the_reference(name: str, number: int, dtype: torch.dtype) -> None:
    sparse = name == "SparseAdam"
    shapes = [(5, 7), (9, 3)] if sparse or name in ONLY_MATRICES else SHAPES
    gradients = sparse_gradients if sparse else give_gradients
    ours = compare(in_two_groups(name, number), lambda: parameters(shapes, dtype), gradients=gradients)
    assert len(launches(ours)) == (2 if name in BY_SHAPE else 1)


@pytest.mark.parametrize("name", sorted(TIMED))
def test_what_hands_the_number_of_the_step_to_matrix_functions_needs_the_host_to_know_it(name: str) -> None:
    [p] = parameters([(4, 3)])
    give_gradients([p], 0)
    optimizer = getattr(steprule, name)([p], backend="triton")
    optimizer.param_groups[0]["capturable"] = True
    before = p.detach().clone()
    with pytest.raises(RuntimeError, match=f"{name} hands .* to a matrix function, but with capturable=True"):
        optimizer.step()
    assert torch.equal(p, before)


@pytest.mark.parametrize("name", sorted(set(ALGORITHMS) - {"SparseAdam"} - TIMED - (ONCE - ON_DEVICE)))
def test_every_algorithm_gives_the_same_with_its_numbers_on_the_device(name: str) -> None:
    shapes = [(5, 7), (9, 3)] if name in ONLY_MATRICES else SHAPES

    def make(params: list[Any], backend: str) -> Optimizer:
        optimizer = in_two_groups(name, 0)(params, backend)
        for group in optimizer.param_groups:
            group["capturable"] = backend == "triton"
        return optimizer

    ours = compare(make, lambda: parameters(shapes), steps=7, tolerance=1e-6)
    assert launches(ours)[0].live is not None


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
@pytest.mark.parametrize(("name", "number"), [("SGD", 1), ("NAdam", 0)])
@pytest.mark.parametrize("on_device", [False, True])
def test_a_parameter_that_stands_twice_in_a_group(name: str, number: int, on_device: bool) -> None:
    def make(params: list[Any], backend: str) -> Optimizer:
        optimizer = in_two_groups(name, number)([*params, *params[:2]], backend)
        for group in optimizer.param_groups:
            group["params"].append(group["params"][0])
            group["capturable"] = on_device and backend == "triton"
        return optimizer

    compare(make, lambda: parameters([(3, 5), (37,), (4,), (2, 2)]), tolerance=1e-6 if on_device else None)


# -- the language ----------------------------------------------------------------------------------------------------

SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -2.25, 3.7, 1e-30, -1e30, 1e-45, math.inf, -math.inf, math.nan]
UNARY: dict[str, Callable[[Any], Any]] = {
    name: getattr(rule, name)
    for name in (
        "sqrt",
        "exp",
        "log",
        "tanh",
        "sin",
        "cos",
        "erf",
        "floor",
        "ceil",
        "round",
        "abs",
        "sign",
        "isnan",
        "square",
    )
}
UNARY |= {"neg": lambda x: -x, "reciprocal": lambda x: 1 / x, "negative reciprocal": lambda x: 1 / -x}
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "pow": lambda a, b: rule.power(a, b),
    "atan2": rule.atan2,
    "mod": lambda a, b: a % b,
    "minimum": rule.minimum,
    "maximum": rule.maximum,
    "where": lambda a, b: rule.where(a > b, a, -b),
    "comparisons": lambda a, b: (
        (a < b) * 1.0 + (a <= b) * 2.0 + (a > b) * 4.0 + (a >= b) * 8.0 + (a.__eq__(b)) * 16.0 + (a.__ne__(b)) * 32.0
    ),
    "logic": lambda a, b: rule.where(((a > 0) & (b > 0)) | ~(a < 1), a, b),
    "constants": lambda a, b: a * 0.1 + b * 1e-40 + math.inf * rule.where(a > 0, 1.0, -1.0) * (b > 2),
}


def as_rule(function: Callable[[Any, Any], Any]) -> Callable[[list[Any], str], Optimizer]:
    class Rule(Optimizer):
        def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            return rule.where(g > 1e38, 0.0, 0.0) + function(p, g)

    return lambda params, backend: Rule(params, backend=backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", [*UNARY, *BINARY])
def test_every_operation_treats_special_values_as_torch_does(name: str, dtype: torch.dtype) -> None:
    function = BINARY[name] if name in BINARY else lambda p, g: UNARY[name](g)
    left, right = zip(*itertools.product(SPECIAL, SPECIAL), strict=True)

    def gradients(params: list[Tensor], step: int) -> None:
        params[0].grad = torch.tensor(right, dtype=dtype, device=DEVICE)

    compare(
        as_rule(function),
        lambda: [torch.tensor(left, dtype=dtype, device=DEVICE).requires_grad_()],
        steps=1,
        gradients=gradients,
        tolerance={torch.float32: 1e-6, torch.float64: 1e-14}[dtype],
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["sqrt", "div", "reciprocal"])
def test_roots_and_quotients_of_zeros_have_their_bits(name: str, dtype: torch.dtype) -> None:
    function = {"sqrt": lambda p, g: rule.sqrt(p), "div": lambda p, g: p / g, "reciprocal": lambda p, g: 1 / g}[name]
    made: Any = type("Rule", (Optimizer,), {"update": lambda self, p, g, s, h: function(p, g)})
    tiny, whole = float(torch.finfo(dtype).tiny), {torch.float32: torch.int32, torch.float64: torch.int64}[dtype]
    values = [*SPECIAL, tiny, -tiny, tiny / 4, -tiny / 4, float(torch.finfo(dtype).max)]
    left, right = zip(*itertools.product(values, values), strict=True)
    p = torch.tensor(left, dtype=dtype, device=DEVICE).requires_grad_()
    p.grad = torch.tensor(right, dtype=dtype, device=DEVICE)
    expected = {"sqrt": p.sqrt, "div": lambda: p / grad_of(p), "reciprocal": grad_of(p).reciprocal}[name]().detach()
    made([p], backend="triton").step()
    assert torch.equal(p.isnan(), expected.isnan())  # of which a machine may keep any
    there = ~expected.isnan()
    assert torch.equal(p.detach()[there].view(whole), expected[there].view(whole))


def test_storing_rounds_to_nearest_even() -> None:
    halfway = torch.tensor([1.0 + n * 2**-8 + e for n in range(64) for e in (0.0, 2**-20, -(2**-20))], device=DEVICE)

    class Half(Optimizer):
        slots = {"copy": rule.array(0.0, dtype="bfloat16")}  # noqa: RUF012

        def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            s.copy = g
            return p

    p = torch.zeros_like(halfway).requires_grad_()
    optimizer = Half([p], backend="triton")
    p.grad = halfway
    optimizer.step()
    assert torch.equal(optimizer.state[p]["copy"], halfway.bfloat16())


# -- tensors ---------------------------------------------------------------------------------------------------------


def adamw(params: list[Any], backend: str, **options: Any) -> Optimizer:
    return steprule.AdamW(params, lr=0.01, backend=backend, **options)


def test_parameters_of_each_dtype_are_one_launch_of_their_own() -> None:
    dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64]

    def start() -> list[Tensor]:
        return [p for dtype in dtypes for p in parameters([(7,), (2, 20)], dtype)]

    ours = compare(adamw, start, tolerance=1e-6)
    assert len(launches(ours)) == len(dtypes)


def test_state_of_another_dtype_than_the_parameter() -> None:
    class Narrow(Optimizer):
        slots = {"m": rule.array(0.25, dtype="bfloat16"), "w": rule.array("parameter", dtype="float64")}  # noqa: RUF012

        def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            s.m = rule.lerp(s.m, g, 0.1)
            s.w = s.w - 0.1 * s.m
            return s.w

    compare(lambda params, backend: Narrow(params, backend=backend), lambda: parameters(SHAPES))


def test_conjugate_gradients_of_complex_parameters() -> None:
    def gradients(params: list[Tensor], step: int) -> None:
        params[0].grad = numbers((3, 7), step, torch.complex64).conj()

    compare(adamw, lambda: parameters([(3, 7)], torch.complex64), gradients=gradients, tolerance=1e-6)


def test_layouts() -> None:
    last = torch.channels_last

    def start() -> list[Tensor]:
        plain = parameters([(2, 3, 4, 5), (2, 3, 4, 5), (4, 6), (6, 5)])
        with torch.no_grad():
            plain[0] = plain[0].detach().to(memory_format=last).requires_grad_()
            plain[3] = plain[3].detach().t().requires_grad_()
        return plain

    def gradients(params: list[Tensor], step: int) -> None:
        give_gradients(params, step)
        params[1].grad = grad_of(params[1]).to(memory_format=last)
        params[2].grad = numbers((6, 4), step).t()

    ours = compare(adamw, start, gradients=gradients)
    assert ours.state[ours.param_groups[0]["params"][0]]["exp_avg"].is_contiguous(memory_format=last)


def bucket(sizes: Any, seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Tensors one after another in one buffer, as a bucket of DistributedDataParallel holds gradients."""
    tensors = [numbers((size,), seed + i, dtype) for i, size in enumerate(sizes)]
    buffer = torch.cat(tensors)
    return list(buffer.split(list(sizes)))


def aligned(address: int) -> bool:
    return address % 16 == 0


ODD = [32, 33, 50, 7, 64, 70, 40]
interpreted = pytest.mark.skipif(DEVICE == "cuda", reason="the interpreter's: on a GPU a hint is gone once compiled")


@pytest.fixture
def hinted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The addresses from which Triton is told that it can load and store vectors."""
    seen: list[int] = []

    def set_attr(self: Any, name: str, value: Any) -> None:
        assert (name, value) == ("tt.divisibility", [16])
        seen.append(self.data.item())

    handle = importlib.import_module("triton.runtime.interpreter").TensorHandle
    monkeypatch.setattr(handle, "set_attr", set_attr)
    return seen


class Reducing(Optimizer):
    """Each kind of reduction, over one parameter and over all."""

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        trust = rule.norm(p) / (rule.norm(g) + 1e-6)
        p = p - 0.01 * trust * g - 0.01 * rule.max_abs(g) + 0.1 * rule.mean(p)
        return p / (1 + rule.norm(g, scope="all") + rule.max_abs(p, scope="all") + rule.mean(g, scope="all"))


BUCKETED: dict[str, Callable[[list[Any], str], Optimizer]] = {
    "AdamW": adamw,
    "AdamW clipped": lambda params, backend: adamw(params, backend, clip_norm=0.5),
    "every reduction": lambda params, backend: Reducing(params, backend=backend),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", BUCKETED)
def test_views_of_a_bucket_give_the_bits_of_tensors_that_are_aligned(name: str, dtype: torch.dtype) -> None:
    def gradients(params: list[Tensor], step: int) -> None:
        for p, grad in zip(params, bucket(ODD, 100 * step, dtype), strict=True):
            p.grad = grad

    def copies(params: list[Tensor], step: int) -> None:
        gradients(params, step)
        for p in params:
            p.grad = grad_of(p).clone()

    start = lambda: [p.requires_grad_() for p in bucket(ODD, 0, dtype)]
    ours = compare(BUCKETED[name], start, gradients=gradients)
    theirs = compare(BUCKETED[name], lambda: [p.detach().clone().requires_grad_() for p in start()], gradients=copies)
    (mine,), (reference,) = (launches(optimizer) for optimizer in (ours, theirs))
    assert len({aligned(p.data_ptr()) for p in mine.params}) == 2
    assert all(aligned(p.data_ptr()) for p in reference.params)
    assert all(map(torch.equal, mine.params, reference.params))
    assert all(map(torch.equal, states(ours), states(theirs)))


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("where", ["parameters", "gradients", "momentum"])
def test_vectors_are_loaded_where_all_is_aligned_and_nowhere_else(
    where: str, dtype: torch.dtype, hinted: list[int]
) -> None:
    names = ("parameters", "gradients", "momentum")
    made = {name: bucket(ODD, 20 * i, dtype) for i, name in enumerate(names)}
    kept = {name: made[name] if name == where else [t.clone() for t in made[name]] for name in names}
    params = [p.requires_grad_() for p in kept["parameters"]]
    optimizer = steprule.SGD(params, lr=0.5, momentum=0.5, backend="triton")
    for p, grad, momentum in zip(params, kept["gradients"], kept["momentum"], strict=True):
        p.grad = grad
        optimizer.state[p]["momentum_buffer"] = momentum
    optimizer.step()
    assert all(map(aligned, hinted))
    found = [[tensor.data_ptr() in hinted for tensor in kept[name]] for name in names]
    # the tensor of seven elements has no whole block
    assert found == [[aligned(t.data_ptr()) and len(t) >= 16 for t in made[where]]] * 3
    assert 0 < sum(found[0]) < len(ODD) - 1


def test_nothing_but_empty_tensors() -> None:
    compare(adamw, lambda: parameters([(0,), (3, 0)]))


GUARD = 8
FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 70), st.integers(0, 5)), min_size=1, max_size=4),
    dtype=st.sampled_from(FLOATS),
    slot=st.sampled_from(FLOATS),
    clip=st.booleans(),
)
def test_a_kernel_touches_nothing_outside_of_its_tensors(
    sizes: list[tuple[int, int]], dtype: torch.dtype, slot: torch.dtype, clip: bool
) -> None:
    buffers: list[tuple[Tensor, Tensor]] = []

    def guarded(size: int, offset: int, kind: torch.dtype, fill: float) -> Tensor:
        buffer = torch.full((GUARD + offset + size + GUARD,), 77.0, dtype=kind, device=DEVICE)
        inside = buffer[GUARD + offset : GUARD + offset + size]
        inside.fill_(fill)
        buffers.append((buffer, inside))
        return inside

    params = [guarded(n, offset, dtype, 1.0).requires_grad_() for n, offset in sizes]
    optimizer = steprule.SGD(params, lr=0.5, momentum=0.5, backend="triton", clip_norm=1e6 if clip else None)
    for p, (n, offset) in zip(params, sizes, strict=True):
        p.grad = guarded(n, offset // 2, dtype, 2.0)
        optimizer.state[p]["momentum_buffer"] = guarded(n, (offset + 1) // 2, slot, 4.0)
    optimizer.step()
    for p in params:
        assert (p == -1.0).all()
        assert (optimizer.state[p]["momentum_buffer"] == 4.0).all()
        assert (grad_of(p) == 2.0).all()
    for buffer, inside in buffers:
        inside.detach().fill_(77.0)
        assert (buffer == 77.0).all()


# -- sparse gradients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 5, 8, 70])
def test_only_the_rows_present_are_touched(width: int) -> None:
    def make(params: list[Any], backend: str) -> Optimizer:
        return steprule.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.1, backend=backend)

    start = lambda: parameters([(9, width), (4, 2, width)])
    ours = compare(make, start, gradients=sparse_gradients)
    p = ours.param_groups[0]["params"][0]
    assert torch.equal(p[1:-1], start()[0][1:-1])


@interpreted
def test_rows_are_vectors_where_they_are_aligned(hinted: list[int]) -> None:
    def gradients(params: list[Tensor], step: int) -> None:
        for p in params:
            p.grad = coo([[0, 3, 4, 6]], numbers((4, p.shape[1]), step), p.shape)

    make = lambda params, backend: steprule.SGD(params, lr=0.1, momentum=0.9, backend=backend)
    ours = compare(make, lambda: parameters([(9, 70), (9, 5), (9, 36)]), steps=2, gradients=gradients)
    assert all(map(aligned, hinted))
    # rows of 280 bytes are aligned every other time, and so are their values, which are four rows;
    # a chunk of 32 elements is two blocks, the rest of a row none
    rows: Any = {(0, 0), (0, 32), (4, 0), (4, 32)}, set(), {(0, 0), (3, 0), (4, 0), (6, 0)}
    for p, expected in zip(ours.param_groups[0]["params"], rows, strict=True):
        places = [(a - p.data_ptr()) // 4 for a in hinted if 0 <= a - p.data_ptr() < 4 * p.numel()]
        assert {divmod(place, p.shape[1]) for place in places} == expected


def test_gradients_without_a_row_and_with_two_sparse_dimensions() -> None:
    def gradients(params: list[Tensor], step: int) -> None:
        params[0].grad = coo(np.zeros((1, 0), np.int64), numbers((0, 3), 0), (4, 3))
        params[1].grad = coo([[0, 2], [1, 0]], numbers((2, 5), step), (3, 2, 5))

    make = lambda params, backend: steprule.SparseAdam(params, backend=backend)
    compare(make, lambda: parameters([(4, 3), (3, 2, 5)]), gradients=gradients)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.sets(st.integers(0, 40)), width=st.integers(1, 70), tensor=st.integers(0, 5), limit=st.sampled_from([8, 32])
)
def test_row_chunks_made_on_the_device_cover_the_same_elements(
    rows: set[int], width: int, tensor: int, limit: int
) -> None:
    def elements(table: Any) -> set[tuple[int, int, int]]:
        return {(t, a + i, b + i) for t, a, b, n in table.tolist() for i in range(n)}

    index = torch.tensor(sorted(rows), dtype=torch.int64)
    made_there = device_table.device_row_chunks(tensor, index, width, limit)
    assert (made_there[:, 3] <= limit).all()
    assert elements(made_there) == elements(row_chunks(tensor, index.numpy(), width, limit))


# -- reductions and phases -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_reductions(dtype: torch.dtype) -> None:
    ours = compare(lambda params, backend: Reducing(params, backend=backend), lambda: parameters(SHAPES, dtype))
    assert len(launches(ours)[0].program.phases) > 1


def test_a_maximum_that_is_not_a_number() -> None:
    class Largest(Optimizer):
        def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            return p * 0 + rule.max_abs(g)

    def gradients(params: list[Tensor], step: int) -> None:
        give_gradients(params, step)
        params[0].grad[35], params[1].grad[2], params[1].grad[3] = -math.inf, math.nan, math.inf

    start = lambda: parameters([(40,), (36,), (5,)])
    ours = compare(lambda params, backend: Largest(params, backend=backend), start, steps=1, gradients=gradients)
    first, second, _ = ours.param_groups[0]["params"]
    assert first.isinf().all()
    assert second.isnan().all()


def test_clipping_is_that_of_torch_over_launches_of_two_dtypes() -> None:
    def start() -> list[Tensor]:
        return [*parameters(SHAPES), *parameters([(50,)], torch.float64)]

    ours = steprule.AdamW(params := start(), clip_norm=0.5, backend="triton")
    theirs = torch.optim.AdamW(reference := start())
    for step in range(3):
        give_gradients(params, step)
        give_gradients(reference, step)
        norm = torch.nn.utils.clip_grad_norm_(reference, 0.5)
        theirs.step()
        ours.step()
        torch.testing.assert_close(ours.grad_norm.to(norm.dtype), norm.to(DEVICE))
    assert_near(params, reference, 1e-6)


def test_a_reduction_of_a_sparse_gradient() -> None:
    make = lambda params, backend: steprule.SGD(params, lr=0.1, clip_norm=0.3, backend=backend)
    compare(make, lambda: parameters([(9, 40), (5, 3)]), gradients=sparse_gradients)


def test_whole_matrices_between_passes() -> None:
    def transposed_norms(stack: Tensor, scale: float) -> Tensor:
        return stack / (stack.norm(dim=(1, 2), keepdim=True) * scale + 1e-6)

    class Spectral(Optimizer):
        def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            s.m = rule.lerp(s.m, g, 0.1)
            return p - h.lr * rule.matrix(transposed_norms, s.m + g, h.scale)

    def make(params: list[Any], backend: str, **options: Any) -> Optimizer:
        return Spectral(params, dict(lr=0.1, scale=2.0), backend=backend, **options)

    start = lambda: parameters([(3, 5), (4, 11), (3, 5)])
    compare(make, start)
    ours = compare(lambda params, backend: make(params, backend, capturable=backend == "triton"), start)
    assert launches(ours)[0].live is not None


def test_numbers_that_only_the_device_knows_cannot_be_handed_to_a_matrix_function() -> None:
    class Warm(Optimizer):
        def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            s.m = g
            return p - rule.matrix(lambda stack, number: stack * number, g, 1 / s.step, rule.size(p, 0))

    params = parameters([(3, 4)])
    give_gradients(params, 0)
    start = params[0].detach().clone()
    optimizer = Warm(params, capturable=True, backend="triton")
    with pytest.raises(RuntimeError, match=r"Warm hands \(1 / step\) to a matrix function, but with capturable=True"):
        optimizer.step()
    assert torch.equal(params[0], start)
    assert not optimizer.state


# -- a step that waits for nothing -----------------------------------------------------------------------------------


@pytest.fixture
def no_item(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], None]]:
    """Makes ``.item()`` and what calls it an error, on demand."""
    own = Tensor.item

    def forbid(on: bool) -> None:
        def item(self: Tensor) -> Any:
            assert not on, "a step asked a tensor for its value"
            return own(self)

        monkeypatch.setattr(Tensor, "item", item)

    yield forbid
    forbid(False)


class Looking(TorchDispatchMode):
    """Notes the operations whose result the host has to wait for, on a GPU."""

    NAMES = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "_coalesce")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket.__name__ in self.NAMES:
            self.seen.append(str(function))
        return function(*args, **kwargs or {})


@pytest.mark.parametrize(
    "where", ["on the device", *(pytest.param(w, marks=pytest.mark.slow) for w in ("on the host", "scaled"))]
)
@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name not in TIMED])
def test_no_algorithm_asks_a_tensor_for_its_value(name: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "on_gpu", lambda value: isinstance(value, Tensor) and where == "on the device")
    params = parameters([(5, 7), (9, 3)] if name in {"SparseAdam"} | ONLY_MATRICES else SHAPES)
    optimizer = in_two_groups(name, 0)(params, "triton")
    for group in optimizer.param_groups if where == "on the device" else []:
        group |= {"lr": torch.tensor(0.01, device=DEVICE), "capturable": True}
    with Looking() as looking:  # from the first step on, or launches would be made anew for what changed
        for step in range(4):
            (sparse_gradients if name == "SparseAdam" else give_gradients)(params, step)
            for p in params if name == "SparseAdam" else []:
                p.grad = grad_of(p).coalesce()
            if where == "scaled":
                optimizer.grad_scale = torch.tensor(2.0, device=DEVICE)
                optimizer.found_inf = torch.tensor(float(step == 2), device=DEVICE)
            looking.seen.clear()
            optimizer.step()
            assert step == 0 or looking.seen == []
    assert launches(optimizer)[0].backend == "triton"


class Remembering(Optimizer):
    """Steps as long as the gradient is in comparison with the longest one, which is slowly forgotten."""

    slots = {"longest": rule.scalar("start")}  # noqa: RUF012

    def __init__(self, params: Any, lr: Any = 0.1, start: float = 1e-3, **options: Any) -> None:
        super().__init__(params, dict(lr=lr, start=start), **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        s.longest = rule.maximum((1 - 0.5 / s.step) * s.longest, rule.norm(g))
        return p - h.lr * g / s.longest


@pytest.mark.parametrize("where", ["on the host", "on the device", "scaled"])
def test_a_slot_that_holds_a_reduction_stays_on_the_device(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "on_gpu", lambda value: isinstance(value, Tensor) and where == "on the device")
    ours = Remembering(params := parameters(SHAPES), backend="triton")
    theirs = Remembering(reference := parameters(SHAPES), backend="eager")
    if where == "on the device":
        ours.param_groups[0] |= {"lr": torch.tensor(0.1, device=DEVICE, dtype=torch.float64), "capturable": True}
    for step in range(6):
        give_gradients(params, step, 1.0 / (1 + step))
        give_gradients(reference, step, 1.0 / (1 + step))
        if where == "scaled":
            ours.grad_scale = torch.tensor(1.0, device=DEVICE)
            ours.found_inf = torch.tensor(float(step == 3), device=DEVICE)
        with Looking() as looking:
            ours.step()
        assert step == 0 or looking.seen == []
        if where != "scaled" or step != 3:
            theirs.step()
    assert_near(params, reference, 1e-6)
    for p, q in zip(params, reference, strict=True):
        assert_near([ours.state[p]["longest"]], [theirs.state[q]["longest"]], 1e-6)
        assert ours.state[p]["longest"].device == p.device


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_a_scaler_skips_steps_on_the_device(name: str, no_item: Callable[[bool], None]) -> None:
    options: dict[str, Any] = dict(momentum=0.9, dampening=0.5) if name == "SGD" else {}
    ours = getattr(steprule, name)(params := parameters(SHAPES), lr=0.1, backend="triton", fused=True, **options)
    theirs = getattr(torch.optim, name)(reference := parameters(SHAPES), lr=0.1, **options)
    ours_scaler, theirs_scaler = (torch.amp.GradScaler(DEVICE, init_scale=8.0, growth_interval=2) for _ in range(2))
    take = ours.step

    def step(closure: Any = None) -> None:
        no_item(skipped)
        take(closure)
        no_item(False)

    ours.step = step
    for number, skipped in enumerate([False, False, True, False, True, False]):
        for who, scaler, optimizer in ((params, ours_scaler, ours), (reference, theirs_scaler, theirs)):
            scaler.scale(torch.zeros((), device=DEVICE))
            give_gradients(who, number, scaler.get_scale())
            if skipped:
                who[1].grad[20] = math.inf
            scaler.step(optimizer)
            scaler.update()
        assert ours_scaler.get_scale() == theirs_scaler.get_scale()
        if not skipped:
            assert_near([p.grad for p in params], [p.grad for p in reference], 1e-6)
    assert launches(ours)[0].live is not None
    assert ours.steps_taken == 4
    assert_near(params, reference, 1e-6)
    for p, q in zip(params, reference, strict=True):
        assert ours.state[p].keys() == theirs.state[q].keys()
        for key, value in theirs.state[q].items():
            assert_near([ours.state[p][key]], [value.to(DEVICE)], 1e-6)


def test_the_first_update_is_told_apart_after_skipped_ones() -> None:
    optimizer = steprule.SGD(params := parameters([(4,)]), lr=1.0, momentum=0.5, dampening=0.5, backend="triton")
    for flag in (0.0, 1.0):
        fresh = steprule.SGD(params, lr=1.0, momentum=0.5, dampening=0.5, backend="triton")
        fresh.explain()  # makes the plan
        for found_inf in (flag, 0.0):
            params[0].grad = torch.ones_like(params[0])
            fresh.found_inf = torch.tensor(found_inf, device=DEVICE)
            fresh.step()
        buffer = fresh.state[params[0]]["momentum_buffer"]
        assert (buffer == (1.0 if flag else 1.0 * 0.5 + 0.5)).all()
    assert not optimizer.state


def test_the_first_update_is_told_apart_by_a_plan_made_after_skipped_ones() -> None:
    params = parameters([(4,), (3,)])
    optimizer = steprule.SGD(params, lr=1.0, momentum=0.5, dampening=0.5, backend="triton")
    for given_to, found_inf in ((params[:1], 1.0), (params, 1.0), (params[:1], 0.0), (params, 0.0)):
        for p in params:
            p.grad = torch.ones_like(p) if any(p is q for q in given_to) else None
        optimizer.found_inf = torch.tensor(found_inf, device=DEVICE)
        optimizer.step()
    for p, updates in zip(params, (2, 1), strict=True):  # the first update takes the gradient as it is
        assert (optimizer.state[p]["momentum_buffer"] == (1.0 if updates == 1 else 0.5 * 1.0 + 0.5)).all()


def test_numbers_that_are_tensors_are_read_where_they_are(no_item: Callable[[bool], None]) -> None:
    rates = [0.1, 0.05, 0.02, 0.3]
    lr = torch.tensor(rates[0], device=DEVICE)
    ours = steprule.AdamW(params := parameters(SHAPES), lr=lr, capturable=True, backend="triton")
    theirs = torch.optim.AdamW(reference := parameters(SHAPES), lr=rates[0])
    for number, rate in enumerate(rates):
        lr.fill_(rate)
        theirs.param_groups[0]["lr"] = rate
        give_gradients(params, number)
        give_gradients(reference, number)
        no_item(number > 0)
        ours.step()
        no_item(False)
        theirs.step()
    assert_near(params, reference, 1e-6)
    assert [float(ours.state[p]["step"]) for p in params] == [4.0] * len(params)


def test_a_new_launch_counts_with_the_same_tensors() -> None:
    params = parameters(SHAPES)
    optimizer = steprule.NAdam(params, capturable=True, backend="triton")
    for number in range(4):
        give_gradients(params, number)
        if number == 2:
            params[1].grad = None
        optimizer.step()
        if number == 0:
            counters = [optimizer.state[p][key] for p in params for key in ("step", "mu_product")]
    now = [optimizer.state[p][key] for p in params for key in ("step", "mu_product")]
    assert all(a is b for a, b in zip(counters, now, strict=True))
    assert [float(optimizer.state[p]["step"]) for p in params] == [4.0, 3.0, 4.0, 4.0, 4.0]


def test_a_state_from_the_device_goes_on_on_the_host_and_back() -> None:
    def run(flags: list[bool]) -> list[Tensor]:
        params = parameters(SHAPES)
        optimizer = steprule.NAdam(params, backend="triton")
        for number, capturable in enumerate(flags):
            state = optimizer.state_dict()
            optimizer = steprule.NAdam(params, backend="triton", capturable=capturable)
            optimizer.load_state_dict(state)
            optimizer.param_groups[0]["capturable"] = capturable
            give_gradients(params, number)
            optimizer.step()
        return params

    assert_near(run([False, True, False, True]), run([False] * 4), 1e-6)


@pytest.mark.parametrize("backend", ["triton", "auto"])
def test_a_launch_does_not_keep_gradients_alive(backend: str) -> None:
    params = parameters(SHAPES)
    optimizer = steprule.AdamW(params, backend=backend)
    for number in range(2):
        give_gradients(params, number)
        optimizer.step()
        known = [weakref.ref(p.grad) for p in params]
        optimizer.zero_grad()
        assert not any(reference() is not None for reference in known)


def test_a_recorded_step_reads_copies_and_leaves_the_tables_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a capture does, but for the capture itself."""
    ours = steprule.NAdam(params := parameters(SHAPES), lr=0.1, capturable=True, backend="triton")
    theirs = steprule.NAdam(reference := parameters(SHAPES), lr=0.1, backend="eager")
    for step in range(4):
        recording = step == 2
        for who, optimizer in ((params, ours), (reference, theirs)):
            give_gradients(who, step)
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
            if recording and optimizer is ours:
                launch = launches(ours)[0]
                before = [launch.pointers.tensor, launch.live.hyper.tensor]
                values = [table.clone() for table in before]
                as_if_capturing(monkeypatch)
            optimizer.step()
            if recording and optimizer is ours:
                assert launch.pointers.tensor is before[0]
                assert launch.live.hyper.tensor is before[1]
                assert all(map(torch.equal, before, values))
                assert all(any(kept is table for kept in device_table._kept) for table in launch.tables())
                as_if_capturing(monkeypatch, False)
    assert_near(params, reference, 1e-6)


def test_what_a_graph_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    params = parameters([(4, 4)])
    give_gradients(params, 0)
    counts, eager = steprule.AdamW(params, backend="triton"), steprule.SGD(params, backend="eager")
    sparse = steprule.SGD(params, backend="triton")
    for optimizer in (counts, sparse, eager):
        optimizer.step()
    assert counts._workings.planner.plan is not None
    assert sparse._workings.planner.plan is not None
    assert eager._workings.planner.plan is not None
    with pytest.raises(RuntimeError, match=r"Attempting CUDA graph capture of step\(\) for an instance of AdamW but"):
        counts._workings.planner.plan.check_capture(counts.param_groups)
    counts.param_groups[0]["capturable"] = True
    counts._workings.planner.plan.check_capture(counts.param_groups)
    sparse._workings.planner.plan.check_capture(sparse.param_groups)
    with pytest.raises(RuntimeError, match=r"0 of group 0 can't be captured .* its numbers live on the host: eager"):
        eager._workings.planner.plan.check_capture(eager.param_groups)
    scheduled = steprule.SGD(params, lr=0.1 * steprule.schedules.linear(9), backend="triton")
    scheduled.step()
    assert scheduled._workings.planner.plan is not None
    with pytest.raises(RuntimeError, match=r"0 of group 0 can't be captured .* schedules \(lr\): every replay"):
        scheduled._workings.planner.plan.check_capture(scheduled.param_groups)
    start = params[0].detach().clone()
    sparse_gradients(params, 0)
    sparse.step()
    as_if_capturing(monkeypatch)
    with pytest.raises(RuntimeError, match="sparse gradient of parameter 0 of group 0 can't be captured"):
        sparse.step()
    give_gradients(params, 0)
    with pytest.raises(RuntimeError, match="first step over parameter 0 of group 0 can't be captured"):
        steprule.AdamW(params, backend="triton", capturable=True).step()
    with pytest.raises(RuntimeError, match="take a step before the capture"):
        counts.step()  # whose numbers would have to move to the device
    assert not torch.equal(params[0], start)


def test_numbers_move_to_the_device_in_the_middle_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    # on a GPU the tensors of the state are others after the move, in the interpreter only if they are made so
    monkeypatch.setattr(triton.TritonLaunch, "counter", lambda self, entry, name, new: new)
    ours, theirs = (steprule.NAdam(parameters(SHAPES), lr=0.1, backend=backend) for backend in ("triton", "eager"))
    for step in range(4):
        for optimizer in (ours, theirs):
            give_gradients(optimizer.param_groups[0]["params"], step)
            optimizer.param_groups[0]["capturable"] = step >= 2 and optimizer is ours
            optimizer.step()
    assert launches(ours)[0].live is not None
    assert_near(ours.param_groups[0]["params"], theirs.param_groups[0]["params"], 1e-6)
    assert_near(states(ours), states(theirs), 1e-6)


def test_a_number_is_rounded_on_the_device_as_a_slot_holds_it() -> None:
    class Rounding(Optimizer):
        def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            return p + (rule.stored(h.lr) - h.lr) * 1e9

    def make(params: list[Any], backend: str) -> Optimizer:
        return Rounding(params, dict(lr=0.1), backend=backend, capturable=backend == "triton")

    ours = compare(make, lambda: [torch.zeros(5, device=DEVICE, requires_grad=True)], steps=1, tolerance=1e-6)
    assert ours.param_groups[0]["params"][0][0] > 1.0


def test_counts_that_are_on_the_device_are_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    params = parameters(SHAPES)
    first = steprule.NAdam(params, capturable=True, backend="triton")
    give_gradients(params, 0)
    first.step()
    state = {p: dict(first.state[p]) for p in params}
    second = steprule.NAdam(params, backend="triton")
    second.state.update(state)
    monkeypatch.setattr(triton, "on_gpu", lambda value: isinstance(value, Tensor))  # as it is on a GPU
    give_gradients(params, 1)
    second.step()
    for p in params:
        assert second.state[p]["step"] is state[p]["step"]
        assert float(state[p]["step"]) == 2.0


@pytest.mark.parametrize("capturable", [False, True])
def test_a_slot_that_begins_as_a_hyperparameter_on_the_device(
    capturable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "on_gpu", lambda value: isinstance(value, Tensor))  # as it is on a GPU
    lr = torch.tensor(0.25, device=DEVICE)
    ours = steprule.ASGD(params := parameters(SHAPES), lr=lr, capturable=capturable, backend="triton")
    theirs = torch.optim.ASGD(reference := parameters(SHAPES), lr=0.25)
    for step in range(3):
        for who, optimizer in ((params, ours), (reference, theirs)):
            give_gradients(who, step)
            optimizer.step()
        assert_near(params, reference, 1e-6)
    assert launches(ours)[0].live is not None
    assert float(lr) == 0.25


def test_a_trial_runs_in_memory_of_its_own() -> None:
    params = parameters([(50,)], torch.bfloat16)
    optimizer = steprule.AdamW(params, backend="triton")
    give_gradients(params, 0)
    optimizer.step()
    before = [*states(optimizer), params[0].detach().clone()]
    launches(optimizer)[0].trial(0, 70)(tune.Block(32, 1))
    assert all(map(torch.equal, before, [*states(optimizer), params[0].detach()]))


def test_stacks_of_matrices_do_not_outlive_the_step() -> None:
    seen: list[weakref.ref[Tensor]] = []

    def function(stack: Tensor) -> Tensor:
        result = stack * 2
        seen.extend(map(weakref.ref, (stack, result)))
        return result

    class Doubling(Optimizer):
        def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            return p - rule.matrix(function, g)

    optimizer = Doubling(params := parameters([(3, 4)]), backend="triton")
    give_gradients(params, 0)
    optimizer.step()
    assert len(seen) == 2
    assert not any(reference() is not None for reference in seen)


# -- tables ----------------------------------------------------------------------------------------------------------


def test_a_table_is_sent_only_when_it_has_changed() -> None:
    table = device_table.DeviceTable(np.arange(6).reshape(2, 3), torch.device(DEVICE))
    first = table.send()
    assert table.send() is first
    table.host[1, 1] = 40
    second = table.send()
    assert second is not first
    assert first.flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert second.flatten().tolist() == [0, 1, 2, 3, 40, 5]


@pytest.mark.parametrize("dtype", [np.int64, np.float64])
def test_what_a_graph_reads_is_a_copy_that_nobody_changes(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    table = device_table.DeviceTable(np.arange(6, dtype=dtype).reshape(2, 3), torch.device(DEVICE))
    before = table.send()
    as_if_capturing(monkeypatch)
    assert table.send() is before
    table.host[:] = [[7, 1, 0.1 * 3 if dtype is np.float64 else 2**62 + 1], [-3, 4, 5]]
    recorded = table.send()
    assert torch.equal(recorded.cpu(), torch.from_numpy(table.host))
    assert before.flatten().tolist() == [0, 1, 2, 3, 4, 5]
    monkeypatch.undo()
    assert torch.equal(table.send().cpu(), torch.from_numpy(table.host))
    assert any(kept is before for kept in device_table._kept)


def test_elements_beyond_31_bits_by_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of a sparse gradient that lies 2**33 elements after the parameter's pointer, in memory that is ours."""
    width, row = 16, 2**29
    table = device_table.device_row_chunks(0, torch.tensor([row]), width, 4096)
    assert table.tolist() == [[0, row * width, 0, width]]
    p = parameters([(2, width)])[0]
    optimizer = steprule.SGD([p], lr=1.0, backend="triton")
    p.grad = coo([[1]], torch.ones(1, width, device=DEVICE), (2, width))
    start = p.detach().clone()
    optimizer.explain()  # makes the launch
    launch = launches(optimizer)[0]
    moved = lambda tensor, rows, width, limit: device_table.device_row_chunks(tensor, rows + row, width, limit)
    monkeypatch.setattr(triton, "device_row_chunks", moved)
    launch.pointers.host[0] -= row * width * p.element_size()
    launch.advance(optimizer.param_groups)
    launch.run(0)
    assert torch.equal(p[0], start[0])
    assert torch.equal(p[1], start[1] - 1.0)


# -- block sizes -----------------------------------------------------------------------------------------------------


@pytest.fixture
def another_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], None]:
    """Lets the blocks that were chosen be forgotten, but for those on disk; there are none yet."""

    def forget() -> None:
        monkeypatch.setattr(tune, "_chosen", {})

    forget()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return forget


def test_the_fastest_block_is_remembered(monkeypatch: pytest.MonkeyPatch, another_process: Callable[[], None]) -> None:
    ran: list[tune.Block] = []
    speed = {block: 10 - i for i, block in enumerate(tune.CANDIDATES)}

    def milliseconds(run: Callable[[], Any], device: torch.device) -> float:
        run()
        return speed[ran[-1]]

    monkeypatch.setattr(tune, "milliseconds", milliseconds)
    best = tune.CANDIDATES[-1]
    assert tune.fastest("a GPU: a rule", lambda: ran.append, torch.device("cuda")) == best
    assert ran == tune.TURNS * list(tune.CANDIDATES)
    another_process()
    for _ in range(2):  # from disk, then from memory, and nothing is made to be measured
        assert tune.fastest("a GPU: a rule", lambda: pytest.fail("made"), torch.device("cuda")) == best
    for times, damaged in enumerate(["{ damaged", '{"a GPU: a rule": [3000, 3]}', '{"a GPU: a rule": null}'], 2):
        tune.cache_file().write_text(damaged)
        another_process()
        assert tune.fastest("a GPU: a rule", lambda: ran.append, torch.device("cuda")) == best
        assert len(ran) == times * tune.TURNS * len(tune.CANDIDATES)


@pytest.mark.usefixtures("another_process")
def test_where_there_is_no_memory_to_measure_in_a_process_tries_once() -> None:
    tried: list[int] = []

    def trial() -> Callable[[Any], Any]:
        tried.append(1)
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    for _ in range(2):
        assert tune.fastest("a GPU: a rule", trial, torch.device("cuda")) == tune.DEFAULT
    assert tried == [1]
    assert not tune.cache_file().exists()


@pytest.mark.usefixtures("another_process")
def test_where_the_cache_cannot_be_written_a_process_measures_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "steprule").write_text("a file where the folder should be")
    monkeypatch.setattr(tune, "milliseconds", lambda run, device: run() or 1.0)
    ran: list[tune.Block] = []
    for _ in range(2):
        assert tune.fastest("a GPU: a rule", lambda: ran.append, torch.device("cuda")) == tune.CANDIDATES[0]
    assert ran == tune.TURNS * list(tune.CANDIDATES)


@pytest.mark.usefixtures("another_process")
def test_a_moment_of_noise_does_not_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each candidate is as fast as in its best turn."""
    turns = iter([9.0, 2.0, 3.0, 1.0, 9.0, 3.0, 9.0, 2.0, 9.0])
    monkeypatch.setattr(tune, "milliseconds", lambda run, device: next(turns))
    assert tune.fastest("a GPU: a rule", lambda: lambda block: None, torch.device("cuda")) == tune.CANDIDATES[0]


@pytest.mark.parametrize("elements", [2**23 - 1, 2**23, 2**24 - 1, 2**24, 2**30])
def test_what_is_measured_is_of_the_size_that_runs(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = steprule.AdamW(params := parameters([(50,)]), backend="triton")
    give_gradients(params, 0)
    optimizer.step()
    launch, asked = launches(optimizer)[0], []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(launch, "device", torch.device("cuda"))
    monkeypatch.setattr(launch, "trial", lambda stage, size: size)
    monkeypatch.setattr(triton, "fastest", lambda key, trial, device: asked.append((key, trial())) or tune.DEFAULT)
    assert launch.choose_block(elements) in (tune.DEFAULT, triton.DEFAULT)  # which is smaller in these tests
    size = {2**23 - 1: None, 2**23: 2**23, 2**24 - 1: 2**23}.get(elements, 2**24)
    assert [made for _, made in asked] == ([] if size is None else [size])
    assert all(f"a GPU: AdamW torch.float32 of {size} " in key for key, _ in asked)


@pytest.mark.parametrize(
    ("width", "size"),
    [(1, 64), (32, 64), (33, 128), (100, 256), (128, 128), (768, 256), (1024, 1024), (3072, 1024), (10**6, 1024)],
)
def test_rows_get_blocks_that_they_fill(width: int, size: int) -> None:
    assert tune.narrow_block(width).size == size


# -- rows and columns ------------------------------------------------------------------------------------------------

MATRICES = [(5, 7), (4, 6, 1, 1), (5, 2, 3, 3), (1, 40), (40, 1), (3, 50), (2, 9, 17), (8, 8), (0, 4)]


class EveryLine(Optimizer):
    """Sums, norms and maxima of rows, columns and matrices, and slots of rows and columns."""

    slots = {"rows": rule.row(0.0), "columns": rule.column(0.0)}  # noqa: RUF012

    def __init__(self, params: Any, lr: Any = 0.1, **options: Any) -> None:
        super().__init__(params, dict(lr=lr), **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        s.rows = rule.lerp(s.rows, rule.mean(g * g, dim=-1), 0.1)
        s.columns = rule.maximum(s.columns, rule.max_abs(g, dim=-2))
        step = g / (1.0 + rule.sqrt(s.rows) + s.columns)
        p = p - h.lr * step / (1.0 + rule.norm(step, dim=-2) + rule.sum(rule.abs(step), dim=-1))
        return p + 1e-3 * g / (1.0 + rule.norm(g)) + 1e-3 * rule.mean(rule.mean(g, dim=-1), dim=-2)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("tile", "span", "narrow"), [(4, 4, 2), (16, 32, 4), (64, 64, 8), (2048, 2**14, 64)])
def test_rows_and_columns_in_tiles_of_any_size(
    tile: int, span: int, narrow: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "TILE", tile)
    monkeypatch.setattr(triton, "SPAN", span)
    monkeypatch.setattr(triton, "PARTS", 4)
    monkeypatch.setattr(row_tiles, "NARROW", narrow)
    compare(lambda params, backend: EveryLine(params, backend=backend), lambda: parameters(MATRICES, dtype), 2)


# -- which kernel serves what ----------------------------------------------------------------------------------------


def test_the_reason_is_said_where_triton_cannot_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "interpreting", lambda: False)
    p = torch.ones(3, requires_grad=True)
    p.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match=r"'triton' can't serve parameter 0 of group 0: .*TRITON_INTERPRET=1"):
        steprule.SGD([p], backend="triton").step()
    monkeypatch.setattr(triton, "installed", lambda: False)
    with pytest.raises(RuntimeError, match="Triton is not installed"):
        steprule.SGD([p], backend="triton").step()
    assert triton.unavailable(torch.device("cuda")) == (
        "the parameter is on cuda, and Triton is not installed (pip install triton)"
    )
    assert "no compiled kernel" in str(triton.unavailable(torch.device("mps")))
    assert torch.equal(p, torch.ones(3))


@pytest.mark.parametrize("named", [True, False])
def test_a_machine_without_a_compiler(named: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "interpreting", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(triton.shutil, "which", lambda name: None)
    monkeypatch.setenv("CC", "/opt/cc") if named else monkeypatch.delenv("CC", raising=False)
    triton.without_compiler.cache_clear()
    try:
        found = triton.unavailable(torch.device("cuda"))
    finally:
        triton.without_compiler.cache_clear()
    if named:
        assert found is None
    else:
        assert found == "Triton needs a C compiler, and there is neither gcc nor clang nor one that CC names"


def test_the_source_is_shown() -> None:
    optimizer = steprule.AdamW(params := parameters([(3,)]), backend="triton", clip_norm=1.0)
    give_gradients(params, 0)
    shown = optimizer.explain(source=True)
    assert shown.startswith(f"triton: dense memory on {params[0].device}")
    for kernel in ("def pass0(", "def gather0(", "def pass1("):
        assert kernel in shown
    assert choose.BACKENDS == ("auto", "llvm", "triton", "eager")


def run_for_gpu(script: str, cache: Path) -> Any:
    """What a script beside this one prints, in a process where Triton compiles."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script))],
        env=environment | {"TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_kernels_compile_for_gpus_with_vector_loads_and_exact_arithmetic(tmp_path: Path) -> None:
    found = run_for_gpu("compile_for_gpu.py", tmp_path)
    assert [len(passes) for passes in found.values()] == [2, 2, 2, *[3] * 6, *[1] * 12]
    names = ("float32", "bfloat16", "mixed", "scaled")
    single, narrow, mixed, scaled = (found[f"adamw {name}"][0] for name in names)
    # of 1024 elements, 128 threads take 8 each: 32 bytes of float32, 16 of bfloat16; of 512 one by one, 4 each
    for kernel in (single, scaled):
        assert (kernel["ld.global.v4.b32"], kernel["st.global.v4.b32"]) == (4 * 2, 3 * 2)
        assert kernel["st.global.b32"] == 3 * 4
    assert single["ld.global.b32"] == 4 * 4
    assert (narrow["ld.global.v4.b32"], narrow["st.global.v4.b32"]) == (4, 3)
    assert (narrow["ld.global.b16"], narrow["st.global.b16"]) == (4 * 4, 3 * 4)
    assert (mixed["ld.global.v4.b32"], mixed["st.global.v4.b32"]) == (3 * 2 + 1, 3 * 2)
    assert (mixed["ld.global.b32"], mixed["ld.global.b16"], mixed["st.global.b32"]) == (3 * 4, 4, 3 * 4)
    for kernel in (single, narrow, mixed, scaled):
        assert {name for name in kernel if name.startswith(("div", "sqrt", "fma"))} == {"div.rn.f32", "sqrt.rn.f32"}
        assert "unguarded" not in kernel  # zeros take a subroutine of 20 and of 118 instructions
    by_value, in_codes = found["adamw by value 90"][0], found["adamw in codes 90"][0]
    assert by_value["ld.global.v4.b32"] == single["ld.global.v4.b32"]
    assert by_value["ld.global.b64"] < single["ld.global.b64"]  # no table of scalars
    assert (in_codes["ld.global.v4.b32"], in_codes["st.global.v4.b32"]) == (2, 1)  # of parameter and gradient
    assert in_codes["st.global.b8"] > 0
    for kind, wide in (("8bit", 0), ("16bit", 1)):  # 8 elements of a thread: 16 bytes of 16 bits each
        parts = found[f"adamw in parts {kind} 90"][0]
        assert (parts["ld.global.v4.b32"], parts["st.global.v4.b32"]) == (2 + wide, 1 + wide), kind
        assert "fma.rn.f32" not in parts
    # of 32 rows of 64 columns, 128 threads take 16 elements each
    rows, halves = found["adafactor 90 float32"], found["adafactor 90 bfloat16"]
    assert [kernel["ld.global.v4.b32"] for kernel in rows] == [2 * 4, 4, 2 * 4]
    assert [kernel["ld.global.v4.b32"] for kernel in halves] == [2 * 2, 2, 2 * 2]
    assert (rows[2]["st.global.v4.b32"], halves[2]["st.global.v4.b32"]) == (4, 2)
    # libdevice's functions, but for the powers of two in which they are made to flush nothing
    everything = found["everything 90 float32"][1]
    assert everything["fma.rn.f32"] > 0
    assert {name for name in everything if ".ftz" in name} <= {"ex2.approx.ftz.f32", "rcp.approx.ftz.f64"}


@pytest.mark.slow
def test_the_launcher_takes_every_launch_and_compiles_each_kernel_once(tmp_path: Path) -> None:
    first, second = (run_for_gpu("launch_for_gpu.py", tmp_path) for _ in range(2))
    assert {name: found["compiled"] for name, found in first["results"].items()} == {
        "first": 1,
        "one tensor": 0,
        "many tensors": 0,
        "no elements": 0,
        "numbers on the device": 2,  # the pass that reads them from a table, and what computes them
        "one number on the device": 0,
        "clipped": 3,
        "clipped, another number of tensors": 0,
        "rows and columns": 9,
        "rows and columns of other shapes": 0,
        "rows and columns in another tile": 3,
        "scaled": 2,
    }
    assert first["results"]["first"]["launched"] == first["results"]["numbers on the device"]["launched"] == 4
    assert first["results"]["no elements"]["launched"] == 0
    assert (first["on disk"], second["on disk"]) == (0, 20)  # the second process finds all in Triton's cache
    host = first["host"]
    for name, found in host.items():
        if not name.startswith("torch"):
            assert (found["launches"], found["uploads"]) == (1, 0), name
    assert {host[f"adamw {count}"]["calls"] for count in (2, 146, 1000)} == {host["adamw 2"]["calls"]}
    for count in (146, 1000):
        assert host[f"adamw {count}"]["calls"] < host[f"torch {count}"]["calls"] / 10


WITHOUT = """
import sys
sys.modules["triton"] = None
import torch, steprule
p = torch.ones(3, requires_grad=True)
p.grad = torch.ones(3)
steprule.SGD([p], lr=0.5).step()
assert p.tolist() == [0.5] * 3
try:
    steprule.SGD([p], backend="triton").step()
except RuntimeError as error:
    assert "Triton is not installed" in str(error)
else:
    raise AssertionError
"""


def test_the_package_works_without_triton() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT], check=True)


CHECK = Path(__file__).parents[3] / "scripts" / "gpu_check.py"


def test_the_script_for_a_gpu_says_what_the_machine_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    script = runpy.run_path(str(CHECK))
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("typer", "triton") else found(name))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(SystemExit) as refusal:
        script["main"]()
    lines = str(refusal.value).splitlines()
    assert lines[:2] == [f"this machine lacks the package {name}" for name in ("triton", "typer")]
    assert "a C compiler" in lines[2]
