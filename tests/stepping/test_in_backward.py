"""A step in backward: the bits of plain steps, whatever happens in between."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparing import same
from every_algorithm import MATRIX, PARAMETER_FREE, RULES
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tensors import normal
from torch import nn

import steprule
from steprule import schedules
from steprule.modifiers import EMA, Cautious
from steprule.stepping import large_parameters

SHAPES: dict[str, tuple[int, ...]] = {
    "embedding": (30, 5),
    "first.weight": (9, 7),
    "first.bias": (9,),
    "norm": (7,),
    "kernel": (4, 3, 2, 2),
    "last.weight": (11, 6),
    "last.bias": (),
    "wide": (6, 20),
}
NAMES = list(SHAPES)
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "SGD": [{}, {"momentum": 0.9, "nesterov": True}],
    "RMSprop": [{"momentum": 0.9, "centered": True}],
    "Adam": [{"amsgrad": True}],
}
CASES = [(name, options) for name in RULES for options in OPTIONS.get(name, [{}])]
DENSE = [case for case in CASES if case[0] not in {"SparseAdam", "AdaGC"} | MATRIX | PARAMETER_FREE]


@pytest.fixture(autouse=True)
def _small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_parameters, "LARGE", 40)


class Model(nn.Module):
    """Parameters that get the gradients that they are told."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        for i, (name, shape) in enumerate(SHAPES.items()):
            self.register_parameter(name.replace(".", "_"), nn.Parameter(normal(*shape, seed=i, dtype=dtype)))

    def named(self) -> list[tuple[str, nn.Parameter]]:
        return list(zip(NAMES, self.parameters(), strict=True))

    def backward(self, step: int, present: set[str]) -> None:
        found = [(i, p) for i, (name, p) in enumerate(self.named()) if name in present and p.requires_grad]
        if found:
            torch.stack(
                [(p * normal(*p.shape, seed=100 * step + i, dtype=p.dtype)).sum() for i, p in found]
            ).sum().backward()


def made(algorithm: str, options: dict[str, Any], model: Model, **more: Any) -> steprule.Optimizer:
    groups = [
        {"params": model.named()[:5]},
        {"params": model.named()[5:], "lr": 0.02 * schedules.linear(30)},
    ]
    cls = getattr(steprule, algorithm)
    decay = {"weight_decay": 0.0} if "weight_decay" in cls(model.named(), lr=0.1).defaults else {"l1": 0.001}
    overrides: dict[Any, Any] = {"*.bias": decay, "wide": {"maximize": True}}
    return cls(groups, lr=0.03 * schedules.cosine(25), overrides=overrides, **options, **more)


class Run:
    """A model, its optimizer, and how its steps are taken."""

    def __init__(self, make: Callable[[Model], steprule.Optimizer], in_backward: bool) -> None:
        self.make, self.in_backward = make, in_backward
        self.handle: Any = None
        self.start(Model())

    def start(self, model: Model) -> None:
        self.model, self.optimizer = model, self.make(model)
        if self.in_backward:
            self.turn()

    def turn(self) -> None:
        if not self.in_backward:
            return
        if self.handle is None:
            self.handle = self.optimizer.step_in_backward(self.model)
        else:
            self.handle.remove()
            self.handle = None

    def step(self, number: int, present: set[str]) -> None:
        self.model.backward(number, present)
        if self.handle is not None:
            assert all(p.grad is None for p in self.model.parameters())
        self.optimizer.step()
        self.optimizer.zero_grad()

    def resume(self) -> None:
        saved, on = (self.model.state_dict(), self.optimizer.state_dict()), self.handle is not None
        if on:
            self.turn()
        model = Model()
        model.load_state_dict(saved[0])
        for p, before in zip(model.parameters(), self.model.parameters(), strict=True):
            p.requires_grad_(before.requires_grad)
        self.start(model)
        if self.in_backward and not on:
            self.turn()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*frozen")
            self.optimizer.load_state_dict(saved[1])

    def reload(self) -> None:
        self.optimizer.load_state_dict(self.optimizer.state_dict())

    def freeze(self) -> None:
        self.optimizer.freeze("first.weight")

    def unfreeze(self) -> None:
        self.optimizer.unfreeze("first.weight")

    def flag(self) -> None:
        for group in self.optimizer.param_groups:
            group["maximize"] = not group["maximize"]

    def replace(self) -> None:
        p = self.model.wide
        self.optimizer.state[p] = {key: value.clone() for key, value in self.optimizer.state[p].items()}

    def drop(self) -> None:
        self.optimizer.state.pop(self.model.get_parameter("embedding"), None)

    def move(self) -> None:
        with torch.no_grad():
            embedding = self.model.get_parameter("embedding")
            embedding.data = embedding.data.clone()


EVENTS = ["none", "turn", "resume", "reload", "freeze", "unfreeze", "flag", "replace", "drop", "move"]


@pytest.mark.parametrize(("algorithm", "options"), DENSE, ids=str)
@given(data=st.data())
@settings(max_examples=2, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
def test_every_algorithm_has_the_bits_of_plain_steps(
    algorithm: str, options: dict[str, Any], data: st.DataObject
) -> None:
    backend = data.draw(st.sampled_from(["auto", "auto", "eager"]))
    modifiers = data.draw(st.sampled_from([[], [], [Cautious()], [EMA(0.9)]]))
    make = lambda model: made(algorithm, options, model, backend=backend, modifiers=modifiers)
    one, other = Run(make, in_backward=True), Run(make, in_backward=False)
    for number in range(6):
        event = data.draw(st.sampled_from(EVENTS))
        present = data.draw(st.sampled_from([set(NAMES), set(NAMES)]) | st.sets(st.sampled_from(NAMES)))
        for run in (one, other):
            if event != "none":
                getattr(run, event)()
            run.step(number, present)
        assert same(dict(one.model.state_dict()), dict(other.model.state_dict())), (number, event)
        assert same(one.optimizer.state_dict(), other.optimizer.state_dict()), (number, event)
        assert one.optimizer.steps_taken == other.optimizer.steps_taken
    if one.handle is not None:
        one.turn()


@pytest.mark.parametrize("algorithm", ["AdamW", "Lion"])
@pytest.mark.parametrize(
    ("held", "dtype"),
    [
        ({"state_dtype": "bfloat16"}, torch.float32),
        ({"state_dtype": "8bit"}, torch.float32),
        ({"state_dtype": "8bit", "rounding": "stochastic"}, torch.bfloat16),
    ],
)
def test_state_in_fewer_bits_has_the_bits_of_plain_steps(
    algorithm: str, held: dict[str, Any], dtype: torch.dtype
) -> None:
    found = []
    for in_backward in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(70, 70), nn.Tanh(), nn.Linear(70, 70), nn.Tanh(), nn.Linear(70, 3)).to(dtype)
        optimizer = getattr(steprule, algorithm)(model, lr=0.01 * schedules.cosine(9), **held)
        for step in range(6):
            if in_backward and step in (0, 4):
                handle = optimizer.step_in_backward(model)
            model[2].requires_grad_(step % 3 != 1)  # whose gradients come and go
            model(normal(5, 70, seed=step).to(dtype)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            if in_backward and step == 2:
                handle.remove()
        found.append((list(model.parameters()), optimizer.state_dict()["state"]))
    assert same(*found)
