"""What a step does about gradients that are not finite."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any, ClassVar

import pytest
import torch
from comparing import same
from every_algorithm import CLASSES, ONLY_MATRICES, RULES
from tensors import coo, parameters
from torch.optim.optimizer import register_optimizer_step_post_hook

import steprule
from steprule import schedules
from steprule.rule import array, sign

BAD = [math.nan, math.inf, -math.inf]


class Blind(steprule.Optimizer):
    """A rule that keeps what does not depend on the gradient."""

    slots: ClassVar = {"count": array()}

    def __init__(self, params: Any, lr: float = 0.1, **options: Any) -> None:
        super().__init__(params, dict(lr=lr), **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        s.before = p
        s.count = s.count + 1.0
        return p - h.lr * sign(g)


SHAPES: dict[int, list[tuple[int, ...]]] = {1: [(3, 3), (3,), ()], 2: [(3, 3), (3, 3)]}
"""Parameters, by the least number of dimensions of most of them."""


def give_ramps(params: list[torch.Tensor], bad: float | None = None) -> None:
    for i, p in enumerate(params):
        p.grad = torch.linspace(-1, 1, p.numel()).reshape(p.shape) + i
        if bad is not None and i == 1:
            p.grad.view(-1)[0] = bad


def snapshot(optimizer: steprule.Optimizer) -> tuple[Any, ...]:
    params = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]
    return params, copy.deepcopy(optimizer.state_dict())


def named(name: str, params: list[torch.Tensor], **options: Any) -> steprule.Optimizer:
    kind = Blind if name == "Blind" else CLASSES[name]
    found: steprule.Optimizer = kind([(f"p{i}", p) for i, p in enumerate(params)], lr=0.1, **options)
    return found


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("name", [name for name in (*RULES, "Blind") if name != "SparseAdam"])
def test_a_step_that_is_skipped_changes_nothing_and_the_next_goes_on(name: str, backend: str) -> None:
    ours, theirs = (parameters(SHAPES[2 if name in ONLY_MATRICES else 1]) for _ in range(2))
    skipping = named(name, ours, nonfinite="skip", backend=backend)
    plain = named(name, theirs, backend=backend)
    for turn, bad in enumerate([math.nan, None, None, math.inf, -math.inf, None]):
        give_ramps(ours, bad)
        before = snapshot(skipping)
        skipping.step()
        assert same(snapshot(skipping), before) is (bad is not None), turn
        if bad is None:
            give_ramps(theirs)
            plain.step()
    assert skipping.skipped == 3
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.5}, {"l1": 0.1, "maximize": True}])
def test_what_is_checked_is_not_changed(options: dict[str, Any]) -> None:
    ours, theirs = parameters(SHAPES[1]), parameters(SHAPES[1])
    optimizers = [named("AdamW", ours, nonfinite="skip", **options), named("AdamW", theirs, **options)]
    for _ in range(5):
        for params, optimizer in zip((ours, theirs), optimizers, strict=True):
            give_ramps(params)
            optimizer.step()
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(p, q)
    assert optimizers[0].skipped == 0


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("taken", [0, 2])
def test_raising_names_the_parameter_and_changes_nothing(bad: float, taken: int) -> None:
    params = parameters(SHAPES[1])
    optimizer = named("Adam", params, nonfinite="raise")
    for _ in range(taken):
        give_ramps(params)
        optimizer.step()
    before = snapshot(optimizer)
    give_ramps(params, bad)
    with pytest.raises(RuntimeError, match=r"gradients are not finite: of parameter 'p1'\. Nothing has changed"):
        optimizer.step()
    assert same(snapshot(optimizer), before)
    give_ramps(params)
    optimizer.step()


@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.5}])
def test_where_the_device_decides_nobody_waits_and_the_counts_are_right(options: dict[str, Any]) -> None:
    ours, theirs = parameters(SHAPES[1]), parameters(SHAPES[1])
    skipping = named("AdamW", ours, nonfinite="skip", backend="triton", **options)
    plain = named("AdamW", theirs, backend="triton", **options)
    for turn, bad in enumerate([None, None, math.nan, None, math.inf, None]):
        give_ramps(ours, bad)
        skipping.step()
        plan = skipping._workings.planner.plan
        assert plan is not None
        assert plan.awaits is (turn == 0)
        if bad is None:
            give_ramps(theirs)
            plain.step()
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(p, q)
        assert skipping.state[p]["step"].item() == plain.state[q]["step"].item() == 4
    assert (skipping.steps_taken, skipping.skipped) == (4, 2)


def test_schedules_do_not_count_a_skipped_step() -> None:
    params = parameters(SHAPES[1])
    optimizer = steprule.SGD(params, lr=1.0 * schedules.linear(10), nonfinite="skip")
    rates = []
    for bad in (None, math.nan, None, math.inf, None):
        give_ramps(params, bad)
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1.0, 0.9, 0.9, 0.8, 0.8])


def test_finite_gradients_whose_norm_is_not_are_no_reason() -> None:
    p = torch.ones(2, dtype=torch.float64, requires_grad=True)
    optimizer = steprule.SGD([p], lr=1e-200, nonfinite="raise")
    p.grad = torch.full_like(p, 1e200)
    optimizer.step()
    assert p.tolist() == [0.0, 0.0]
    assert optimizer.skipped == 0


def test_sparse_and_complex_gradients_are_looked_at_too() -> None:
    table = torch.ones(4, 2, requires_grad=True)
    z = torch.ones(2, dtype=torch.complex64, requires_grad=True)
    optimizer = steprule.SGD([("table", table), ("z", z)], lr=0.1, nonfinite="raise")
    table.grad = coo([1], torch.tensor([[1.0, math.nan]]), (4, 2))
    z.grad = torch.ones_like(z)
    with pytest.raises(RuntimeError, match="'table'"):
        optimizer.step()
    table.grad = coo([1], torch.tensor([[1.0, 2.0]]), (4, 2))
    z.grad = torch.full_like(z, complex(0.0, math.inf))
    with pytest.raises(RuntimeError, match="'z'"):
        optimizer.step()
    assert bool((table == 1).all())


def test_without_it_numbers_that_are_not_finite_go_on() -> None:
    params = parameters(SHAPES[1])
    optimizer = named("SGD", params)
    give_ramps(params, math.nan)
    optimizer.step()
    assert not bool(torch.isfinite(params[1]).all())
    optimizer.nonfinite = "skip"
    give_ramps(params, math.nan)
    optimizer.step()
    assert optimizer.skipped == 1


def test_it_is_the_whole_optimizers_and_travels_with_it() -> None:
    params = parameters(SHAPES[1])
    with pytest.raises(ValueError, match="Invalid nonfinite: 'ignore'; it is one of propagate, skip, raise"):
        steprule.SGD(params, nonfinite="ignore")
    with pytest.raises(ValueError, match="needs an update rule"):
        steprule.LBFGS(params, nonfinite="skip")
    with pytest.raises(TypeError, match="nonfinite is an option of the whole optimizer"):
        steprule.SGD([dict(params=params, nonfinite="skip")])
    optimizer = steprule.SGD(params, nonfinite="skip")
    assert pickle.loads(pickle.dumps(optimizer)).nonfinite == "skip"
    assert copy.deepcopy(optimizer).nonfinite == "skip"


def test_a_step_of_ones_own_counts_no_step_that_is_left_out() -> None:
    class Own(steprule.SGD):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    p = torch.ones(1, requires_grad=True)
    optimizer = Own([p], lr=1.0 * steprule.schedules.linear(4), nonfinite="skip")
    for gradient in (float("nan"), float("nan"), 1.0):
        p.grad = torch.full((1,), gradient)
        optimizer.step()
    assert (optimizer.steps_taken, optimizer.skipped, p.item()) == (1, 2, 0.0)


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("backend", ["auto", "triton", "eager"])
def test_post_hooks_do_not_run_for_a_step_that_is_left_out(backend: str, everywhere: bool) -> None:
    params, counts = parameters(SHAPES[1]), []
    optimizer = named("SGD", params, nonfinite="skip", backend=backend)
    register = register_optimizer_step_post_hook if everywhere else optimizer.register_step_post_hook
    handle = register(lambda stepped, *_: counts.append(stepped.steps_taken))
    try:
        for bad in (None, None, math.nan, None, math.inf, None):
            give_ramps(params, bad)
            optimizer.step()
    finally:
        handle.remove()
    assert counts == [1, 2, 3, 4]
    assert (optimizer.steps_taken, optimizer.skipped) == (4, 2)


def test_pre_hooks_run_before_it_is_known_and_may_put_gradients_right() -> None:
    p = torch.ones(1, requires_grad=True)
    optimizer = steprule.SGD([p], lr=0.5, nonfinite="skip")
    counts: list[int] = []
    handle = optimizer.register_step_pre_hook(lambda stepped, *_: counts.append(stepped.steps_taken))
    for gradient in (math.nan, 1.0):
        p.grad = torch.full((1,), gradient)
        optimizer.step()
    assert (counts, optimizer.steps_taken, optimizer.skipped) == ([0, 0], 1, 1)
    handle.remove()
    optimizer.register_step_pre_hook(lambda *_: setattr(p, "grad", torch.zeros(1)))
    p.grad = torch.full((1,), math.nan)
    optimizer.step()
    assert (optimizer.steps_taken, optimizer.skipped) == (2, 1)
