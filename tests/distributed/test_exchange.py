"""What processes exchange in a step: how often, what of it is counted, and what is said when something is wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from distributed.layouts import LAYOUTS, MATRICES, ROWS, Layout, mesh_of, plain, spread, train_spread, values, whole
from distributed.processes import on_ranks
from torch import nn
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.debug import CommDebugMode

import steprule
from steprule import Optimizer
from steprule.rule import max_abs, mean, norm, where


class ByLargest(Optimizer):
    """Goes by the largest element of each gradient and of all, and keeps a norm."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, dict(lr=lr))

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        largest, of_all = max_abs(g), max_abs(g, scope="all")
        s.length = norm(p)
        ratio = where(largest > 0, largest / of_all, 1.0)
        return p - h.lr * (ratio * g + 0.01 * mean(g) + 0.001 * s.length)


def collectives(layout: Layout, name: str, options: dict[str, Any]) -> int:
    """On one rank: how many collectives a step makes, the first left out."""
    params, optimizer = train_spread(lambda p: getattr(steprule, name)(p, **options), layout, spread)
    for p, g in zip(params, spread(layout, values(layout, 7)), strict=True):
        p.grad = g
    with CommDebugMode() as counted:
        optimizer.step()
    return counted.get_total_counts()


@pytest.mark.parametrize(
    ("layout", "name", "options", "count"),
    [
        ("rows", "AdamW", {}, 0),
        ("rows", "AdamW", {"clip_norm": 1.0}, 1),
        ("rows", "Lamb", {}, 1),
        ("rows", "Lamb", {"clip_norm": 1.0}, 2),
        ("half", "Lamb", {"clip_norm": 1.0}, 2),
        ("rows", "Adafactor", {}, 3),
        ("both", "Lamb", {"clip_norm": 1.0}, 4),
    ],
)
def test_collectives_do_not_grow_with_the_number_of_parameters(
    layout: str, name: str, options: dict[str, Any], count: int
) -> None:
    assert set(on_ranks(LAYOUTS[layout].size, collectives, LAYOUTS[layout], name, options)) == {count}


@pytest.mark.parametrize(("layout", "count"), [("rows", 2), ("uneven", 2), ("replicated", 3)])
def test_matrices_travel_together(layout: str, count: int) -> None:
    assert set(on_ranks(MATRICES[layout].size, collectives, MATRICES[layout], "Muon", {})) == {count}


def own_rule(layout: Layout) -> None:
    ours, optimizer = train_spread(ByLargest, layout, spread)
    theirs, reference = train_spread(ByLargest, layout, plain)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(whole(a), b.detach(), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(whole(optimizer.state[a]["length"]), reference.state[b]["length"])


@pytest.mark.parametrize("layout", ["uneven", "both", "half"])
def test_sums_and_maxima_of_rules_of_ones_own(layout: str) -> None:
    on_ranks(LAYOUTS[layout].size, own_rule, LAYOUTS[layout])


def norms(layout: Layout) -> tuple[float, dict[str, float], dict[str, float]]:
    """On one rank: the norm of all gradients, and those that are tracked; checked against one process."""

    def make(params: Any) -> steprule.Optimizer:
        optimizer = steprule.SGD(params, lr=0.1, clip_norm=0.5)
        optimizer.track("grad_norm", "update_to_param")
        return optimizer

    _, optimizer = train_spread(make, layout, spread)
    _, reference = train_spread(make, layout, plain)
    assert isinstance(optimizer, Optimizer)
    assert isinstance(reference, Optimizer)
    torch.testing.assert_close(optimizer.grad_norm, reference.grad_norm, rtol=1e-7, atol=0)
    by_name, by_group = optimizer.tracked(), optimizer.tracked(by="group")
    assert by_name == pytest.approx(reference.tracked(), rel=1e-6)
    assert by_group == pytest.approx(reference.tracked(by="group"), rel=1e-6)
    return float(optimizer.grad_norm), by_name, by_group


@pytest.mark.parametrize("layout", ["half", "both", "replicated"])
def test_norms_are_of_the_whole_and_equal_on_all_ranks(layout: str) -> None:
    first, *others = on_ranks(LAYOUTS[layout].size, norms, LAYOUTS[layout])
    assert all(other == first for other in others)


def partial_gradients() -> None:
    mesh = mesh_of((2,))
    p = nn.Parameter(DTensor.from_local(torch.ones(4), mesh, [Replicate()]))
    q = nn.Parameter(DTensor.from_local(torch.ones(2), mesh, [Shard(0)]))
    optimizer = steprule.SGD([("p", p), ("q", q)], lr=0.5, clip_norm=1.0)
    p.grad = DTensor.from_local(torch.full((4,), 1.0 + mesh.get_rank()), mesh, [Partial()])
    q.grad = DTensor.from_local(torch.full((2,), 2.0), mesh, [Shard(0)])
    optimizer.step()
    total = (4 * 3.0**2 + 4 * 2.0**2) ** 0.5
    torch.testing.assert_close(optimizer.grad_norm.item(), total, rtol=1e-12, atol=0)
    torch.testing.assert_close(whole(p), torch.full((4,), 1 - 0.5 * 3 / total))
    torch.testing.assert_close(whole(q), torch.full((4,), 1 - 0.5 * 2 / total))


def test_gradients_that_are_still_to_be_added_up_are() -> None:
    on_ranks(2, partial_gradients)


def message(step: Callable[[], object]) -> str:
    start = time.monotonic()
    with pytest.raises((RuntimeError, ValueError)) as raised:
        step()
    assert time.monotonic() - start < 20
    return f"{type(raised.value).__name__}: {raised.value}"


def missing_on_one(name: str) -> str:
    layout = Layout((2,), (((8, 6), [ROWS]), ((6, 4), [ROWS])))
    params, optimizer = train_spread(getattr(steprule, name), layout, spread)
    gradients = spread(layout, values(layout, 5))
    params[0].grad = gradients[0]
    params[1].grad = gradients[1] if mesh_of((2,)).get_rank() else None
    return message(optimizer.step)


@pytest.mark.parametrize("name", ["Lamb", "Adafactor", "Muon"])
def test_a_gradient_that_only_some_ranks_have_is_refused_on_all(name: str) -> None:
    for said in on_ranks(2, missing_on_one, name):
        assert "parameter 'p1' (S(0) over a mesh of 2) has a gradient on 1 of 2 ranks" in said


def missing_adds_nothing() -> None:
    layout = Layout((2,), (((8, 6), [ROWS]), ((4,), [ROWS])))
    params, optimizer = train_spread(lambda p: steprule.SGD(p, lr=0.1, clip_norm=1e-3), layout, spread)
    gradients: Any = spread(layout, values(layout, 5))
    rank = mesh_of((2,)).get_rank()
    for p, g in zip(params, gradients, strict=True):
        p.grad = g if rank else None
    optimizer.step()
    if rank:
        assert isinstance(optimizer, Optimizer)
        expected = sum(float(g.to_local().double().square().sum()) for g in gradients) ** 0.5
        assert float(optimizer.grad_norm) == pytest.approx(expected)
    for p in params:
        p.grad = None
    optimizer.step()


def test_ranks_without_any_gradient_take_part() -> None:
    on_ranks(2, missing_adds_nothing)


def infinite_on_one(missing: bool) -> None:
    layout = Layout((2,), (((8, 6), [ROWS]), ((4,), [ROWS])))
    params, optimizer = train_spread(lambda p: steprule.AdamW(p, nonfinite="skip"), layout, spread)
    gradients: Any = spread(layout, values(layout, 5))
    rank = mesh_of((2,)).get_rank()
    before = [whole(p).clone() for p in params]
    for p, g in zip(params, gradients, strict=True):
        p.grad = None if missing and rank == 0 else g
    if rank:
        gradients[0].to_local()[1] = float("nan")
    optimizer.step()
    assert isinstance(optimizer, Optimizer)
    assert optimizer.skipped == 1
    assert all(torch.equal(whole(p), b) for p, b in zip(params, before, strict=True))


@pytest.mark.parametrize("missing", [False, True])
def test_a_gradient_that_is_not_finite_on_one_rank_skips_the_step_on_all(missing: bool) -> None:
    on_ranks(2, infinite_on_one, missing)


def error_on_one(name: str) -> str:
    layout = Layout((2,), (((8, 6), [ROWS]), ((6, 4), [ROWS])))
    params, optimizer = train_spread(lambda p: getattr(steprule, name)(p, clip_norm=1.0), layout, spread)
    for p, g in zip(params, spread(layout, values(layout, 5)), strict=True):
        p.grad = g
    if mesh_of((2,)).get_rank():
        slot = next(s for s, v in optimizer.state[params[0]].items() if v.ndim)
        optimizer.state[params[0]][slot] = torch.zeros(3, 3)
    return message(optimizer.step)


@pytest.mark.parametrize("name", ["AdamW", "Lamb", "Adafactor", "Muon"])
def test_an_error_on_one_rank_is_raised_on_all(name: str) -> None:
    other, own = on_ranks(2, error_on_one, name)
    assert own.startswith("RuntimeError: state")
    assert "of parameter 'p0' is a plain tensor" in own
    assert other == f"RuntimeError: the step failed on rank 1, {own}"


def different() -> str:
    layout = Layout((2,), (((8, 6), [ROWS]), ((6, 4), [ROWS])))
    clip = 1.0 if mesh_of((2,)).get_rank() else None
    return message(lambda: train_spread(lambda p: steprule.AdamW(p, clip_norm=clip), layout, spread))


def test_different_optimizers_on_ranks_are_named() -> None:
    for said in on_ranks(2, different):
        assert "ranks 0 and 1 have different optimizers: the one has AdamW for parameter 'p0'" in said


def explained() -> str:
    params, optimizer = train_spread(steprule.Lamb, LAYOUTS["half"], spread)
    assert isinstance(optimizer, Optimizer)
    assert "llvm" in repr(optimizer)
    for p in params:  # state is spread as parameters are
        for value in optimizer.state[p].values():
            assert isinstance(value, DTensor) == (isinstance(p, DTensor) and value.ndim > 0)
            if isinstance(value, DTensor) and isinstance(p, DTensor):
                assert (value.placements, value.shape) == (p.placements, p.shape)
    return optimizer.explain()


def test_explain_says_how_parameters_are_spread() -> None:
    for said in on_ranks(2, explained):
        assert "llvm: dense memory on the CPU, S(0) over a mesh of 2" in said
        assert "eager" not in said


def flat_parameters() -> list[str]:
    from torch.distributed.fsdp import FullyShardedDataParallel

    said = []
    for original in (True, False):
        model = FullyShardedDataParallel(nn.Linear(6, 4), use_orig_params=original, device_id=torch.device("cpu"))
        steprule.AdamW(model.parameters())
        said.append(message(lambda model=model: steprule.Lamb(model.named_parameters())))
        said.append(message(lambda model=model: steprule.SGD(model.named_parameters(), clip_norm=1.0)))
    return said


def test_flat_parameters_are_refused_where_more_than_elements_is_needed() -> None:
    for said in on_ranks(2, flat_parameters):
        for line in said:
            assert line.startswith("RuntimeError: ")
            assert "reduces over parameters, but parameter '" in line
            assert "is a flat one of FullyShardedDataParallel" in line
