"""The bytes that memory() says are those that are there after a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from every_algorithm import RULES
from inside import params_of
from tensors import give_gradients
from torch import nn

import steprule
from steprule.modifiers import EMA, Lookahead


def bytes_of(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def held(optimizer: steprule.Optimizer) -> dict[str, int]:
    found: dict[str, int] = {}
    for own in optimizer.state.values():
        for name, value in own.items():
            found[name] = found.get(name, 0) + bytes_of([value])
    return found


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    layers = nn.Conv2d(3, 6, 2), nn.Flatten(), nn.Linear(12, 40, bias=False), nn.LayerNorm(40), nn.Linear(40, 5)
    return nn.Sequential(*layers).to(dtype)


def make(algorithm: str, model: nn.Module, **options: Any) -> Any:
    return getattr(steprule, algorithm)(model, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("algorithm", [name for name in RULES if name != "SparseAdam"])
def test_what_is_said_is_there_after_a_step(algorithm: str, dtype: torch.dtype) -> None:
    options: dict[str, Any] = {"momentum": 0.9} if algorithm == "SGD" else {}
    model = network(dtype)
    with torch.device("meta"):
        ghost = make(algorithm, network(dtype), **options)
    optimizer = make(algorithm, model, **options)
    said = optimizer.memory()
    assert said.slots == ghost.memory().slots
    give_gradients(params_of(optimizer), 0)
    optimizer.step()
    assert said.slots == held(optimizer)
    assert said == optimizer.memory()
    assert said.weights == said.gradients == bytes_of(params_of(optimizer))
    assert said.total == 2 * said.weights + sum(held(optimizer).values())


@pytest.mark.parametrize("state_dtype", [{"exp_avg_sq": "bfloat16"}, {"exp_avg": "bfloat16"}])
def test_state_in_fewer_bits_and_copies_of_weights(state_dtype: Any) -> None:
    model = network()
    overrides: dict[Any, Any] = {nn.LayerNorm: {"state_dtype": state_dtype}}
    optimizer = steprule.AdamW(model, modifiers=[EMA(0.9)], overrides=overrides)
    said = optimizer.memory()
    give_gradients(params_of(optimizer), 0)
    optimizer.step()
    assert said.slots == held(optimizer)
    assert said == optimizer.memory()
    assert len(said.groups) == 2
    assert said.state + said.masters == sum(said.slots.values())


def test_masters_are_the_copies_of_weights() -> None:
    model = network()
    said = steprule.SGD(model, modifiers=[Lookahead()]).memory()
    assert said.masters == said.weights
    assert said.state == sum(said.slots.values()) - said.weights


def test_frozen_parameters_have_neither_gradients_nor_state() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[0].weight.requires_grad_(False)
    said = steprule.AdamW(model).memory()
    assert said.weights == 2 * said.gradients == 128
    assert said.slots == {"step": 4, "exp_avg": 64, "exp_avg_sq": 64}


def test_ranks_and_a_step_in_backward() -> None:
    model = nn.Sequential(nn.Linear(300, 100, bias=False), nn.Linear(100, 10), nn.Linear(200, 100, bias=False))
    optimizer = steprule.AdamW(model)
    assert optimizer.memory().in_backward == 4 * (30_000 + 1010)
    said = optimizer.memory(ranks=3)
    rows = 34 * 300 + 4 * 100 + 4 + 34 * 200
    assert said.weights == said.gradients == 4 * rows
    assert said.slots == {"step": 16, "exp_avg": 4 * rows, "exp_avg_sq": 4 * rows}
    assert said.in_backward is None
    assert "on each of 3 ranks" in str(said)


def test_what_is_refused() -> None:
    model = network()
    with pytest.raises(ValueError, match="ranks=0 is a number of processes"):
        steprule.AdamW(model).memory(ranks=0)
    with pytest.raises(RuntimeError, match="LBFGS has no update rule"):
        steprule.LBFGS(model).memory()
    with pytest.raises(TypeError, match="a class of steprule's optimizers"):
        steprule.memory(model, torch.optim.AdamW)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"tables of whole matrices, but parameter '0\.weight'"):
        steprule.memory(model, steprule.Shampoo, ranks=2)
    with pytest.raises(RuntimeError, match="is lazy"):
        steprule.memory(nn.LazyLinear(3), steprule.SGD)


def test_parameters_without_names_and_numbers_in_words() -> None:
    text = str(steprule.SGD([torch.ones(500, 4, requires_grad=True)], lr=0.1).memory())
    assert text.splitlines()[0] == "SGD: 16 kB"
    assert "gradients with step_in_backward: 8 kB at most" in text
