"""What torch hangs on an optimizer: hooks on its step and its state dictionaries, and the gradient scaler."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tensors
import torch
from tensors import grad_of
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import steprule


@pytest.fixture
def weight() -> Tensor:
    return tensors.weight()


@pytest.fixture
def optimizer(weight: Tensor) -> steprule.SGD:
    return steprule.SGD([weight], lr=0.1, momentum=0.9)


@pytest.fixture
def handles() -> Iterator[list[Any]]:
    """Handles of global hooks, which are taken off at the end whatever happens."""
    handles: list[Any] = []
    yield handles
    for handle in handles:
        handle.remove()


# Hooks on the step.


def test_step_hooks_run_in_order_before_and_after_the_update(
    weight: Tensor, optimizer: steprule.SGD, handles: list[Any]
) -> None:
    calls: list[tuple[str, float]] = []

    def note(name: str) -> Callable[[Any, Any, Any], None]:
        def hook(hooked: Any, args: Any, kwargs: Any) -> None:
            assert hooked is optimizer
            assert args[0] is optimizer
            assert kwargs == {"closure": None}
            calls.append((name, weight[0].item()))

        return hook

    handles += [
        optimizer.register_step_post_hook(note("post")),
        register_optimizer_step_post_hook(note("global post")),
        optimizer.register_step_pre_hook(note("pre")),
        register_optimizer_step_pre_hook(note("global pre")),
    ]

    optimizer.step(closure=None)

    assert calls == [("global pre", 1.0), ("pre", 1.0), ("post", 0.9), ("global post", 0.9)]


def test_a_post_hook_that_the_closure_registers_runs_after_its_step(optimizer: steprule.SGD) -> None:
    calls: list[str] = []

    def closure() -> float:
        if not calls:
            optimizer.register_step_post_hook(lambda *_: calls.append("post"))
        return 1.0

    assert optimizer.step(closure) == 1.0
    assert calls == ["post"]


def test_a_removed_step_hook_does_not_run(optimizer: steprule.SGD) -> None:
    calls: list[str] = []
    handle = optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))

    optimizer.step()
    handle.remove()
    optimizer.step()

    assert calls == ["pre"]


def test_a_pre_hook_may_change_gradients_rates_and_the_closure(weight: Tensor, optimizer: steprule.SGD) -> None:
    def pre_hook(hooked: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        grad_of(weight).mul_(10)
        hooked.param_groups[0]["lr"] = 0.01
        return args, {"closure": lambda: torch.tensor(7.0)}

    optimizer.register_step_pre_hook(pre_hook)

    value = optimizer.step()

    assert value == 7
    torch.testing.assert_close(weight.detach(), torch.full((3,), 0.9, dtype=torch.float64))


def test_a_pre_hook_that_returns_anything_else_is_an_error(weight: Tensor, optimizer: steprule.SGD) -> None:
    optimizer.register_step_pre_hook(lambda *_: 3)  # type: ignore[arg-type]

    with pytest.raises(RuntimeError, match="must return None or a tuple"):
        optimizer.step()

    assert torch.equal(weight.detach(), torch.ones(3, dtype=torch.float64))


def test_step_hooks_work_with_an_algorithm_of_ones_own(weight: Tensor) -> None:
    class Plain(steprule.Optimizer):
        def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            return p - h.lr * g

    optimizer = Plain([weight], {"lr": 0.25})
    seen: list[float] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(weight[0].item()))
    optimizer.register_step_post_hook(lambda *_: seen.append(weight[0].item()))

    optimizer.step()

    assert seen == [1.0, 0.75]


# Hooks on state_dict and load_state_dict.


def test_state_dict_hooks(optimizer: steprule.SGD) -> None:
    calls: list[str] = []
    optimizer.register_state_dict_pre_hook(lambda hooked: calls.append("second"))
    optimizer.register_state_dict_pre_hook(lambda hooked: calls.append("first"), prepend=True)

    def in_place(hooked: Any, state_dict: dict[str, Any]) -> None:
        calls.append("post")
        state_dict["version"] = 1

    def replaced(hooked: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        return {**state_dict, "version": state_dict["version"] + 1}

    optimizer.register_state_dict_post_hook(replaced)
    optimizer.register_state_dict_post_hook(in_place, prepend=True)

    state_dict = optimizer.state_dict()

    assert calls == ["first", "second", "post"]
    assert state_dict.keys() >= {"state", "param_groups", "version"}
    assert state_dict["version"] == 2


def test_load_state_dict_hooks(weight: Tensor, optimizer: steprule.SGD) -> None:
    optimizer.step()
    saved = optimizer.state_dict()
    as_saved = copy.deepcopy(saved)
    loading = steprule.SGD([weight], lr=0.5)
    rates: list[float] = []

    def slower(hooked: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        rates.append(hooked.param_groups[0]["lr"])
        [group] = state_dict["param_groups"]
        return {**state_dict, "param_groups": [{**group, "lr": group["lr"] / 2}]}

    def add_entry(hooked: Any, state_dict: dict[str, Any]) -> None:
        state_dict["note"] = "of the hook alone"

    loading.register_load_state_dict_pre_hook(slower)
    loading.register_load_state_dict_pre_hook(add_entry, prepend=True)
    loading.register_load_state_dict_post_hook(lambda hooked: rates.append(hooked.param_groups[0]["lr"]))

    loading.load_state_dict(saved)

    assert rates == [0.5, 0.05]
    assert saved.keys() == as_saved.keys()
    assert saved["param_groups"] == as_saved["param_groups"]
    torch.testing.assert_close(loading.state[weight]["momentum_buffer"], torch.ones(3, dtype=torch.float64))


def test_state_dict_hooks_are_taken_off_by_their_handles(optimizer: steprule.SGD) -> None:
    calls: list[str] = []
    handles = [
        optimizer.register_state_dict_pre_hook(lambda hooked: calls.append("pre")),
        optimizer.register_state_dict_post_hook(lambda hooked, state_dict: calls.append("post")),
        optimizer.register_load_state_dict_pre_hook(lambda hooked, state_dict: calls.append("load pre")),
        optimizer.register_load_state_dict_post_hook(lambda hooked: calls.append("load post")),
    ]
    optimizer.load_state_dict(optimizer.state_dict())
    for handle in handles:
        handle.remove()
    optimizer.load_state_dict(optimizer.state_dict())

    assert calls == ["pre", "post", "load pre", "load post"]


# The gradient scaler of mixed precision.


def train_scaled(library: Any, bad_steps: dict[int, float], dtype: torch.dtype) -> tuple[Tensor, Any, list[float]]:
    """Train under a GradScaler; at each bad step one gradient is not finite."""
    weight = torch.linspace(-1, 1, 9, dtype=dtype).requires_grad_()
    optimizer = library.SGD([weight], lr=0.05, momentum=0.9, nesterov=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=4)
    scales = []
    for step in range(20):
        optimizer.zero_grad()
        loss = (weight - step / 20).pow(2).sum()
        scaler.scale(loss).backward()
        if step in bad_steps:
            weight.grad[3] = bad_steps[step]
        before = weight.detach().clone()
        scaler.step(optimizer)
        assert torch.equal(weight.detach(), before) == (step in bad_steps)
        scaler.update()
        scales.append(scaler.get_scale())
    return weight, optimizer, scales


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("bad_steps", [{}, {0: float("inf"), 5: float("nan"), 6: -float("inf")}])
def test_grad_scaler_unscales_and_skips_what_is_not_finite(
    bad_steps: dict[int, float], dtype: torch.dtype, atol: float
) -> None:
    weight, optimizer, scales = train_scaled(steprule, bad_steps, dtype)
    their_weight, their_optimizer, their_scales = train_scaled(torch.optim, bad_steps, dtype)

    assert scales == their_scales
    assert len(set(scales)) > 1
    ours, theirs = optimizer.state[weight], their_optimizer.state[their_weight]
    assert ours.keys() == theirs.keys()
    torch.testing.assert_close(weight, their_weight, rtol=0, atol=atol)
    torch.testing.assert_close(ours["momentum_buffer"], theirs["momentum_buffer"], rtol=0, atol=atol)


def test_grad_scaler_with_gradients_that_were_unscaled_to_be_clipped(weight: Tensor) -> None:
    optimizer = steprule.SGD([weight], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale((3 * weight).sum()).backward()  # adds 12 to the gradient of 1
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_([weight], max_norm=0.5)

    scaler.step(optimizer)

    moved = 1 - weight.detach()
    assert moved.norm().item() == pytest.approx(0.5, rel=1e-5)


class ByHand(steprule.Optimizer):
    """Written as for torch: with a step of its own, and no rule."""

    def __init__(self, params: Any, lr: Any = 1.0) -> None:
        super().__init__(params, {"lr": lr})
        self.seen: list[float] = []

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                self.seen.append(p.grad.norm().item())
                p.add_(p.grad, alpha=-group["lr"])


class Watched(steprule.SGD):
    """A step of its own that looks at gradients before those above take it."""

    seen: list[float]

    def step(self, closure: Any = None) -> Any:
        self.seen = [*getattr(self, "seen", []), *(p.grad.norm().item() for p in self.param_groups[0]["params"])]
        return super().step(closure)


@pytest.mark.parametrize("kind", [ByHand, Watched])
def test_grad_scaler_unscales_before_a_step_of_ones_own(kind: Any) -> None:
    weight = torch.ones(4, requires_grad=True)
    optimizer, scaler = kind([weight], lr=0.25), torch.amp.GradScaler("cpu", init_scale=1024.0)
    for factor in (1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale((factor * weight).sum()).backward()
        scaler.step(optimizer)
        scaler.update()

    assert weight.tolist() == [0.5] * 4
    assert optimizer.seen == [2.0, 2.0]


@pytest.mark.parametrize("everywhere", [False, True])
def test_grad_scaler_unscales_before_hooks_that_look_at_gradients(everywhere: bool, handles: list[Any]) -> None:
    weight = torch.ones(4, requires_grad=True)
    optimizer, scaler = steprule.SGD([weight], lr=1.0), torch.amp.GradScaler("cpu", init_scale=1024.0)

    def clip(*_: Any) -> None:
        torch.nn.utils.clip_grad_norm_([weight], 1.0)

    register = register_optimizer_step_pre_hook if everywhere else optimizer.register_step_pre_hook
    handles.append(register(clip))
    scaler.scale(weight.sum()).backward()
    scaler.step(optimizer)

    torch.testing.assert_close(weight.detach(), torch.full((4,), 0.5))


@pytest.mark.parametrize("kind", [ByHand, Watched])
def test_a_step_of_ones_own_is_one_step_with_hooks_and_schedules(kind: Any, handles: list[Any]) -> None:
    calls: list[str] = []
    weight = torch.ones(1, requires_grad=True)
    weight.grad = torch.ones(1)
    optimizer = kind([weight], lr=0.5 * steprule.schedules.linear(2))
    handles += [
        optimizer.register_step_pre_hook(lambda *_: calls.append("pre")),
        register_optimizer_step_post_hook(lambda *_: calls.append("post")),
    ]
    for left in (0.5, 0.25, 0.25):
        optimizer.step()
        assert weight.item() == left

    assert calls == ["pre", "post"] * 3
    assert optimizer.state_dict()["steprule"]["step"] == 3


def test_explain_says_of_a_step_of_ones_own_that_torch_does_it() -> None:
    assert ByHand([torch.ones(2, requires_grad=True)]).explain().startswith("ByHand works by torch operations")
