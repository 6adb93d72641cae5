"""Optimizer: what it takes and refuses, what a step does, and what it shares with torch.optim.Optimizer."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from every_algorithm import ALGORITHMS, CLASSES
from tensors import grad_of, weight
from torch import Tensor, nn
from torch.optim.optimizer import required

import steprule
from steprule import SGD, AdamW, Optimizer


class Plain(Optimizer):
    """The least that an optimizer of one's own has to say."""

    def __init__(self, params: Any, lr: Any = required, **options: Any) -> None:
        super().__init__(params, {"lr": lr, "unused": 1.0}, **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        return p - h.lr * g


class TorchPlain(torch.optim.Optimizer):
    def __init__(self, params: Any, lr: Any = required) -> None:
        super().__init__(params, {"lr": lr, "unused": 1.0})


def outcome(action: Callable[[], Any]) -> tuple[Any, ...]:
    """The exception of an action, or its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            action()
        except Exception as error:
            return type(error), str(error)
    return tuple((w.category, str(w.message)) for w in caught)


def assert_same_words(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> None:
    """The same exception in the same words; ours may go on and say what to do."""
    if isinstance(theirs[0], type):
        assert ours[0] is theirs[0]
        assert ours[1].startswith(theirs[1].removesuffix("'") if theirs[0] is KeyError else theirs[1])
    else:
        assert ours == theirs


# What it refuses: as torch does.

REFUSED: dict[str, Callable[[], Any]] = {
    "a bare tensor": lambda: weight(),
    "a parameter": lambda: nn.Parameter(torch.ones(2)),
    "nothing": list,
    "an empty generator": lambda: (p for p in list[Tensor]()),
    "an empty module": lambda: nn.ReLU().parameters(),
    "None": lambda: None,
    "a number": lambda: 3,
    "numbers": lambda: [1, 2],
    "None among tensors": lambda: [weight(), None],
    "a string": lambda: "weight",
    "a non-leaf": lambda: [weight() * 2],
    "a non-leaf among leaves": lambda: [weight(), weight().exp()],
    "a group without parameters": lambda: [{"lr": 0.1}],
    "a group dictionary by itself": lambda: {"params": [weight()]},
    "a set in a group": lambda: [{"params": {weight()}}],
    "a tensor in two groups": lambda: (lambda p: [{"params": [p]}, {"params": [weight(), p]}])(weight()),
    "a group of no dictionary": lambda: [{"params": [weight()]}, [weight()]],
    "some with names": lambda: [("a", weight()), weight()],
    "some groups with names": lambda: [{"params": [("a", weight())]}, {"params": [weight()]}],
    "lists of tensors": lambda: [[weight()], [weight()]],
    "a mapping of names": lambda: nn.Linear(2, 2).state_dict(),
}


@pytest.mark.parametrize("given", REFUSED)
@pytest.mark.parametrize("named", ["SGD", "Plain"])
def test_what_torch_refuses_is_refused_with_its_words(given: str, named: str) -> None:
    ours, theirs = (SGD, torch.optim.SGD) if named == "SGD" else (Plain, TorchPlain)
    expected = outcome(lambda: theirs(REFUSED[given](), lr=0.1))
    assert expected, "torch takes it"
    assert_same_words(outcome(lambda: ours(REFUSED[given](), lr=0.1)), expected)


ARGUMENTS: list[dict[str, Any]] = [
    {"lr": -0.1},
    {"lr": torch.tensor([0.1, 0.2])},
    {"momentum": -0.5},
    {"weight_decay": -1e-4},
    {"nesterov": True},
    {"nesterov": True, "momentum": 0.9, "dampening": 0.1},
    {"foreach": True, "fused": True},
    {"fused": True, "differentiable": True},
    {"lr": -1, "momentum": -1},
]


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_arguments_out_of_range_as_in_torch(arguments: dict[str, Any]) -> None:
    expected = outcome(lambda: torch.optim.SGD([weight()], **arguments))
    assert expected, "torch takes it"
    assert outcome(lambda: SGD([weight()], **arguments)) == expected


TAKE_FUSED = ["SGD", "Adam", "AdamW", "Adagrad"]


@pytest.mark.parametrize("added", [False, True], ids=["at construction", "in a later group"])
@pytest.mark.parametrize("name", TAKE_FUSED)
def test_fused_refuses_complex_parameters_in_a_step_with_torchs_words(name: str, added: bool) -> None:
    said = []
    for library in (torch.optim, steprule):
        p = torch.ones(3, dtype=torch.complex64, requires_grad=True)
        real, real.grad = weight(), None
        optimizer = getattr(library, name)([real] if added else [real, p], fused=True)
        if added:
            optimizer.add_param_group({"params": [p]})
        optimizer.step()  # which has no gradient yet
        p.grad = torch.ones_like(p)
        before = str(optimizer.state_dict()["state"])
        said.append(outcome(optimizer.step))
        assert p.tolist() == [1] * 3
    assert str(optimizer.state_dict()["state"]) == before
    (kind, theirs), (our_kind, ours) = said
    assert our_kind is kind is RuntimeError
    assert ours.startswith(theirs + ": parameter ")


def test_every_class_that_takes_fused_in_torch_is_tested_for_it() -> None:
    taken = {
        name
        for name in torch.optim.__all__
        if isinstance(kind := getattr(torch.optim, name), type) and "fused" in inspect.signature(kind).parameters
    }
    assert taken == set(TAKE_FUSED)


def test_a_missing_required_hyperparameter() -> None:
    assert outcome(lambda: Plain([weight()])) == outcome(lambda: TorchPlain([weight()]))
    assert outcome(lambda: Plain([{"params": [weight()], "lr": 0.1}, {"params": [weight()]}])) == (
        ValueError,
        "parameter group didn't specify a value of required optimization parameter lr",
    )
    optimizer = Plain([{"params": [weight()], "lr": 0.1}])
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_names_are_said_where_they_are_known() -> None:
    p = weight()
    with pytest.raises(ValueError, match=r"can't optimize a non-leaf Tensor: net\.scale"):
        SGD([("net.bias", weight()), ("net.scale", weight() * 2)])
    with pytest.raises(ValueError, match=r"more than one parameter group: net\.b"):
        SGD([{"params": [("net.a", p)]}, {"params": [("net.c", weight()), ("net.b", p)]}])


def test_unknown_options_are_type_errors() -> None:
    with pytest.raises(TypeError, match=r"SGD\(\) got an unexpected keyword argument 'momentun'"):
        SGD([weight()], momentun=0.9)  # type: ignore[call-arg]


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_parameters_that_need_no_gradient_are_taken_as_in_torch(dtype: torch.dtype) -> None:
    p = torch.ones(3, dtype=dtype)
    optimizer = SGD([p], lr=0.5)
    optimizer.step()
    assert torch.equal(p, torch.ones(3, dtype=dtype))


# What it takes.


def parameters_of(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def test_every_form_of_parameters() -> None:
    model = nn.Linear(2, 3)
    weights, names = list(model.parameters()), ["weight", "bias"]
    forms: list[tuple[Any, list[str] | None]] = [
        (model.parameters(), None),
        (weights, None),
        (tuple(weights), None),
        (model.named_parameters(), names),
        (model, names),
        ([{"params": model.parameters()}], None),
        ([{"params": model.named_parameters()}], names),
        ([{"params": model}], names),
        ([{"params": weights[0]}, {"params": weights[1]}], None),
    ]
    for params, expected in forms:
        optimizer = SGD(params, lr=0.1)
        assert [id(p) for p in parameters_of(optimizer)] == [id(p) for p in weights]
        found = [n for g in optimizer.param_groups for n in g.get("param_names", [])]
        assert found == (expected or [])


def test_the_tensors_themselves_are_held_and_groups_have_every_default() -> None:
    p = weight()
    optimizer = SGD([{"params": [p], "momentum": 0.5}], lr=0.25)
    assert optimizer.param_groups[0]["params"][0] is p
    theirs = torch.optim.SGD([{"params": [p], "momentum": 0.5}], lr=0.25)
    for key, value in theirs.param_groups[0].items():
        assert key == "params" or optimizer.param_groups[0][key] == value
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.defaults["lr"] == 0.25


# Groups added, and refused.


def test_a_group_added_works_from_the_next_step_on_at_its_own_rate() -> None:
    p, q = weight(), weight()
    optimizer = SGD([p], lr=0.1, momentum=0.5)
    optimizer.step()
    optimizer.add_param_group({"params": q, "lr": 0.5})
    assert q[0].item() == 1.0
    optimizer.step()
    assert p[0].item() == pytest.approx(1 - 0.1 - 0.15)
    assert q[0].item() == pytest.approx(0.5)


BAD_GROUPS: dict[str, Callable[[Any], Any]] = {
    "no dictionary": lambda p: [weight()],
    "a set": lambda p: {"params": {weight()}},
    "a known tensor": lambda p: {"params": [weight(), p]},
    "a non-leaf": lambda p: {"params": [weight() * 2]},
    "no tensor": lambda p: {"params": [weight(), "w"]},
    "no parameters": lambda p: {"lr": 0.3},
    "names where there were none": lambda p: {"params": [("w", weight())]},
}


@pytest.mark.parametrize("bad", BAD_GROUPS)
def test_a_refused_group_is_torchs_error_and_changes_nothing(bad: str) -> None:
    found = []
    for library in (torch.optim, steprule):
        p = weight()
        optimizer = library.SGD([p], lr=0.1, momentum=0.5)
        optimizer.step()
        groups, state = copy.copy(optimizer.param_groups), optimizer.state[p]["momentum_buffer"].clone()
        keys = dict(optimizer.param_groups[0])
        bad_group = BAD_GROUPS[bad](p)
        found.append(outcome(partial(optimizer.add_param_group, bad_group)))
        assert optimizer.param_groups == groups
        assert optimizer.param_groups[0] == keys
        assert torch.equal(optimizer.state[p]["momentum_buffer"], state)
        optimizer.step()
        assert p[0].item() == pytest.approx(1 - 0.1 - 0.15)
    assert isinstance(found[0][0], type)
    assert_same_words(found[1], found[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "Invalid learning rate: -1.0"),
        ({"momentum": -1.0}, "Invalid momentum value: -1.0"),
        ({"nesterov": True, "momentum": 0.0}, "Nesterov momentum requires a momentum and zero dampening"),
        ({"backend": "tpu"}, "Invalid backend: 'tpu'"),
    ],
)
def test_a_group_with_a_number_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    optimizer = SGD([weight()], lr=0.1)
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [weight()], **options})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(ValueError, match=message):
        SGD([{"params": [weight()]}, {"params": [weight()], **options}], lr=0.1)


# A step.


def test_a_closure_is_evaluated_once_with_gradients_enabled_and_its_value_returned() -> None:
    p = weight(grad=None)
    optimizer = SGD([p], lr=0.1)
    calls: list[bool] = []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    for context in (torch.enable_grad(), torch.no_grad()):
        with context:
            before = p.detach().clone()
            loss = optimizer.step(closure)
            assert torch.is_grad_enabled() == isinstance(context, torch.enable_grad)
        assert loss.item() == before.square().sum().item()
        torch.testing.assert_close(p.detach(), 0.8 * before)
    assert calls == [True, True]
    assert optimizer.step() is None
    assert optimizer.step(closure=lambda: 3) == 3


def test_an_error_in_a_closure_leaves_everything() -> None:
    p = weight()
    optimizer = SGD([p], lr=0.1)
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)
    assert p[0].item() == 1.0


def test_the_rate_is_read_at_each_step_as_a_number_or_a_tensor_and_momentum_stays() -> None:
    trained = []
    for library in (steprule, torch.optim):
        p = weight()
        rate = torch.tensor(0.1, dtype=torch.float64)
        optimizer = library.SGD([p], lr=rate, momentum=0.9)
        for step in range(8):
            optimizer.step()
            if step < 3:
                rate.mul_(0.5)
            else:
                optimizer.param_groups[0]["lr"] = 0.3 / (step + 1)
        trained.append((p.detach(), optimizer.state[p]["momentum_buffer"]))
    torch.testing.assert_close(*trained, rtol=1e-14, atol=0)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none: bool) -> None:
    p, q = weight(), weight(grad=None)
    optimizer = SGD([p, q], lr=0.1)
    grad = grad_of(p)
    optimizer.zero_grad(set_to_none)
    assert q.grad is None
    if set_to_none:
        assert p.grad is None
    else:
        assert p.grad is grad
        assert grad.unique().tolist() == [0.0]
    optimizer.step()
    assert p[0].item() == 1.0


def test_a_step_without_any_gradient_or_parameter_is_no_error() -> None:
    p = weight(grad=None)
    optimizer = AdamW([p])
    optimizer.step()
    optimizer.param_groups[0]["params"] = []
    optimizer.step()
    assert not optimizer.state


def test_step_counts_are_kept_in_the_default_dtype_as_in_torch() -> None:
    for dtype in (torch.float64, torch.float32):
        torch.set_default_dtype(dtype)
        try:
            kept = []
            for library in (steprule, torch.optim):
                p = weight()
                optimizer = library.Adam([p])
                optimizer.step()
                kept.append((optimizer.state[p]["step"].dtype, optimizer.state[p]["step"].device.type))
            assert kept[0] == kept[1] == (dtype, "cpu")
        finally:
            torch.set_default_dtype(torch.float32)


def test_a_subclass_without_a_rule_says_what_is_missing() -> None:
    class Empty(Optimizer):
        pass

    with pytest.raises(NotImplementedError, match=r"Empty has no rule: define update\(self, p, g, s, h\)"):
        Empty([weight()]).step()


def test_a_step_of_ones_own_may_call_the_step_of_the_class_above() -> None:
    class Twice(SGD):
        def step(self, closure: Any = None) -> Any:
            super().step()
            return super().step(closure)

    p = weight()
    assert Twice([p], lr=0.25).step(lambda: 5) == 5
    assert p[0].item() == 0.5


def test_the_profiler_sees_the_step() -> None:
    optimizer = SGD([weight()], lr=0.1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
        optimizer.zero_grad()
    names = {event.key for event in profile.key_averages()}
    assert {"Optimizer.step#SGD.step", "Optimizer.zero_grad#SGD.zero_grad"} <= names


# Autograd.


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_backward_through_a_graph_from_before_the_step_is_an_error(backend: str) -> None:
    p = weight()
    loss = p.square().sum()
    version = p._version
    SGD([p], lr=0.1, backend=backend).step()
    assert p._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_what_was_not_updated_keeps_its_version() -> None:
    p, q = weight(), weight(grad=None)
    loss = q.square().sum()
    SGD([p, q], lr=0.1).step()
    loss.backward()
    assert q.grad is not None


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_gradients_with_a_graph_leave_none_in_parameters_and_state(backend: str) -> None:
    p, q = weight(grad=None), weight(grad=None)
    optimizer = AdamW([p, q], backend=backend)
    for _ in range(2):
        optimizer.zero_grad()
        p.grad, q.grad = torch.autograd.grad((p * q).square().sum(), [p, q], create_graph=True)
        assert p.grad.requires_grad
        optimizer.step()
        for x in (p, q):
            assert x.is_leaf
            assert not any(v.requires_grad for v in optimizer.state[x].values())


@pytest.mark.parametrize(("made", "stepped"), [("outside", "inside"), ("inside", "inside"), ("outside", "outside")])
@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_inference_mode_as_in_torch(backend: str, made: str, stepped: str) -> None:
    results: list[Any] = []
    for library, options in ((steprule, {"backend": backend}), (torch.optim, {})):
        with torch.inference_mode(made == "inside"):
            p = torch.ones(3, dtype=torch.float64)
            p.grad = torch.ones(3, dtype=torch.float64)
        optimizer = library.AdamW([p], lr=0.1, **options)
        with torch.inference_mode(stepped == "inside"):
            for _ in range(3):
                optimizer.step()
        results.append(p.tolist())
    assert results[0] == pytest.approx(results[1], rel=1e-12)


def test_steps_in_and_out_of_inference_mode() -> None:
    p, q = weight(), weight()
    ours, theirs = AdamW([p], lr=0.1), torch.optim.AdamW([q], lr=0.1)
    for step in range(4):
        with torch.inference_mode(step % 2 == 1):
            ours.step()
        theirs.step()
    torch.testing.assert_close(p, q, rtol=1e-12, atol=0)


def sgd_by_hand(p: Tensor, grads: list[Tensor], lr: Tensor) -> Tensor:
    buffer = torch.zeros_like(p)
    for step, g in enumerate(grads):
        g = g + 0.1 * p
        buffer = 0.9 * buffer + g if step else g
        p = p - lr * buffer
    return p


def adamw_by_hand(p: Tensor, grads: list[Tensor], lr: Tensor) -> Tensor:
    mean, square = torch.zeros_like(p), torch.zeros_like(p)
    for step, g in enumerate(grads, 1):
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
        corrected = mean / (1 - 0.9**step) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        p = p * (1 - 0.01 * lr) - lr * corrected
    return p


@pytest.mark.parametrize(
    ("algorithm", "by_hand", "options"),
    [
        (SGD, sgd_by_hand, {"momentum": 0.9, "weight_decay": 0.1}),
        (AdamW, adamw_by_hand, {}),
    ],
)
def test_differentiable_gives_the_derivatives_of_all_steps(algorithm: Any, by_hand: Any, options: Any) -> None:
    found = []
    for mine in (True, False):
        start = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64, requires_grad=True)
        scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
        rate = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
        direction = torch.tensor([0.5, 1.0, -2.0], dtype=torch.float64)
        grads = [scale * direction * step**2 + 0.3 * start for step in (1, 2, 3)]
        p = start.clone()
        if mine:
            optimizer = algorithm([p], lr=rate, differentiable=True, **options)
            for g in grads:
                p.grad = g
                optimizer.step()
        else:
            p = by_hand(p, grads, rate)
        found.append([p.detach().clone(), *torch.autograd.grad(p.pow(3).sum(), [start, scale, rate])])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


# A table.


def test_repr_names_the_algorithm_the_groups_and_their_numbers() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    optimizer = SGD([{"params": model[0].parameters(), "lr": 0.125}, {"params": model[1].parameters()}], lr=0.5)
    text = repr(optimizer)
    assert text.startswith("SGD")
    assert "0.125" in text
    assert "0.5" in text
    assert not optimizer.state


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("overides", "overrides"),
        ("learning_rate", "lr"),
        ("clipnorm", "clip_norm"),
        ("max_norm", "clip_norm"),
        ("beta", "betas"),
        ("non_finite", "nonfinite"),
    ],
)
def test_a_misspelt_option_says_the_nearest(given: str, meant: str) -> None:
    with pytest.raises(TypeError, match=rf"unexpected keyword argument '{given}'; did you mean '{meant}'"):
        steprule.AdamW([torch.ones(1, requires_grad=True)], **{given: 1.0})  # type: ignore[arg-type]


@pytest.mark.parametrize("switch", ["foreach", "fused", "capturable", "differentiable"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_switch_that_an_algorithm_lacks_is_taken_for_no_other_word(name: str, switch: str) -> None:
    cls = CLASSES[name]
    if switch in cls.switches:
        cls([torch.ones(2, 2, requires_grad=True)], **{switch: True})
        return
    there = ", ".join(sorted(cls.switches)) or "none"
    message = rf"unexpected keyword argument '{switch}'; of torch's switches it takes {there}, and every step is fused"
    with pytest.raises(TypeError, match=message):
        cls([torch.ones(2, 2, requires_grad=True)], **{switch: True})
