"""What ``optimizer.track`` measures in the step, against norms that torch computes before and after it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from every_algorithm import ONLY_MATRICES, RULES
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import steprule
from steprule.rule import norm

NAMES = ("grad_norm", "param_norm", "update_norm", "update_to_param")
DENSE = [name for name in RULES if name not in {"SparseAdam"} | ONLY_MATRICES]
"""Which take gradients that are not sparse, of parameters that are no matrices."""


class Net(nn.Module):
    """Matrices, vectors and a scalar, in three dtypes; ``unused`` never has a gradient."""

    def __init__(self, low: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(7, 5, dtype=torch.float64)
        self.second = nn.Linear(5, 3, dtype=low)
        self.unused = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.second(self.first(x.double()).to(self.second.weight.dtype)).float()


def backward(model: Net, seed: int) -> None:
    model.zero_grad()
    generator = torch.Generator().manual_seed(seed)
    model(torch.randn(4, 7, generator=generator)).square().sum().backward()


def expected(before: dict[str, Tensor], after: dict[str, Tensor], grads: dict[str, Tensor]) -> dict[str, float]:
    found = {}
    for name, grad in grads.items():
        found[f"grad_norm/{name}"] = norm_of([grad])
        found[f"param_norm/{name}"] = norm_of([before[name]])
        found[f"update_norm/{name}"] = norm_of([after[name].double() - before[name].double()])
        found[f"update_to_param/{name}"] = found[f"update_norm/{name}"] / found[f"param_norm/{name}"]
    return found


def norm_of(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(t.abs().double().square().sum().item() for t in tensors))


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("name", "backend"), [*((name, backend) for name in DENSE for backend in ("auto", "eager")), ("AdamW", "triton")]
)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_the_norms_are_those_of_torch(name: str, clip: float | None, backend: str) -> None:
    model = Net()
    optimizer = getattr(steprule, name)(model, lr=0.1, clip_norm=clip, backend=backend)
    optimizer.track(*NAMES)
    assert optimizer.tracked() == {}
    for seed in range(3):
        backward(model, seed)
        before, grads = snapshot(model), gradients_of(model)
        optimizer.step()
        found = optimizer.tracked()
        assert list(found) == [f"{kind}/{name}" for kind in NAMES for name in found_names(found)]
        assert found == pytest.approx(expected(before, snapshot(model), grads), rel=2e-5, abs=1e-9)
    assert not any("unused" in key for key in found)


def found_names(found: dict[str, float]) -> list[str]:
    return [key.removeprefix("grad_norm/") for key in found if key.startswith("grad_norm/")]


def test_by_group_they_are_norms_over_what_had_a_gradient() -> None:
    model = Net(torch.bfloat16)
    optimizer = steprule.AdamW(model, lr=1e-2, overrides={"*.bias": {"weight_decay": 0.0}, "scale": {"lr": 0.1}})
    optimizer.track("update_to_param", "grad_norm")
    backward(model, 0)
    before, grads = snapshot(model), gradients_of(model)
    optimizer.step()
    after = snapshot(model)
    found = optimizer.tracked(by="group")
    assert found.keys() == {f"{kind}/group_{i}" for kind in ("update_to_param", "grad_norm") for i in range(3)}
    for i, group in enumerate(optimizer.param_groups):
        names = [name for name in group["param_names"] if name in grads]
        assert found[f"grad_norm/group_{i}"] == pytest.approx(norm_of([grads[name] for name in names]), rel=1e-6)
        moved = norm_of([after[name].double() - before[name].double() for name in names])
        ratio = moved / norm_of([before[name] for name in names])
        assert found[f"update_to_param/group_{i}"] == pytest.approx(ratio, rel=1e-2)  # bfloat16 rounds what is stored
    with pytest.raises(ValueError, match="not by 'layer'"):
        optimizer.tracked(by="layer")


def test_clipping_and_the_loss_scale_change_only_what_they_should() -> None:
    """The gradient is that of the loss: before clipping, without GradScaler's factor."""
    model = Net()
    optimizer = steprule.SGD(model, lr=0.1, clip_norm=1e-3)
    optimizer.track("grad_norm", "update_norm")
    backward(model, 0)
    grads = gradients_of(model)
    for p in model.parameters():
        if p.grad is not None:
            p.grad.mul_(1024.0)
    optimizer.grad_scale = torch.tensor(1024.0)
    optimizer.step()
    found = optimizer.tracked()
    for name, grad in grads.items():
        assert found[f"grad_norm/{name}"] == pytest.approx(norm_of([grad]), rel=1e-6)
    whole = norm_of([torch.tensor([v for key, v in found.items() if key.startswith("grad_norm/")])])
    assert optimizer.grad_norm.item() == pytest.approx(whole, rel=1e-6)
    moved = norm_of([torch.tensor([v for key, v in found.items() if key.startswith("update_norm/")])])
    assert moved == pytest.approx(0.1 * 1e-3, rel=1e-2)


class Trust(steprule.Optimizer):
    """A rule with reductions of its own."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, dict(lr=lr))

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        return p - h.lr * norm(p) / (norm(g) + 1.0) * g


@pytest.mark.parametrize("make", [steprule.SGD, steprule.AdamW, Trust])
def test_no_pass_over_memory_is_added(make: Callable[..., steprule.Optimizer]) -> None:
    def passes(names: tuple[str, ...]) -> list[int]:
        model = Net()
        optimizer = make(model)
        optimizer.track(*names)
        backward(model, 0)
        optimizer.step()
        assert optimizer._workings.planner.plan is not None
        return [len(launch.program.phases) for launch in optimizer._workings.planner.plan.launches]

    assert passes(NAMES) == passes(())


def test_tracking_does_not_change_the_step_and_can_be_ended() -> None:
    plain, measured = Net(), Net()
    optimizers = [steprule.AdamW(model, lr=0.1) for model in (plain, measured)]
    for seed in range(4):
        optimizers[1].track(*(NAMES if seed < 2 else ()))
        for model, optimizer in zip((plain, measured), optimizers, strict=True):
            backward(model, seed)
            optimizer.step()
    assert optimizers[1].tracked() == {}
    for p, q in zip(plain.parameters(), measured.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 5), st.booleans())
def test_sparse_gradients(rows: list[int], width: int, clip: bool) -> None:
    weight = torch.randn(10, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    optimizer = steprule.SGD([("table", weight)], lr=0.5, clip_norm=0.5 if clip else None)
    optimizer.track("grad_norm", "update_norm")
    values = torch.randn(len(rows), width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weight.grad = torch.sparse_coo_tensor(
        torch.tensor([rows], dtype=torch.int64), values, weight.shape, check_invariants=True
    )
    dense, before = weight.grad.to_dense(), weight.detach().clone()
    optimizer.step()
    found = optimizer.tracked()
    assert found["grad_norm/table"] == pytest.approx(dense.norm().item(), rel=1e-9, abs=1e-12)
    assert found["update_norm/table"] == pytest.approx((weight.detach() - before).norm().item(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("kind", ["param_norm", "update_to_param"])
def test_the_size_of_a_table_with_sparse_gradients_is_refused(kind: str) -> None:
    table = nn.Embedding(10, 3, sparse=True)
    optimizer = steprule.SparseAdam(table, lr=0.1)
    optimizer.track(kind)
    table(torch.tensor([1, 2])).sum().backward()
    before = table.weight.detach().clone()
    with pytest.raises(RuntimeError, match="can't be tracked: they need the whole of parameter 'weight'"):
        optimizer.step()
    assert torch.equal(table.weight, before)
    optimizer.track("update_norm")
    optimizer.step()
    assert optimizer.tracked()["update_norm/weight"] == pytest.approx((table.weight - before).norm().item(), rel=1e-5)


def test_parameters_without_names_are_called_by_their_place() -> None:
    first, second, third = (torch.full((2,), 3.0, requires_grad=True) for _ in range(3))
    optimizer = steprule.SGD([{"params": [first]}, {"params": [second, third]}], lr=0.1)
    optimizer.track("grad_norm")
    (first.sum() + third.sum()).backward()
    optimizer.step()
    assert optimizer.tracked() == pytest.approx({"grad_norm/group_0.0": 2**0.5, "grad_norm/group_1.1": 2**0.5})


def test_a_parameter_of_zeros_that_moves_has_an_infinite_ratio() -> None:
    zeros, still = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    optimizer = steprule.SGD([("zeros", zeros), ("still", still)], lr=0.1)
    optimizer.track("update_to_param")
    zeros.grad, still.grad = torch.ones(2), torch.zeros(2)
    optimizer.step()
    assert optimizer.tracked() == {"update_to_param/zeros": math.inf, "update_to_param/still": 0.0}


def test_what_can_not_be_tracked_is_refused() -> None:
    optimizer = steprule.SGD([torch.zeros(2, requires_grad=True)])
    with pytest.raises(ValueError, match="can't track 'loss'; there are grad_norm, "):
        optimizer.track("grad_norm", "loss")

    class ByHand(steprule.Optimizer):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            pass

    with pytest.raises(RuntimeError, match="ByHand has no update rule"):
        ByHand([torch.zeros(2, requires_grad=True)]).track("grad_norm")


def test_a_parameter_taken_out_of_its_group_is_not_reported() -> None:
    one, two = (torch.ones(2, requires_grad=True) for _ in range(2))
    optimizer = steprule.SGD([("one", one), ("two", two)], lr=0.5)
    optimizer.track("grad_norm")
    (3 * one + 4 * two).sum().backward()
    optimizer.step()
    del optimizer.param_groups[0]["params"][0]
    assert list(optimizer.tracked()) == ["grad_norm/two"]
