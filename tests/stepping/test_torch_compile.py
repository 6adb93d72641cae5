"""torch.compile around code that makes an optimizer, steps it and saves it: torch leaves all of that as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from comparing import same
from torch import nn

import steprule

# torch.compile itself looks at the gradient of a loss
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

X = torch.linspace(-1.0, 1.0, 12).reshape(3, 4)


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, backend="eager")


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    optimizer.zero_grad()
    loss: torch.Tensor = model(X).square().sum()
    loss.backward()
    optimizer.step()
    return loss


ALGORITHMS = [steprule.SGD, steprule.AdamW, steprule.NAdam, steprule.Adafactor, steprule.Lamb]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_training_step_inside_does_what_it_does_outside(algorithm: Any) -> None:
    inside, outside = network(), network()
    ours, plain = algorithm(inside, lr=0.01), algorithm(outside, lr=0.01)
    step = compiled(train_step)
    for index in range(4):
        for optimizer in (ours, plain):
            optimizer.param_groups[0]["lr"] = 0.01 * (index + 1)
        torch.testing.assert_close(step(inside, ours), train_step(outside, plain), rtol=0.0, atol=0.0)
    assert same(inside.state_dict(), outside.state_dict())


def test_more_optimizers_than_torch_compiles_variants_for() -> None:
    step = compiled(lambda optimizer: optimizer.step())
    for _ in range(torch._dynamo.config.recompile_limit + 2):
        inside, outside = network(), network()
        for model, take in ((inside, step), (outside, steprule.AdamW.step)):
            optimizer = steprule.AdamW(model)
            for p in model.parameters():
                p.grad = torch.ones_like(p)
            for _ in range(2):
                take(optimizer)
        assert same(inside.state_dict(), outside.state_dict())


def test_the_bound_step_with_hooks_and_a_closure() -> None:
    model, seen = network(), []
    optimizer = steprule.SGD(model, lr=0.1)
    optimizer.register_step_post_hook(lambda *_: seen.append("hook"))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = model(X).square().sum()
        loss.backward()
        return loss

    step = compiled(optimizer.step)
    losses = [step(closure).item() for _ in range(3)]
    assert losses == sorted(losses, reverse=True)
    assert seen == ["hook"] * 3


def test_made_saved_loaded_and_extended_inside() -> None:
    def begin(model: nn.Module) -> steprule.Optimizer:
        optimizer = steprule.AdamW(model, lr=0.1)
        train_step(model, optimizer)
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.add_param_group({"params": [("more", nn.Parameter(torch.ones(2)))]})
        return optimizer

    inside, outside = network(), network()
    ours, plain = compiled(begin)(inside), begin(outside)
    assert same(inside.state_dict(), outside.state_dict())
    assert repr(ours) == repr(plain)
    assert compiled(lambda: ours.explain())() == plain.explain()
