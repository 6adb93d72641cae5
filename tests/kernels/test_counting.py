"""``s.step`` counts the updates of a parameter, whether the rule asked for it in all of them or not."""

from __future__ import annotations

import copy
import itertools
import random
from typing import Any

import pytest
import torch

from steprule import Optimizer


class Told(Optimizer):
    """Leaves the number of a parameter's update in it, where its group asks for that."""

    def __init__(self, params: Any, tell: bool = False, **options: Any) -> None:
        super().__init__(params, dict(tell=tell), **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        return 0.0 * g + s.step if h.tell else p + g


def zeros(count: int = 3) -> list[torch.Tensor]:
    return [torch.zeros(2, requires_grad=True) for _ in range(count)]


def step(optimizer: Optimizer, given: list[torch.Tensor], tell: bool) -> list[float]:
    """What each parameter that has a gradient is told."""
    for p in optimizer.param_groups[0]["params"]:
        p.grad = torch.ones(2) if any(p is q for q in given) else None
    optimizer.param_groups[0]["tell"] = tell
    optimizer.step()
    return [p[0].item() for p in given] if tell else []


@pytest.mark.parametrize("backend", ["llvm", "eager"])
@pytest.mark.parametrize("seed", range(8))
def test_every_update_counts_whoever_asks(seed: int, backend: str) -> None:
    draw = random.Random(seed)
    params = zeros()
    optimizer = Told(params, backend=backend)
    counts = dict.fromkeys(range(3), 0)
    for _ in range(40):
        given = [i for i in range(3) if draw.random() < 0.7]
        for i in given:
            counts[i] += 1
        tell = draw.random() < 0.4
        told = step(optimizer, [params[i] for i in given], tell)
        assert told == ([counts[i] for i in given] if tell else [])


def test_a_parameter_that_joins_and_others_that_stay() -> None:
    params = zeros(2)
    optimizer = Told(params)
    for _ in range(3):
        step(optimizer, params, False)
    new = torch.zeros(2, requires_grad=True)
    optimizer.add_param_group({"params": [new]})
    new.grad = torch.ones(2)
    optimizer.param_groups[1]["tell"] = True
    assert step(optimizer, params, True) == [4, 4]
    assert new[0].item() == 1


def test_a_state_that_is_deleted_begins_anew() -> None:
    params = zeros(2)
    optimizer = Told(params)
    assert [step(optimizer, params, True) for _ in range(3)][-1] == [3, 3]
    del optimizer.state[params[0]]
    assert step(optimizer, params, True) == [1, 4]


class Kept(Told):
    """The same, with a state that does not count."""

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        s.before = g
        return super().update(p, g, s, h)


@pytest.mark.parametrize("how", ["load", "deepcopy", "evaluate"])
@pytest.mark.parametrize("first", list(itertools.product([False, True], repeat=2)))
def test_the_count_goes_on(how: str, first: tuple[bool, ...]) -> None:
    params = zeros(2)
    optimizer = Kept(params)
    for tell in first:
        step(optimizer, params, tell)
    if how == "load":
        saved = optimizer.state_dict()
        params = zeros(2)
        optimizer = Kept(params)
        optimizer.load_state_dict(saved)
    elif how == "deepcopy":
        optimizer = copy.deepcopy(optimizer)
        params = optimizer.param_groups[0]["params"]
    else:
        optimizer.eval()
        optimizer.train()
    assert step(optimizer, params, True) == [3, 3]
