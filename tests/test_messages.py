"""Arguments of a wrong kind: the message names the argument, and nothing has changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import steprule

NUMBER = "must be a number, a tensor that holds one or a schedule, got "


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))


OPTIONS: list[tuple[str, dict[str, Any], str]] = [
    ("AdamW", {"lr": "0.1"}, f"lr {NUMBER}'0.1'"),
    ("AdamW", {"lr": None}, f"lr {NUMBER}None"),
    ("AdamW", {"lr": 1j}, f"lr {NUMBER}1j"),
    ("AdamW", {"lr": steprule.scale(2)}, f"lr {NUMBER}scale\\(2.0\\)"),
    ("AdamW", {"betas": 0.9}, "betas must be two numbers, got 0.9"),
    ("AdamW", {"betas": (0.9,)}, r"betas must be two numbers, got \(0.9,\)"),
    ("Lion", {"betas": (0.9, 0.9, 0.9)}, "betas must be two numbers, got"),
    ("Adam", {"betas": (0.9, "0.99")}, rf"betas\[1\] {NUMBER}'0.99'"),
    ("SGD", {"momentum": None}, f"momentum {NUMBER}None"),
    ("SGD", {"clip_norm": "1"}, f"clip_norm {NUMBER}'1'"),
    ("SGD", {"l1": None}, f"l1 {NUMBER}None"),
    ("SGD", {"overrides": {"*.bias": {"weight_decay": "0"}}}, f"weight_decay {NUMBER}'0'"),
    ("SGD", {"overrides": ["*.bias"]}, "overrides must be a dictionary from selectors to hyperparameters, got"),
]


@pytest.mark.parametrize(("name", "options", "message"), OPTIONS, ids=[f"{n}-{o}" for n, o, _ in OPTIONS])
def test_hyperparameters(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        getattr(steprule, name)(network(), **options)


def test_groups() -> None:
    with pytest.raises(TypeError, match="base must be a dictionary of hyperparameters, got None"):
        steprule.groups(network(), None, {"0.*": {"lr": 0.1}})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="overrides must be a dictionary from selectors"):
        steprule.exclusive(["0.*"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rename": 5}, "rename= must be a mapping or a function, got 5"),
        ({"resize": "0.weight"}, "resize= must be a collection of names, not the string '0.weight'"),
    ],
)
def test_loading_a_dictionary(options: dict[str, Any], message: str) -> None:
    optimizer = steprule.AdamW(network())
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(TypeError, match=message):
        optimizer.load_state_dict(before, **options)
    assert str(optimizer.state_dict()) == str(before)


Call = Callable[[Path, nn.Module, steprule.Optimizer], Any]

FILES: list[tuple[Call, str]] = [
    (lambda path, m, o: steprule.save(path, m), "optimizer must be an optimizer or None, got Sequential"),  # type: ignore[arg-type]
    (lambda path, m, o: steprule.save(path, o.state_dict()), "optimizer must be an optimizer or None, got dict"),  # type: ignore[arg-type]
    (lambda path, m, o: steprule.save(path, o, m.state_dict()), "model must be a module or None, got OrderedDict"),  # type: ignore[arg-type]
    (lambda path, m, o: steprule.save(o, str(path)), "optimizer must be an optimizer or None, got str"),  # type: ignore[arg-type]
    (lambda path, m, o: steprule.load(path, m), "optimizer must be an optimizer or None, got Sequential"),  # type: ignore[arg-type]
    (lambda path, m, o: steprule.load(path, o, {}), "model must be a module or None, got dict"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "message"), FILES, ids=[message for _, message in FILES])
def test_saving_and_loading_files(call: Call, message: str, tmp_path: Path) -> None:
    model = network()
    optimizer, path = steprule.AdamW(model), tmp_path / "run.safetensors"
    steprule.save(path, optimizer, model)
    before = path.read_bytes()
    with pytest.raises(TypeError, match=message):
        call(path, model, optimizer)
    assert path.read_bytes() == before


def test_a_wrapper_whose_state_is_elsewhere_is_refused_before_it_is_saved(tmp_path: Path) -> None:
    class Sharded(torch.optim.Optimizer):
        """Keeps the state in another optimizer, as ZeroRedundancyOptimizer does."""

        def __init__(self, inner: torch.optim.Optimizer) -> None:
            super().__init__(inner.param_groups[0]["params"], {})
            self.inner = inner

        def state_dict(self) -> Any:
            return self.inner.state_dict()

    sharded = Sharded(torch.optim.AdamW(network().parameters()))
    for call in (steprule.save, steprule.load):
        with pytest.raises(TypeError, match="a Sharded, which keeps its state in a way of its own: give the optimizer"):
            call(tmp_path / "run.safetensors", sharded)
    assert not list(tmp_path.iterdir())


def test_a_class_of_ones_own_over_torchs_is_not_taken_over() -> None:
    class Mine(torch.optim.AdamW):
        pass

    with pytest.raises(TypeError, match=r"takes no .*Mine, only an optimizer of torch.optim called AdamW"):
        steprule.AdamW.from_torch(Mine(network().parameters()))
