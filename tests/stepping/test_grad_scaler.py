"""GradScaler as with torch: by default it unscales and skips, with fused=True the step does."""

from __future__ import annotations

import copy
import functools
import types
from typing import Any

import pytest
import torch
from tensors import grad_of
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

import steprule
from steprule.schedules import linear

BAD = {1: float("inf"), 4: float("nan")}
STEPS = 6


def run(optim: Any, name: str, dtype: torch.dtype, clip: bool = False, **options: Any) -> dict[str, Any]:
    """A short training with overflows; what hooks and a person see of it."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(n, 3, generator=generator).to(dtype).requires_grad_() for n in (2, 5)]
    optimizer = getattr(optim, name)(weights, lr=0.1, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    seen: dict[str, Any] = {"in hooks": [], "after": [], "scales": [], "posts": 0}
    optimizer.register_step_pre_hook(lambda *_: seen["in hooks"].append([grad_of(w).clone() for w in weights]))
    optimizer.register_step_post_hook(lambda *_: seen.update(posts=seen["posts"] + 1))
    for step in range(STEPS):
        optimizer.zero_grad()
        scaler.scale(torch.stack([(w.float() - step / 8).square().sum() for w in weights]).sum()).backward()
        if step in BAD:
            weights[1].grad[0, 1] = BAD[step]
        if clip:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(weights, 0.5)
        scaler.step(optimizer)
        seen["after"].append([grad_of(w).clone() for w in weights])
        seen["scales"].append(scaler.get_scale())
        scaler.update()
    return {**seen, "weights": weights, "optimizer": optimizer}


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("fused", [None, False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "options"), [("SGD", dict(momentum=0.9)), ("AdamW", {}), ("Adagrad", {})])
def test_all_is_as_with_torch(
    name: str, options: dict[str, Any], dtype: torch.dtype, fused: bool | None, clip: bool
) -> None:
    options = {} if fused is None else options | {"fused": fused}
    ours, theirs = run(steprule, name, dtype, clip, **options), run(torch.optim, name, dtype, clip, **options)
    assert ours["scales"] == theirs["scales"]
    close: dict[str, Any] = (
        dict(rtol=1e-5, atol=1e-6) if dtype == torch.float32 else dict(rtol=0.05, atol=0.05)
    )  # torch rounds on the way
    torch.testing.assert_close(ours["weights"], theirs["weights"], **close)
    torch.testing.assert_close(ours["after"], theirs["after"], equal_nan=True, **close)
    finite = STEPS - len(BAD)
    assert (ours["posts"], len(ours["in hooks"]), ours["optimizer"].steps_taken) == (finite, finite, finite)
    if not fused:  # torch's fused step runs hooks round a step that changes nothing
        assert theirs["posts"] == finite
        torch.testing.assert_close(ours["in hooks"], theirs["in hooks"], **close)


def test_who_asks_whether_the_step_unscales_is_told_as_by_torch() -> None:
    weight = [torch.ones(2, requires_grad=True)]
    for fused in (None, False, True):
        for name in ("SGD", "Adam", "AdamW", "Adagrad"):
            ours, theirs = (getattr(optim, name)(weight, lr=0.1, fused=fused) for optim in (steprule, torch.optim))
            asked = [getattr(o, "_step_supports_amp_scaling", False) for o in (ours, theirs)]
            assert asked == [bool(fused)] * 2
    assert not steprule.LBFGS(weight)._step_supports_amp_scaling


@pytest.mark.parametrize("fused", [None, True])
def test_schedules_and_counts_stand_still_while_steps_are_skipped(fused: bool | None) -> None:
    weight = torch.ones(3, requires_grad=True)
    optimizer = steprule.SGD([weight], lr=0.5 * linear(4), fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    calls: list[int] = []
    handle = register_optimizer_step_post_hook(lambda *_: calls.append(1))
    rates, counts = [], []
    for factor in (1.0, float("inf"), float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale(factor * weight.sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        rates.append(optimizer.param_groups[0]["lr"])
        counts.append(optimizer.steps_taken)
    handle.remove()
    assert rates == [0.5, 0.5, 0.5, 0.375]
    assert counts == [1, 1, 1, 2]
    assert len(calls) == 2
    saved = optimizer.state_dict()
    assert saved["steprule"]["step"] == 2
    other = steprule.SGD([torch.ones(3, requires_grad=True)], lr=0.5 * linear(4))
    other.load_state_dict(saved)
    assert other.steps_taken == 2
    assert copy.deepcopy(optimizer).steps_taken == 2


def grad_like(weight: Tensor, how: str) -> Tensor:
    """A gradient of 8, in another way than the parameter lies in memory."""
    full = torch.full((6, 4), 8.0)
    sparse = functools.partial(torch.sparse_coo_tensor, check_invariants=True)
    ways = {
        "dense": lambda: full,
        "transposed": lambda: torch.full((4, 6), 8.0).T,
        "a part": lambda: torch.full((6, 8), 8.0)[:, ::2],
        "one number": lambda: torch.tensor(8.0).expand(6, 4),
        "negative": lambda: torch._neg_view(-full),
        "rows": lambda: sparse(torch.tensor([[1, 3]]), full[:2], (6, 4)).coalesce(),
        "rows twice": lambda: sparse(torch.tensor([[3, 1, 3]]), full[:3] / 2, (6, 4)),
    }
    return ways[how]()


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("how", ["dense", "transposed", "a part", "one number", "negative", "rows", "rows twice"])
def test_the_pass_leaves_gradients_unscaled_however_they_lie(how: str, backend: str) -> None:
    scaled, plain = (torch.ones(6, 4, requires_grad=True) for _ in range(2))
    scaled.grad, plain.grad = grad_like(scaled, how), grad_like(plain, how) / 4
    expected = plain.grad.to_dense().clone()
    ours = steprule.SGD([scaled], lr=0.5, momentum=0.5, fused=True, backend=backend)
    version = scaled.grad._version
    ours.grad_scale, ours.found_inf = torch.tensor(4.0), torch.tensor(0.0)
    ours.step()
    steprule.SGD([plain], lr=0.5, momentum=0.5, backend=backend).step()
    assert torch.equal(scaled, plain)
    assert torch.equal(scaled.grad.to_dense(), expected)
    assert how == "one number" or scaled.grad._version > version


@pytest.mark.parametrize("options", [dict(clip_norm=0.5), dict(maximize=True, l1=0.25)], ids=str)
def test_what_clipping_and_penalties_make_of_the_gradient_stays_out_of_it(options: dict[str, Any]) -> None:
    weight = torch.ones(6, 4, requires_grad=True)
    weight.grad = torch.full((6, 4), 8.0)
    optimizer = steprule.AdamW([weight], lr=0.5, fused=True, **options)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(0.0)
    optimizer.step()
    assert torch.equal(weight.grad, torch.full((6, 4), 2.0))


def test_a_parameter_that_stands_twice_in_a_group_is_unscaled_once() -> None:
    weight, other = (torch.ones(3, requires_grad=True) for _ in range(2))
    weight.grad, other.grad = torch.full((3,), 8.0), torch.full((3,), 2.0)
    with pytest.warns(UserWarning, match="duplicate parameters"):
        twice = steprule.SGD([{"params": [weight, weight]}], lr=0.25, fused=True)
    twice.grad_scale, twice.found_inf = torch.tensor(4.0), torch.tensor(0.0)
    twice.step()
    with pytest.warns(UserWarning, match="duplicate parameters"):
        steprule.SGD([{"params": [other, other]}], lr=0.25).step()
    assert torch.equal(weight, other)
    assert torch.equal(weight.grad, other.grad)


def test_fused_is_refused_in_the_step_where_torch_refuses_it() -> None:
    weight = torch.ones(3, device="meta", requires_grad=True)
    weight.grad = torch.ones(3, device="meta")
    words = "`fused=True` requires all the params to be floating point Tensors of supported devices"
    for optim in (steprule, torch.optim):
        with pytest.raises(RuntimeError, match=words):
            optim.SGD([weight], lr=0.1, fused=True).step()
    steprule.SGD([weight], lr=0.1).step()


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_a_step_for_which_the_scaler_found_no_gradient(name: str) -> None:
    """As of a frozen network: torch hands over a plain 0 for the flag."""
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = getattr(steprule, name)([p], lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale(torch.ones(()))
    scaler.step(optimizer)
    assert p.tolist() == [1.0] * 3
    p.grad = torch.ones(3)
    optimizer.step()
    assert max(p.tolist()) < 1.0


def test_what_a_wrapper_says_of_scaling_is_kept() -> None:
    optimizer = steprule.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1, fused=True)
    assert optimizer._step_supports_amp_scaling
    optimizer._step_supports_amp_scaling = False
    assert not optimizer._step_supports_amp_scaling


@pytest.mark.parametrize("fused", [None, True])
def test_a_second_point_whose_gradient_overflows_is_left_again(fused: bool | None) -> None:
    p = torch.nn.Parameter(torch.ones(1))
    optimizer = steprule.SGD([p], lr=0.1, fused=fused, modifiers=[steprule.modifiers.SAM(0.5)])
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for overflows in (True, False):
        optimizer.zero_grad()
        scaler.scale(p.sum()).backward()
        optimizer.first_step(zero_grad=True)
        assert p.item() == 1.5
        scaler.scale(p.sum() * (float("inf") if overflows else 1.0)).backward()
        scaler.step(optimizer)
        optimizer.go_back()
        scaler.update()
        assert p.item() == pytest.approx(1.0 if overflows else 0.9)
    assert (optimizer.steps_taken, optimizer.skipped) == (1, 1 if fused else 0)


def test_a_second_point_that_was_left_out_is_said_before_another_first_step() -> None:
    p = torch.nn.Parameter(torch.ones(1))
    optimizer = steprule.SGD([p], lr=0.1, modifiers=[steprule.modifiers.SAM(0.5)])
    p.sum().backward()
    optimizer.first_step()
    with pytest.raises(RuntimeError, match=r"or go_back\(\), which belongs behind GradScaler's step"):
        optimizer.first_step()
    optimizer.go_back()
    optimizer.first_step()
    optimizer.second_step()


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
@pytest.mark.parametrize("fused", [None, True])
def test_a_subclass_with_a_step_of_its_own_has_the_contract_of_the_class_above(name: str, fused: bool | None) -> None:
    seen: list[list[Tensor]] = []

    def own(optim: Any) -> Any:
        class Own(getattr(optim, name)):  # type: ignore[misc]
            def step(self, closure: Any = None) -> Any:
                grads = [p.grad.clone() for group in self.param_groups for p in group["params"]]
                if all(bool(g.isfinite().all()) for g in grads):
                    seen[-1] += grads
                return super().step(closure)

        return Own

    found = []
    for optim in (steprule, torch.optim):
        seen.append([])
        kinds = types.SimpleNamespace(Own=own(optim))
        found.append(run(kinds, "Own", torch.float32, fused=fused))
    ours, theirs = found
    assert ours["scales"] == theirs["scales"]
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours["weights"], theirs["weights"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours["after"], theirs["after"], equal_nan=True, rtol=1e-5, atol=1e-6)
    assert ours["optimizer"].steps_taken == ours["posts"] == STEPS - len(BAD)


@pytest.mark.parametrize("fused", [None, True])
def test_a_wrapper_that_copies_attributes_says_of_scaling_what_it_wraps_says(fused: bool | None) -> None:
    """As Lightning's and Fabric's do: a class of the moment, derived from the optimizer's, with a step of its own."""
    for library in (steprule, torch.optim):
        optimizer = library.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1, fused=fused)
        kind: Any = type("Wrapping", (type(optimizer),), {"step": lambda self, closure=None: None})
        wrapper = kind.__new__(kind)
        wrapper.__dict__.update(optimizer.__dict__)
        assert getattr(wrapper, "_step_supports_amp_scaling", False) is bool(fused)
