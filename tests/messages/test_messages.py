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


PARAMS: list[tuple[Callable[[nn.Module], Any], type[Exception], str]] = [
    (lambda m: m.parameters, TypeError, "it is parameters of a Sequential: call it, or give the model"),
    (lambda m: m.state_dict(), TypeError, r"the params is str; give the model, or model.named_parameters\(\)"),
    (lambda m: {"params": m.parameters()}, TypeError, r"groups stand in a list: \[dict\(params=...\)\]"),
    (lambda m: 1e-3, TypeError, r"'float' object is not iterable; parameters come first: AdamW\(model, lr=...\)"),
    (lambda m: "model", TypeError, "one of the params is str; parameters come first"),
    (lambda m: [*m.children()], TypeError, r"one of the params is torch.nn.modules.linear.Linear; give one module"),
    (lambda m: [{"param": m.parameters()}], KeyError, "a group has them, and this one param; did you mean 'param'"),
]


@pytest.mark.parametrize(("params", "error", "message"), PARAMS)
def test_what_holds_no_parameters_says_what_to_give(
    params: Callable[[nn.Module], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        steprule.AdamW(params(network()))
    with pytest.raises(error):
        torch.optim.AdamW(params(network()))


def test_one_of_an_algorithm_for_matrices_says_how_it_takes_a_model() -> None:
    with pytest.raises(ValueError, match=r"Muon\(model\) trains its matrices and AdamW the rest"):
        steprule.Muon(network().parameters())


def test_arguments_of_save_and_load_in_another_order(tmp_path: Path) -> None:
    model = network()
    optimizer = steprule.SGD(model)
    given: list[tuple[Any, ...]] = [(model, optimizer), (optimizer, "run"), ("run", model, optimizer), ("run", model)]
    for function in (steprule.save, steprule.load):
        for arguments in given:
            with pytest.raises(TypeError, match=rf"write {function.__name__}\(path, optimizer, model\)"):
                function(*arguments)


def test_a_class_without_hyperparameters_says_how_it_gets_some() -> None:
    class Plain(steprule.Optimizer):
        def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            return p - h.lr * g

    with pytest.raises(TypeError, match=r"no hyperparameters: write an __init__\(self, params, lr, \*\*options\)"):
        Plain(network(), lr=0.1)
    with pytest.raises(TypeError, match=r"defaults must be the hyperparameters with their values, dict\(lr=...\), got"):
        Plain(network(), 0.1)  # type: ignore[arg-type]


def test_a_misspelt_method_or_declaration_of_an_optimizer_is_refused() -> None:
    right = {"update": lambda self, p, g, s, h: p}
    for name, value, meant in (
        ("updates", lambda self, p, g, s, h: p, "update"),
        ("slot", {"mean": None}, "slots"),
        ("range", {}, "ranges"),
        ("validates", lambda self, h: None, "validate"),
    ):
        with pytest.raises(TypeError, match=f"Mine.{name} is never asked for; did you mean '{meant}'"):
            type("Mine", (steprule.Optimizer,), {**right, name: value})


def test_one_of_each_is_said_in_the_singular() -> None:
    optimizer = steprule.SGD([torch.zeros((), requires_grad=True)])
    assert repr(optimizer).startswith("SGD: 1 parameter in 1 tensor, 1 group; 0 steps taken")
    optimizer.param_groups[0]["params"][0].grad = torch.ones(())
    assert "1 tensor, 1 element of float32" in optimizer.explain()


def test_a_state_that_fitted_says_so() -> None:
    optimizer = steprule.SGD(network())
    assert str(optimizer.load_state_dict(optimizer.state_dict())) == "everything fitted"


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
    (lambda path, m, o: steprule.save(o, str(path)), "path must be the name of a file, got AdamW"),  # type: ignore[arg-type]
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


def test_nothing_in_place_of_parameters_is_refused_after_hyperparameters_as_by_torch() -> None:
    for optim in (steprule, torch.optim):
        with pytest.raises(ValueError, match="Tensor lr must be 1-element"):
            optim.AdamW(None, lr=torch.tensor([0.001, 0.001]))  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="'NoneType' object is not iterable"):
            optim.AdamW(None)  # type: ignore[arg-type]
