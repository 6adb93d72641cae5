"""Reductions over one dimension, and slots with one number for each row or column of a matrix."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from captures import as_if_capturing
from hypothesis import given, settings
from hypothesis import strategies as st
from inside import launches, params_of
from tensors import give_gradients, grad_of, parameters
from torch import Tensor
from torch.optim import optimizer as torch_optimizer

import steprule
from steprule import Optimizer
from steprule.kernels.cpu import llvm
from steprule.kernels.gpu import triton
from steprule.rule import (
    RuleError,
    abs,
    column,
    lerp,
    matrix,
    max_abs,
    maximum,
    mean,
    minimum,
    ndim,
    norm,
    row,
    rsqrt,
    scalar,
    sqrt,
    square,
    sum,
    where,
)
from steprule.stepping import options as stepping_options

INTERPRETER = pytest.mark.skipif(
    find_spec("triton") is None or torch.cuda.is_available(), reason="Triton's interpreter is not switched on"
)
BACKENDS = pytest.mark.parametrize("backend", ["llvm", "eager", pytest.param("triton", marks=INTERPRETER)])
SHAPES: list[tuple[int, ...]] = [(5, 3), (70, 130), (2, 3, 4), (1, 9), (9, 1), (0, 3), (3, 0), (2, 2, 1, 3), (33, 64)]


class Everything(Optimizer):
    """Every reduction over each dimension, mixed with each other kind of value."""

    slots = {"low": row(), "high": column("top"), "size": scalar(1.0)}  # noqa: RUF012

    def __init__(self, params: Any, lr: float = 0.1, top: float = 2.0, **options: Any) -> None:
        super().__init__(params, dict(lr=lr, top=top), **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        low, largest = s.low, max_abs(g, scope="all")
        s.low = 0.5 * low + norm(g, dim=-1) + max_abs(p, dim=-1) * norm(g) + s.step
        s.high = where(s.is_new, s.high, minimum(s.high, largest)) + sum(g * low, dim=-2)
        s.high = s.high + max_abs(s.low - g, dim=-2) + norm(p, dim=-2) / 10
        s.mass = lerp(s.mass, g * s.low + s.high, 0.25)
        s.size = 0.5 * s.size + norm(s.mass)
        centered = sum(s.low, dim=-2) + max_abs(s.high, dim=-1) + norm(s.low, dim=-2)
        return p - h.lr * s.mass / (1 + abs(s.low * s.high) + centered + s.size)


def everything(p: Tensor, g: Tensor, state: dict[str, Any], step: int, largest: Tensor) -> Tensor:
    """The same in plain torch operations; the new parameter."""

    def most(x: Tensor, dim: int) -> Tensor:
        return x.abs().amax(dim, keepdim=True) if x.shape[dim] else x.sum(dim, keepdim=True)

    low, high = state["low"], state["high"]
    new_low = 0.5 * low + g.norm(dim=-1, keepdim=True) + most(p, -1) * g.norm() + step
    high = (high if step == 1 else high.minimum(largest)) + (g * low).sum(-2, keepdim=True)
    high = high + most(new_low - g, -2) + p.norm(dim=-2, keepdim=True) / 10
    mass = state["mass"] + 0.25 * (g * new_low + high - state["mass"])
    size = 0.5 * state["size"] + mass.norm()
    state |= {"low": new_low, "high": high, "mass": mass, "size": size}
    centered = new_low.sum(-2, keepdim=True) + most(high, -1) + new_low.norm(dim=-2, keepdim=True)
    return p - 0.1 * mass / (1 + (new_low * high).abs() + centered + size)


def give_gradients_to_some(params: list[Tensor], step: int, skip: bool) -> None:
    give_gradients(params, step)
    for i, p in enumerate(params):
        if skip and (step + i) % 4 == 0:
            p.grad = None


def expected(params: list[Tensor], steps: int, skip: bool) -> tuple[list[Tensor], list[dict[str, Any]]]:
    wide = [p.detach().double() for p in params]
    states: list[dict[str, Any]] = [
        {
            "low": p.new_zeros(*p.shape[:-1], 1),
            "high": p.new_full((*p.shape[:-2], 1, p.shape[-1]), 2.0),
            "mass": torch.zeros_like(p),
            "size": p.new_ones(()),
            "step": 0,
        }
        for p in wide
    ]
    for step in range(steps):
        give_gradients_to_some(params, step, skip)
        present = [i for i, p in enumerate(params) if p.grad is not None]
        grads = {i: grad_of(params[i]).double() for i in present}
        largest = max((g.abs().max() for g in grads.values() if g.numel()), default=torch.zeros(()))
        for i in present:
            states[i]["step"] += 1
            wide[i] = everything(wide[i], grads[i], states[i], states[i]["step"], largest)
    return wide, states


def trained(params: list[Tensor], steps: int = 6, skip: bool = True, **options: Any) -> Optimizer:
    optimizer = Everything(params, **options)
    for step in range(steps):
        give_gradients_to_some(params, step, skip)
        optimizer.step()
    return optimizer


TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 0.1}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@BACKENDS
def test_every_reduction_is_what_torch_says(backend: str, dtype: torch.dtype) -> None:
    optimizer = trained(params := parameters(SHAPES, dtype), backend=backend)
    assert {launch.backend for launch in launches(optimizer)} == {backend}
    wide, states = expected(parameters(SHAPES, dtype), 6, skip=True)
    for p, q, known in zip(params, wide, states, strict=True):
        torch.testing.assert_close(p.detach().double(), q, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        state = optimizer.state[p]
        assert state.keys() == known.keys()
        for name in ("low", "high", "mass") if dtype == torch.float64 else ():
            assert state[name].dtype == dtype
            assert state[name].shape == known[name].shape
            torch.testing.assert_close(state[name], known[name], rtol=1e-11, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=4).map(tuple), min_size=1, max_size=4),
    limit=st.integers(1, 40),
    least=st.integers(1, 5),
    threads=st.integers(1, 4),
)
def test_any_shapes_cut_in_any_way(shapes: list[tuple[int, ...]], limit: int, least: int, threads: int) -> None:
    wide, _ = expected(parameters(shapes, torch.float64), 3, skip=False)
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llvm, "LIMIT", limit)
        patch.setattr(llvm, "ROWS", least)
        patch.setattr(llvm, "ALONE", 0)
        torch.set_num_threads(threads)
        try:
            trained(params := parameters(shapes, torch.float64), 3, skip=False, backend="llvm")
        finally:
            torch.set_num_threads(before)
    for p, q in zip(params, wide, strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=1e-12, atol=1e-12)


def test_the_same_bits_for_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llvm, "LIMIT", 100)
    monkeypatch.setattr(llvm, "ROWS", 2)
    monkeypatch.setattr(llvm, "ALONE", 0)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            trained(params := parameters(SHAPES, torch.float32))
            found.append(params)
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


@pytest.mark.parametrize("backend", ["llvm", "eager"])
def test_saved_and_resumed_to_the_bit(backend: str, tmp_path: Path) -> None:
    trained(straight := parameters(SHAPES, torch.float32), 8, backend=backend)
    first = trained(params := parameters(SHAPES, torch.float32), 5, backend=backend)
    for how in ("state_dict", "file"):
        again = [p.detach().clone().requires_grad_() for p in params]
        optimizer = Everything(again, backend=backend)
        if how == "file":
            steprule.save(tmp_path / "run", first)
            steprule.load(tmp_path / "run", optimizer)
        else:
            optimizer.load_state_dict(first.state_dict())
        for step in range(5, 8):
            give_gradients_to_some(again, step, skip=True)
            optimizer.step()
        assert all(map(torch.equal, again, straight)), how


def test_a_state_of_another_shape_is_refused_and_one_that_grew_is_resized() -> None:
    def named(rows: int) -> Optimizer:
        p = torch.ones(rows, 3, requires_grad=True)
        optimizer = Everything([("table", p)])
        p.grad = torch.ones(rows, 3)
        optimizer.step()
        return optimizer

    small, large = named(2), named(4)
    (p,) = params_of(large)
    before = {name: value.clone() for name, value in large.state[p].items()}
    with pytest.raises(ValueError, match=r"table: low was saved as \(2, 1\)"):
        large.load_state_dict(small.state_dict())
    assert all(torch.equal(large.state[p][name], value) for name, value in before.items())
    large.load_state_dict(small.state_dict(), resize=["table"])
    (q,) = params_of(small)
    assert torch.equal(large.state[p]["low"][:2], small.state[q]["low"])
    assert large.state[p]["low"][2:].tolist() == [[0.0], [0.0]]
    assert torch.equal(large.state[p]["high"], small.state[q]["high"])


@pytest.mark.parametrize("order", [1, -1])
def test_a_slot_may_be_rows_of_matrices_and_all_of_vectors(order: int) -> None:
    def update(p: Any, g: Any, s: Any) -> Any:
        s.size = norm(g, dim=-1) if ndim(p) > 1 else abs(g)
        return p - s.size

    made = type(rule(update))
    params, again = ([torch.ones(shape, requires_grad=True) for shape in [(2, 4), (3,)][::order]] for _ in range(2))
    for p in params:
        p.grad = torch.ones_like(p)
    first, second = made(params, {}), made(again, {})
    first.step()
    second.load_state_dict(first.state_dict())
    assert [second.state[p]["size"].tolist() for p in again] == [[[2.0], [2.0]], [1.0] * 3][::order]


def test_what_a_person_writes_into_the_state_counts() -> None:
    class Scaled(Optimizer):
        slots = {"factor": row(1.0)}  # noqa: RUF012

        def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            s.factor = s.factor + 0.0
            return p - s.factor * g

    p = torch.zeros(2, 3, requires_grad=True)
    optimizer = Scaled([p], {})
    for change in (lambda: None, lambda: optimizer.state[p]["factor"].fill_(10.0)):
        change()
        p.grad = torch.ones(2, 3)
        optimizer.step()
    optimizer.state[p]["factor"] = torch.tensor([[100.0], [1000.0]])
    optimizer.step()
    assert p.tolist() == [[-111.0] * 3, [-1011.0] * 3]
    optimizer.state[p]["factor"] = torch.ones(3, 1)
    with pytest.raises(
        RuntimeError, match=r"state 'factor' of parameter 0 of group 0 is \(3, 1\) .* of shape \(2, 1\)"
    ):
        optimizer.step()


class SM3(Optimizer):
    """A bound of each element's sum of squares, by its row and its column (Anil and others 2019, arXiv:1901.11150)."""

    slots = {"rows": row(), "columns": column()}  # noqa: RUF012

    def __init__(self, params: Any, lr: float = 0.1, **options: Any) -> None:
        super().__init__(params, dict(lr=lr), **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        if ndim(p) > 1:
            bound = minimum(s.rows, s.columns) + square(g)
            s.rows, s.columns = max_abs(bound, dim=-1), max_abs(bound, dim=-2)
        else:
            bound = s.bound = s.bound + square(g)
        return p - h.lr * where(bound > 0, g * rsqrt(bound), 0.0)


@BACKENDS
def test_sm3_is_sm3(backend: str) -> None:
    shapes: list[tuple[int, ...]] = [(6, 4), (7,), (), (40, 70)]
    params, wide = (parameters(shapes, torch.float64) for _ in range(2))
    optimizer = SM3(params, backend=backend)
    bounds: dict[int, Any] = {}
    for step in range(5):
        for who in (params, wide):
            give_gradients(who, step)
        optimizer.step()
        for i, q in enumerate(wide):
            g = q.grad
            assert g is not None
            rows, columns = bounds.get(i, (torch.zeros(()), torch.zeros(())))
            bound = (torch.minimum(rows, columns) if q.ndim > 1 else rows) + g**2
            several = q.ndim > 1
            bounds[i] = (bound.amax(1, True), bound.amax(0, True)) if several else (bound.clone(), None)
            q.data -= 0.1 * g / bound.sqrt()
    for p, q in zip(params, wide, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-12, atol=1e-12)
    assert sorted(optimizer.state[params[0]]) == ["columns", "rows"]
    assert sorted(optimizer.state[params[1]]) == ["bound"]


def test_a_question_for_dimensions_divides_a_group_into_launches() -> None:
    optimizer = SM3(params := parameters([(6, 4), (7,), (), (2, 3, 4)], torch.float64))
    give_gradients(params, 0)
    assert optimizer.explain().count("llvm: ") == 2
    text = optimizer.explain(source=True)
    assert "l0 = max_abs(t0, dim=-1)" in text
    assert "after    rows ← l0" in text


@pytest.mark.parametrize("how", ["flag", "device"])
@INTERPRETER
def test_skipped_steps_and_numbers_on_the_device(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "on_gpu", lambda value: isinstance(value, Tensor) and how == "device")
    monkeypatch.setattr(torch_optimizer, "_get_capturable_supported_devices", lambda *_: ["cuda", "cpu"])
    monkeypatch.setattr(stepping_options, "capturable_devices", lambda: ["cuda", "cpu"])
    ours, theirs = (parameters([(5, 3), (2, 40, 70)], torch.float64) for _ in range(2))
    optimizer, reference = Everything(ours, backend="triton"), Everything(theirs, backend="eager")
    if how == "device":
        optimizer.param_groups[0] |= {"lr": torch.tensor(0.1, dtype=torch.float64), "capturable": True}
    for step in range(5):
        skipped = how == "flag" and step in (0, 3)
        give_gradients(ours, step)
        give_gradients(theirs, step)
        optimizer.grad_scale = torch.tensor(1.0)
        optimizer.found_inf = torch.tensor(float(skipped))
        optimizer.step()
        if not skipped:
            reference.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-12, atol=1e-12)
        for name in ("low", "high"):
            torch.testing.assert_close(optimizer.state[p][name], reference.state[q][name])


@INTERPRETER
def test_a_captured_step_uploads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = parameters(SHAPES, torch.float64), parameters(SHAPES, torch.float64)
    optimizer, reference = Everything(ours, backend="triton"), Everything(theirs, backend="eager")
    for step in range(3):
        give_gradients(ours, 0)
        give_gradients(theirs, 0)
        if step:
            as_if_capturing(monkeypatch)
        optimizer.step()
        reference.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-12, atol=1e-12)


def test_clipping_scaling_and_tracking_go_with_it() -> None:
    ours, theirs = parameters(SHAPES, torch.float64), parameters(SHAPES, torch.float64)
    optimizer, reference = Everything(ours, clip_norm=1.0), Everything(theirs)
    optimizer.track("update_norm")
    for step in range(3):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        before = [p.detach().clone() for p in ours]
        torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        optimizer.step()
        reference.step()
        norms = optimizer.tracked()
        for i, (p, q) in enumerate(zip(ours, before, strict=True)):
            assert norms[f"update_norm/group_0.{i}"] == pytest.approx((p.detach() - q).norm().item())
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-10, atol=1e-10)


def rule(update: Any, **slots: Any) -> Optimizer:
    made = type("Made", (Optimizer,), {"update": lambda self, p, g, s, h: update(p, g, s), "slots": slots})
    p = torch.ones(2, 3, requires_grad=True)
    p.grad = torch.ones(2, 3)
    return made([p], {})


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "dim": (lambda p, g, s: p - sum(g, dim=0), {}, r"takes dim=-1 \(over each row\) or dim=-2 .*not dim=0"),  # type: ignore[arg-type]
    "scope": (lambda p, g, s: p - sum(g, "all", dim=-1), {}, "not dim=-1 with scope='all'"),
    "number": (
        lambda p, g, s: p - mean(norm(g), dim=-1),
        {},
        "over dim=-1 reduces an array, but .* is a single number",
    ),
    "twice": (lambda p, g, s: p - sum(norm(g, dim=-1), dim=-1), {}, "has been reduced over that dimension already"),
    "wholly": (lambda p, g, s: p - norm(norm(g, dim=-1)), {}, r"^norm\(\).* has been reduced over a dimension already"),
    "mean": (lambda p, g, s: p - mean(g, dim=1), {}, r"^mean\(\) over a dimension takes dim=-1"),  # type: ignore[arg-type]
    "shape": (
        lambda p, g, s: p if len(p.shape) > 1 else p - g,
        {},
        r"has no .shape; use size\(p\), size\(p, dim\) or ndim\(p\)",
    ),
    "declaration": (lambda p, g, s: p, {"x": row}, r"slots\['x'\] is <function row .*; declare it as array\(\), row"),
    "parameter": (lambda p, g, s: p, {"x": row("parameter")}, "the row slot 'x' begins with 'parameter', which is no"),
    "initial": (lambda p, g, s: p, {"x": scalar("maximise")}, "begins with 'maximise', .*; did you mean 'maximize'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_reductions_without_a_meaning_are_refused(case: str) -> None:
    update, slots, message = REFUSED[case]
    with pytest.raises(RuleError, match=message):
        rule(update, **slots).step()


def keeping(value: Any, read: bool = True) -> Any:
    def update(p: Any, g: Any, s: Any) -> Any:
        before = s.x if read else 0.0
        s.x = value(p, g)
        return p - before * g

    return update


MISFITS = {
    "array": (keeping(lambda p, g: norm(g, dim=-1)), {}, r"s.x is read as an array but given one number for each row"),
    "scalar": (keeping(lambda p, g: norm(g, dim=-2)), {"x": scalar()}, "is given one number for each column"),
    "row": (keeping(lambda p, g: norm(g, dim=-2)), {"x": row()}, "one number for each row but is given one number for"),
    "column": (keeping(lambda p, g: g + p), {"x": column()}, "one number for each column but is given an array"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_slots_that_are_given_what_they_can_not_hold_are_refused(case: str) -> None:
    update, slots, message = MISFITS[case]
    with pytest.raises(RuleError, match=message):
        rule(update, **slots).step()


@BACKENDS
def test_rows_may_be_given_numbers_and_undeclared_slots_what_they_are_given(backend: str) -> None:
    def update(p: Any, g: Any, s: Any) -> Any:
        s.x = norm(g) + s.x
        s.y = sum(g, dim=-2)
        s.z = 3.0
        return p - s.x - s.y * maximum(s.z, 0.0)

    made = rule(update, x=row(1.0), z=column())
    made.param_groups[0]["backend"] = backend
    made.step()
    (p,) = params_of(made)
    state = made.state[p]
    assert state["x"].flatten().tolist() == pytest.approx([1 + 6**0.5] * 2)
    assert (state["y"].tolist(), state["z"].tolist()) == ([[2.0] * 3], [[3.0] * 3])
    assert p.detach().flatten().tolist() == pytest.approx([1 - 1 - 6**0.5 - 6.0] * 6)


def swapped(p: Any, g: Any, s: Any) -> Any:
    s.x, s.y = s.y, s.x
    return p - s.x * g


def scaled_by_numbers_of_the_step(p: Any, g: Any, s: Any) -> Any:
    rate = s.step * s.x
    s.x = s.x + norm(g, dim=-1)
    return p - rate * g


def of_rows_and_columns_alone(p: Any, g: Any, s: Any) -> Any:
    total = sum(s.x * s.y, dim=-1)
    s.x, s.y = s.x + total, s.y + 1.0
    return p - total * g


def of_a_matrix_of_rows(p: Any, g: Any, s: Any) -> Any:
    s.x = norm(g, dim=-1)
    return p - matrix(torch.square, s.x) - s.y


ORDERS: dict[str, Any] = {
    "swapped": (swapped, {"x": row(1.0), "y": row(2.0)}, [-1.0, -2.0, -4.0], ([[2.0]], [[1.0]])),
    "numbers": (scaled_by_numbers_of_the_step, {"x": row(1.0)}, [0.0, -6.0, -21.0], ([[7.0]], None)),
    "alone": (of_rows_and_columns_alone, {"x": row(1.0), "y": column(2.0)}, [-7.0, -115.0], ([[117.0]], [[4.0] * 4])),
    "matrix": (of_a_matrix_of_rows, {"y": column(0.5)}, [-3.5, -8.0], ([[2.0]], [[0.5] * 4])),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", ORDERS)
@BACKENDS
def test_what_is_known_of_rows_is_that_of_the_moment(backend: str, case: str, dtype: torch.dtype) -> None:
    update, slots, positions, state = ORDERS[case]
    p = torch.ones(1, 4, dtype=dtype, requires_grad=True)
    p.grad = torch.ones(1, 4, dtype=dtype)
    made = type("Made", (Optimizer,), {"update": lambda self, p, g, s, h: update(p, g, s), "slots": slots})
    optimizer = made([p], {}, backend=backend)
    for position in positions:
        optimizer.step()
        assert p.tolist() == [[position] * 4]
    found = {name: value.tolist() for name, value in optimizer.state[p].items() if name in ("x", "y")}
    assert found == {name: value for name, value in zip("xy", state, strict=True) if value is not None}


@BACKENDS
def test_a_step_that_failed_leaves_no_numbers_behind(backend: str) -> None:
    failing = False

    def function(stack: Tensor) -> Tensor:
        if failing:
            raise ArithmeticError("not this time")
        return stack

    class Scaled(Optimizer):
        slots = {"x": row(1.0)}  # noqa: RUF012

        def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            scale = h.lr * s.x
            s.x = s.x + norm(g, dim=-1)
            return p - matrix(function, scale * g)

    p = torch.zeros(1, 4, requires_grad=True)
    p.grad = torch.ones(1, 4)
    optimizer = Scaled([p], {"lr": 1.0}, backend=backend)
    optimizer.step()
    failing = True
    with pytest.raises(ArithmeticError):
        optimizer.step()
    failing, optimizer.param_groups[0]["lr"] = False, 10.0
    p.grad.fill_(2.0)
    optimizer.step()
    assert (p.tolist(), optimizer.state[p]["x"].tolist()) == ([[-61.0] * 4], [[7.0]])


def test_parameters_without_rows_and_columns_are_refused_by_name() -> None:
    made = rule(lambda p, g, s: p - sum(g, dim=-1))
    for p, grad, message in (
        (torch.ones(3), torch.ones(3), r"parameter 'v' has shape \(3,\); let the rule ask `if ndim\(p\) > 1:`"),
        (torch.ones(2, 2, dtype=torch.complex64), torch.ones(2, 2, dtype=torch.complex64), "complex parameters.*'v'"),
        (torch.ones(2, 2), torch.eye(2).to_sparse(), "does not support sparse gradients.*'v'"),
    ):
        p.requires_grad_()
        optimizer = type(made)([("v", p)], {})
        p.grad = grad
        before = p.detach().clone()
        with pytest.raises(RuntimeError, match=message):
            optimizer.step()
        assert torch.equal(p, before)
    optimizer = type(made)([("v", torch.ones(2, 2, requires_grad=True))], {}, differentiable=True)
    params_of(optimizer)[0].grad = torch.ones(2, 2)
    with pytest.raises(RuntimeError, match=r"differentiable=True.*'v'"):
        optimizer.step()


def test_matrices_whose_rows_are_not_contiguous_are_served_by_torch_operations() -> None:
    p = torch.ones(3, 4).t().requires_grad_()
    p.grad = torch.arange(12.0).view(4, 3)
    optimizer = rule(lambda p, g, s: p - sum(g, dim=-1))
    optimizer = type(optimizer)([p], {})
    assert "eager: the parameter's rows are not contiguous" in optimizer.explain()
    optimizer.step()
    assert p.tolist() == [[1.0 - 3 * (3 * i + 1)] * 3 for i in range(4)]


def test_the_square_root_of_a_mean() -> None:
    made = rule(lambda p, g, s: p - g / sqrt(mean(square(g), dim=-2)))
    (p,) = params_of(made)
    p.grad = torch.tensor([[3.0, 1.0, 2.0], [4.0, 1.0, 0.0]])
    root = torch.tensor([12.5, 1.0, 2.0]).sqrt()
    made.step()
    torch.testing.assert_close(p.detach(), 1 - p.grad / root)


@BACKENDS
def test_a_slot_of_rows_that_no_pass_reads_is_kept_too(backend: str) -> None:
    def update(p: Any, g: Any, s: Any) -> Any:
        s.x = norm(g) + s.x
        return p - g

    made = rule(update, x=row(1.0))
    made.param_groups[0]["backend"] = backend
    made.step()
    made.step()
    (p,) = params_of(made)
    assert made.state[p]["x"].flatten().tolist() == pytest.approx([1 + 2 * 6**0.5] * 2)
    assert p.tolist() == [[-1.0] * 3] * 2
