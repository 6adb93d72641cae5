"""Constructors take what torch's take, in the same order, and refuse what they refuse, in the same words."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from algorithm_cases import NEEDS_CLOSURE, OPTIONS, SWITCHES, arguments, noise
from torch import Tensor

import steprule

ALL = list(OPTIONS)
LARGE = torch.ones(2)


def noisy_weight(dtype: torch.dtype = torch.float64) -> Tensor:
    return noise((3, 4), dtype, 5).clone().requires_grad_()


@pytest.mark.parametrize("name", ALL)
def test_positional_arguments_have_the_order_and_the_defaults_of_torch(name: str) -> None:
    ours = list(inspect.signature(getattr(steprule, name).__init__).parameters.values())[2:]
    theirs = [p for p in arguments(name).values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    positional = [p for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [(p.name, p.default) for p in positional] == [(p.name, p.default) for p in theirs]


@pytest.mark.parametrize("name", ALL)
def test_every_keyword_of_torch_is_taken_and_stands_in_the_groups(name: str) -> None:
    for key, argument in arguments(name).items():
        optimizer = getattr(steprule, name)([noisy_weight()], **{key: argument.default})
        assert optimizer.param_groups[0][key] == argument.default or key == "max_eval"
        assert optimizer.defaults[key] == argument.default or key == "max_eval"


@pytest.mark.parametrize("switch", sorted(SWITCHES))
@pytest.mark.parametrize("name", ALL)
def test_switches_are_taken_where_torch_takes_them(name: str, switch: str) -> None:
    if switch in arguments(name):
        assert getattr(steprule, name)([noisy_weight()], **{switch: True}).defaults[switch] is True
    else:
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{switch}'"):
            getattr(steprule, name)([noisy_weight()], **{switch: True})


REFUSED: list[tuple[str, dict[str, Any]]] = [
    *((name, {"lr": -0.5}) for name in ALL),
    *((name, {"lr": LARGE}) for name in ALL),
    *((name, {"weight_decay": -0.25}) for name in ALL if "weight_decay" in arguments(name)),
    *((name, {"eps": -1e-3}) for name in ALL if arguments(name).get("eps") and name not in ("Adafactor", "Muon")),
    *((name, {"betas": (1.0, 0.9)}) for name in ALL if "betas" in arguments(name)),
    *((name, {"betas": (0.5, -0.1)}) for name in ALL if "betas" in arguments(name)),
    *((name, {"fused": True, "foreach": True}) for name in ALL if "fused" in arguments(name)),
    *((name, {"fused": True, "differentiable": True}) for name in ALL if "fused" in arguments(name)),
    *((name, {"betas": (torch.tensor(0.9), 0.99)}) for name in ("Adam", "AdamW")),
    *((name, {"betas": (0, 0.99)}) for name in ("Adam", "AdamW")),
    *((name, {"lr": torch.tensor(0.1), "foreach": True}) for name in ("Adam", "AdamW")),
    *((name, {"betas": (torch.tensor(0.9), torch.tensor(0.9)), "foreach": True}) for name in ("Adam", "AdamW")),
    *((name, {"betas": (LARGE, torch.tensor(0.9))}) for name in ("Adam", "AdamW")),
    ("SGD", {"momentum": -0.1}),
    ("SGD", {"nesterov": True}),
    ("SGD", {"nesterov": True, "momentum": 0.9, "dampening": 0.1}),
    ("Adagrad", {"lr_decay": -1.0}),
    ("Adagrad", {"initial_accumulator_value": -1.0}),
    ("RMSprop", {"momentum": -1.0}),
    ("RMSprop", {"alpha": -1.0}),
    ("NAdam", {"momentum_decay": -1.0}),
    ("Adadelta", {"rho": 1.5}),
    ("Rprop", {"etas": (0.5, 0.9)}),
    ("Rprop", {"etas": (1.1, 1.2)}),
    ("SparseAdam", {"lr": 0.0}),
    ("SparseAdam", {"eps": 0.0}),
]


@pytest.mark.parametrize(
    ("name", "options"), REFUSED, ids=[f"{name}-{options}".replace("tensor", "") for name, options in REFUSED]
)
def test_what_torch_refuses_is_refused_in_the_same_words(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        getattr(torch.optim, name)([noisy_weight()], **options)
    with pytest.raises(type(theirs.value)) as ours:
        getattr(steprule, name)([noisy_weight()], **options)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("name", [name for name in ALL if name not in NEEDS_CLOSURE])
def test_a_group_is_refused_as_the_defaults_are_and_nothing_changes(name: str) -> None:
    optimizer = getattr(steprule, name)([noisy_weight()])
    with pytest.raises(ValueError, match=r"-0\.5"):
        optimizer.add_param_group({"params": [noisy_weight()], "lr": -0.5})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("name", [name for name in ALL if "capturable" in arguments(name)])
def test_capturable_is_refused_on_the_cpu_by_the_step(name: str) -> None:
    messages = []
    for library in (torch.optim, steprule):
        p = noisy_weight()
        before = p.detach().clone()
        optimizer = getattr(library, name)([p], capturable=True)
        p.grad = torch.ones_like(p)
        with pytest.raises(AssertionError, match="If capturable=True") as raised:
            optimizer.step()
        assert torch.equal(p, before)
        messages.append(str(raised.value))
    assert name in ("NAdam", "ASGD", "Adadelta") or messages[1].startswith(messages[0].rstrip("."))


def test_sparse_adam_refuses_dense_gradients_and_sparse_or_complex_parameters() -> None:
    for library in (torch.optim, steprule):
        p = noisy_weight()
        p.grad = torch.ones_like(p)
        with pytest.raises(RuntimeError, match="SparseAdam does not support dense gradients, please consider Adam"):
            library.SparseAdam([p]).step()
        with pytest.raises(ValueError, match=r"Complex params at indices \[\[0, 1\]\]"):
            library.SparseAdam([noisy_weight(), noisy_weight(torch.complex64)])
        with pytest.raises(ValueError, match=r"Sparse params at indices \[\[0, 0\]\]"):
            library.SparseAdam([noisy_weight().detach().to_sparse().requires_grad_()])


def test_adagrad_makes_its_state_at_once() -> None:
    ours, theirs = noisy_weight(), noisy_weight()
    states = [
        library.Adagrad([p], initial_accumulator_value=0.5).state[p]
        for library, p in ((steprule, ours), (torch.optim, theirs))
    ]
    assert states[0].keys() == states[1].keys()
    for key in states[0]:
        torch.testing.assert_close(states[0][key], states[1][key], rtol=0, atol=0)
    optimizer = steprule.Adagrad([ours])
    optimizer.share_memory()
    assert optimizer.state[ours]["sum"].is_shared()


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_adamw_decays_decoupled_whatever_it_loads(name: str) -> None:
    states = []
    for library in (torch.optim, steprule):
        p = noisy_weight()
        saved = library.Adam([p], weight_decay=0.5).state_dict()
        saved.pop("steprule", None)
        optimizer = getattr(library, name)([p])
        optimizer.load_state_dict(saved)
        states.append(optimizer.param_groups[0]["decoupled_weight_decay"])
    assert states == [name == "AdamW"] * 2


DIFFERENTIABLE = [name for name in ALL if "differentiable" in arguments(name)]
BY_NUMBERS = {name: ["lr", "weight_decay"] if "weight_decay" in arguments(name) else ["lr"] for name in DIFFERENTIABLE}
BY_NUMBERS |= {"Rprop": [], "ASGD": []}  # whose rate is copied into the state, as a number
VALUES = {"lr": 0.02, "weight_decay": 0.1}


def trained(library: Any, name: str, start: Tensor, numbers: dict[str, Any], **options: Any) -> Tensor:
    """A loss after three steps, as a function of where the parameter started and of hyperparameters."""
    p = start.clone()
    if options:
        p.retain_grad()
    optimizer = getattr(library, name)([p], **numbers, **options)
    for step in range(3):
        p.grad = 2 * start * noise((3, 4), torch.float64, step) + noise((3, 4), torch.float64, 10 + step)
        optimizer.step()
    return p.square().sum()


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_a_step_can_be_differentiated(name: str) -> None:
    """The derivatives are the differences of what torch.optim reaches."""
    start = noisy_weight()
    numbers = {key: torch.tensor(VALUES[key], dtype=torch.float64, requires_grad=True) for key in BY_NUMBERS[name]}
    loss = trained(steprule, name, start, numbers, differentiable=True)
    found = torch.autograd.grad(loss, [start, *numbers.values()])

    def difference(change: Tensor, **changes: float) -> float:
        values = {
            sign: {key: VALUES[key] + sign * changes.get(key, 0.0) for key in BY_NUMBERS[name]} for sign in (1, -1)
        }
        after = [trained(torch.optim, name, start.detach() + s * change, values[s]).item() for s in (1, -1)]
        return (after[0] - after[1]) / 2e-6

    direction = noise((3, 4), torch.float64, 77)
    assert (found[0] * direction).sum().item() == pytest.approx(difference(1e-6 * direction), rel=1e-6)
    for key, derivative in zip(numbers, found[1:], strict=True):
        assert derivative.item() == pytest.approx(difference(torch.zeros(3, 4), **{key: 1e-6}), rel=1e-6)


def test_a_differentiable_step_reaches_what_others_reach() -> None:
    for name in DIFFERENTIABLE:
        ours = trained(steprule, name, noisy_weight(), {}, differentiable=True)
        theirs = trained(torch.optim, name, noisy_weight().detach(), {})
        torch.testing.assert_close(ours.detach(), theirs, rtol=1e-12, atol=0)


@pytest.mark.parametrize("backend", ["llvm", "eager"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_asgds_average_recovers_with_the_parameter_while_mu_is_one(bad: float, backend: str) -> None:
    averages = []
    for library, options in ((steprule, {"backend": backend}), (torch.optim, {"foreach": False})):
        p = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
        optimizer = library.ASGD([p], lr=0.1, **options)
        for value in (1.0, bad, 1.0):
            p.grad = torch.tensor([1.0, value, -1.0])
            optimizer.step()
            averages.append(optimizer.state[p]["ax"].clone())
            with torch.no_grad():
                p.nan_to_num_(nan=0.5, posinf=0.5, neginf=0.5)
    for ours, theirs in zip(averages[:3], averages[3:], strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-6, atol=0)
    assert averages[2].isfinite().all()


def test_autograd_follows_a_number_of_the_state() -> None:
    """NAdam's mu_product, given as a tensor that requires a gradient."""

    def after(mu_product: torch.Tensor) -> torch.Tensor:
        p = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True).clone()
        p.grad = torch.tensor([0.5, 0.25], dtype=torch.float64)
        optimizer = steprule.NAdam([p], lr=0.5, differentiable=True)
        moments = {name: torch.full_like(p, 0.25).detach() for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[p].update(step=torch.tensor(3.0), mu_product=mu_product, **moments)
        optimizer.step()
        return torch.stack([*p, optimizer.state[p]["mu_product"]])

    given = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(after, (given,))
    assert after(given).requires_grad
