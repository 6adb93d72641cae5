"""Overrides, schedules, freezing and added layers in every algorithm, against the same numbers set by hand."""

from __future__ import annotations

import inspect
import io
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import assert_close
from every_algorithm import ALGORITHMS, MOVING, ONLY_MATRICES
from torch import Tensor, nn
from torch.optim import lr_scheduler as peers
from torch.optim.optimizer import required
from training import train

import steprule
from steprule import biases, by_ndim, norms, scale
from steprule.schedules import cosine, exponential, linear, plateau, warmup

ONE_GROUP = {"LBFGS"}  # it has no parameter groups
OPTIONS: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.9},
    "RMSprop": {"momentum": 0.5},
    "LBFGS": {"max_iter": 2},
    **MOVING,
    **{name: {"d0": 0.1, "growth_rate": 16.0} for name in ("DAdaptAdam", "DAdaptSGD", "Prodigy")},
}


class Net(nn.Module):
    """Layers whose gradients are dense or, if ``sparse``, a table; only matrices, if ``matrices``."""

    def __init__(self, sparse: bool = False, matrices: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        if sparse:
            self.tables = nn.ModuleList(nn.Embedding(9, 3, sparse=True) for _ in range(2))
        else:
            self.layers = nn.ModuleList(nn.Linear(4, 4, bias=not matrices) for _ in range(2))
            self.norm = nn.Identity() if matrices else nn.LayerNorm(4)

    def forward(self, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        if hasattr(self, "tables"):
            rows = torch.randint(9, (5,), generator=generator)
            return torch.stack([table(rows) for table in self.tables])
        x = torch.randn(6, 4, generator=generator).to(self.get_parameter("layers.0.weight").dtype)
        return self.norm(self.layers[1](self.layers[0](x).tanh())).sub(1)


def net(name: str) -> Net:
    return Net(sparse=name == "SparseAdam", matrices=name in ONLY_MATRICES)


def given(name: str, model: Net) -> Any:
    """What the optimizer gets: Muon, given a module, would take some matrices for heads."""
    return list(model.named_parameters()) if name in ONLY_MATRICES else model


def assert_equal(ours: nn.Module, theirs: nn.Module) -> None:
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0, equal_nan=True, msg=name)


def assert_moved(model: nn.Module, start: nn.Module) -> None:
    assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), start.parameters(), strict=True))


# -- overrides ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(ALGORITHMS) - ONE_GROUP))
def test_overrides_are_groups_by_hand(name: str) -> None:
    ours, theirs = net(name), net(name)
    make, options = getattr(steprule, name), OPTIONS.get(name, {})
    rate = make([torch.zeros(2, 2)]).defaults["lr"]
    optimizer = make(given(name, ours), **options, overrides={"*.0.*": {"lr": scale(0.5)}, "*.1.*": {"l1": 0.01}})
    named = list(theirs.named_parameters())  # random numbers are drawn by name
    first = [(n, p) for n, p in named if ".0." in n]
    second = [(n, p) for n, p in named if ".1." in n]
    others = [(n, p) for n, p in named if ".0." not in n and ".1." not in n]
    by_hand = [{"params": first, "lr": 0.5 * rate}, {"params": second, "l1": 0.01}]
    by_hand += [{"params": others}] if others else []
    reference = make(by_hand, **options)
    assert len(optimizer.param_groups) == len(by_hand)
    for seed in range(4):
        train(ours, optimizer, [seed])
        train(theirs, reference, [seed])
    assert_equal(ours, theirs)
    assert_moved(ours, net(name))


def test_overrides_are_the_groups_that_torch_is_given() -> None:
    ours, theirs = Net().double(), Net().double()
    overrides: dict[Any, Any] = {
        norms | biases: {"weight_decay": 0.0},
        "layers.1.*": {"lr": scale(0.1)},
        by_ndim(2): {"eps": 1e-6},
    }
    optimizer = steprule.AdamW(ours, lr=0.1, weight_decay=0.3, overrides=overrides)
    base = {"lr": 0.1, "weight_decay": 0.3, "eps": 1e-8}
    reference = torch.optim.AdamW(steprule.groups(theirs, base, overrides))
    for seed in range(5):
        train(ours, optimizer, [seed])
        train(theirs, reference, [seed])
    assert_close(ours.parameters(), theirs.parameters(), 1e-9)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [g["weight_decay"] for g in reference.param_groups]


def test_a_required_hyperparameter_stays_required() -> None:
    class Required(steprule.Optimizer):
        def __init__(self, params: Any, **options: Any) -> None:
            super().__init__(params, {"lr": required}, **options)

        def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            return p - h.lr * g

    with pytest.raises(ValueError, match="didn't specify a value of required optimization parameter lr"):
        Required(Net(), overrides={biases: {"l1": 0.1}})
    optimizer = Required(Net(), overrides={"*": {"lr": 0.5}})
    assert [group["lr"] for group in optimizer.param_groups] == [0.5]


def test_a_bad_override_leaves_nothing_behind() -> None:
    for overrides, message in [
        ({"*.biass": {"lr": 0.1}}, r"did you mean '\*\.bias'"),
        ({biases: {"weight_decya": 0.1}}, "did you mean 'weight_decay'"),
        ({biases: {"lr": -1.0}}, "Invalid learning rate: -1.0"),
        ({biases: {"lr": -1.0 * cosine(9)}}, "Invalid learning rate: -1.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            steprule.SGD(Net(), overrides=overrides)  # type: ignore[arg-type]


def test_tied_parameters_are_updated_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.head.weight = self.embedding.weight

    model = Tied()
    start = model.head.weight.detach().clone()
    optimizer = steprule.SGD(model, lr=0.5, overrides={"embedding.*": {"lr": scale(0.5)}})
    model.head.weight.grad = torch.ones(5, 3)
    optimizer.step()
    assert [group["param_names"] for group in optimizer.param_groups] == [["embedding.weight"]]
    torch.testing.assert_close(model.head.weight.detach(), start - 0.25)


# -- schedules ---------------------------------------------------------------------------------------------------------

FALLING = 0.5 + 0.5 * linear(6)  # a factor that keeps every number in its range


SHAPES = {"rank_fraction"}
"""What says the shape of a state, which can't change on the way."""


def fractions(name: str) -> Iterator[str | tuple[str, int]]:
    """Where the hyperparameters of an algorithm stand that are fractions."""
    make = getattr(steprule, name)
    yield "lr"
    for key, value in make([torch.zeros(2, 2)]).defaults.items():
        if name in ONE_GROUP or key not in {*inspect.signature(make).parameters, "l1"} - SHAPES:
            continue
        if isinstance(value, float):
            yield key
        if isinstance(value, tuple) and all(isinstance(part, float) for part in value):
            yield from ((key, index) for index in range(len(value)))


CASES = [(name, path) for name in ALGORITHMS for path in dict.fromkeys(fractions(name))]


def with_value(value: Any, path: str | tuple[str, int], factor: Any) -> Any:
    """A hyperparameter of which one number is multiplied."""
    if isinstance(path, str):
        return (value or 0.25) * factor
    return tuple(part * factor if index == path[1] else part for index, part in enumerate(value))


@pytest.mark.parametrize(("name", "path"), CASES)
def test_any_number_may_be_a_schedule(name: str, path: str | tuple[str, int]) -> None:
    """A scheduled run and one whose number is set by hand before each step end with the same bits."""
    ours, theirs = net(name), net(name)
    make = getattr(steprule, name)
    options = {**OPTIONS.get(name, {})}
    key = path if isinstance(path, str) else path[0]
    start = options.pop(key, make([torch.zeros(2, 2)]).defaults[key])
    optimizer = make(given(name, ours), **options, **{key: with_value(start, path, FALLING)})
    reference = make(given(name, theirs), **options, **{key: with_value(start, path, 1.0)})
    seen = set()
    for step in range(8):
        (group,) = reference.param_groups
        group[key] = with_value(start, path, FALLING(step))
        train(ours, optimizer, [step])
        train(theirs, reference, [step])
        now = optimizer.param_groups[0][key]
        assert now == group[key]
        assert type(now if isinstance(path, str) else now[path[1]]) is float
        seen.add(now)
    assert len(seen) == 7  # it moves for six steps and stays
    assert_equal(ours, theirs)


def momentum_by_hand(optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.param_groups[0]["momentum"] = 0.9 * warmup(3)(max(step - 2, 0))


def betas_by_hand(optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.param_groups[0]["betas"] = (0.9, 0.9 + 0.09 * warmup(5)(step))


def decay_by_hand(optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.param_groups[0]["weight_decay"] = 0.1 * cosine(9)(step)


@pytest.mark.parametrize(
    ("name", "options", "schedule", "by_hand"),
    [
        ("SGD", {"lr": 0.1}, {"momentum": lambda step: 0.9 * warmup(3)(max(step - 2, 0))}, momentum_by_hand),
        ("Adam", {"lr": 0.01}, {"betas": (0.9, 0.9 + 0.09 * warmup(5))}, betas_by_hand),
        ("AdamW", {"lr": 0.01}, {"weight_decay": 0.1 * cosine(9)}, decay_by_hand),
    ],
)
def test_schedules_do_what_numbers_set_by_hand_do_in_torch(
    name: str, options: dict[str, Any], schedule: dict[str, Any], by_hand: Callable[..., None]
) -> None:
    ours, theirs = Net().double(), Net().double()
    optimizer = getattr(steprule, name)(ours, **options, **schedule)
    reference = getattr(torch.optim, name)(theirs.parameters(), **options)
    for step in range(12):
        by_hand(reference, step)
        train(ours, optimizer, [step])
        train(theirs, reference, [step])
    assert_close(ours.parameters(), theirs.parameters(), 1e-9)


def test_scale_goes_on_under_a_schedule() -> None:
    model = Net()
    rate = 0.2 * warmup(3).then(cosine(5))
    optimizer = steprule.SGD(model, lr=rate, overrides={"layers.0.*": {"lr": scale(0.1)}})
    assert {group["param_names"][0]: group["lr"] for group in optimizer.param_groups} == {
        "layers.0.weight": 0.0,
        "layers.1.weight": 0.0,
    }
    for step in range(8):
        before = [p.detach().clone() for p in model.parameters()]
        train(model, optimizer, [step])
        for group in optimizer.param_groups:
            factor = 0.1 if "layers.0.weight" in group["param_names"] else 1.0
            assert group["lr"] == pytest.approx(factor * rate(step), rel=1e-15)
            for p in group["params"]:
                (old,) = (b for b, q in zip(before, model.parameters(), strict=True) if q is p)
                torch.testing.assert_close(p.detach(), old - factor * rate(step) * p.grad)


def test_torch_schedulers_work_beside_schedules_on_other_values() -> None:
    ours, theirs = Net().double(), Net().double()
    decay = 0.1 * linear(8)
    optimizer = steprule.SGD(ours, lr=0.1, momentum=0.9, weight_decay=decay)
    reference = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    schedulers = [peers.OneCycleLR(o, max_lr=0.2, total_steps=20) for o in (optimizer, reference)]
    for step in range(12):
        reference.param_groups[0]["weight_decay"] = decay(step)
        train(ours, optimizer, [step])
        train(theirs, reference, [step])
        for scheduler in schedulers:
            scheduler.step()
        for key in ("lr", "momentum"):
            assert optimizer.param_groups[0][key] == reference.param_groups[0][key]
    assert_close(ours.parameters(), theirs.parameters(), 1e-9)


@pytest.mark.parametrize(
    ("scheduled", "make"),
    [
        ({"lr": 0.1 * cosine(9)}, lambda o: peers.ExponentialLR(o, 0.9)),
        ({"lr": 0.1 * cosine(9)}, lambda o: peers.LinearLR(o, 0.5)),
        ({"momentum": 0.9 * cosine(9)}, lambda o: peers.OneCycleLR(o, 0.1, 20)),
        ({"lr": lambda step: 0.1}, lambda o: peers.StepLR(o, 1)),
    ],
)
def test_a_torch_scheduler_on_a_scheduled_value_is_refused(scheduled: dict[str, Any], make: Callable[..., Any]) -> None:
    model = Net()
    optimizer = steprule.SGD(model, **{"lr": 0.1, "momentum": 0.9, **scheduled})
    scheduler = make(optimizer)
    (name,) = scheduled
    with pytest.raises(RuntimeError, match=f"both a schedule and something else set {name} of group 0"):  # noqa: PT012
        for step in range(2):
            before = [p.detach().clone() for p in model.parameters()]
            train(model, optimizer, [step])
            scheduler.step()
    assert all(map(torch.equal, before, model.parameters()))


def test_a_schedule_put_into_param_groups_by_hand_is_refused() -> None:
    for steps in (0, 1):
        model = Net()
        optimizer = steprule.SGD(model, lr=0.1)
        for step in range(steps):
            train(model, optimizer, [step])
        optimizer.param_groups[0]["lr"] = 0.1 * cosine(9)
        with pytest.raises(
            TypeError, match=r"0.1 \* cosine\(9\) is no number: a schedule is given to an optimizer when"
        ):
            train(model, optimizer, [5])


def test_a_group_added_later_is_in_step_at_once() -> None:
    model = Net()
    optimizer = steprule.SGD(model, lr=0.1 * linear(10), weight_decay=0.1 * cosine(10))
    for step in range(4):
        train(model, optimizer, [step])
    extra = nn.Linear(2, 2)
    optimizer.add_param_group({"params": list(extra.named_parameters(prefix="extra")), "lr": 0.2 * linear(10)})
    more = nn.Linear(3, 2)
    optimizer.add(more.named_parameters(prefix="more"), lr=scale(10))
    first, second, third = optimizer.param_groups
    assert second["lr"] == 0.2 * linear(10)(4)
    assert third["lr"] == pytest.approx(linear(10)(4))
    assert second["weight_decay"] == third["weight_decay"] == 0.1 * cosine(10)(4)
    extra.weight.grad = torch.ones(2, 2)
    start = extra.weight.detach().clone()
    optimizer.step()
    assert first["lr"] == 0.1 * linear(10)(4)
    torch.testing.assert_close(
        extra.weight.detach(), start - 0.2 * linear(10)(4) * (1 + 0.1 * cosine(10)(4) * start), rtol=1e-6, atol=1e-7
    )


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """A state as it comes back from a file that can hold only plain data and tensors."""
    json.dumps({key: value for key, value in state.items() if key != "state"})
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def resumed(make: Callable[[Net], steprule.Optimizer], steps: int = 7, total: int = 15) -> tuple[Net, Net]:
    """A run in one go, and one that is saved and goes on with a new model and a new optimizer."""
    whole = Net()
    optimizer = make(whole)
    for step in range(total):
        train(whole, optimizer, [step])
        optimizer.report_metric(float(step % 3)) if has_plateau(optimizer) else None
    first, second = Net(), Net()
    optimizer = make(first)
    for step in range(steps):
        train(first, optimizer, [step])
        optimizer.report_metric(float(step % 3)) if has_plateau(optimizer) else None
    state = through_a_file(optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    optimizer = make(second)
    optimizer.load_state_dict(state)
    for step in range(steps, total):
        train(second, optimizer, [step])
        optimizer.report_metric(float(step % 3)) if has_plateau(optimizer) else None
    return whole, second


def has_plateau(optimizer: steprule.Optimizer) -> bool:
    return any("plateau" in str(s) for g in optimizer.param_groups for s in g.get("schedules", {}).values())


@pytest.mark.parametrize(
    "make",
    [
        lambda model: steprule.SGD(model, lr=0.1 * warmup(5).then(cosine(10)), momentum=0.5 + 0.4 * warmup(10)),
        lambda model: steprule.AdamW(model, lr=0.01 * exponential(0.9), betas=(0.9, 0.9 + 0.09 * warmup(9))),
        lambda model: steprule.SGD(
            model, lr=0.1 * cosine(20), overrides={"layers.0.*": {"lr": scale(0.1)}, biases: {"l1": 0.01 * linear(9)}}
        ),
        lambda model: steprule.SGD(model, lr=0.1 * plateau(patience=1, factor=0.5)),
        lambda model: steprule.SGD(model, lr=lambda step: 0.1 / (1 + step)),  # type: ignore[arg-type]
    ],
)
def test_resumed_runs_go_on_exactly(make: Callable[[Net], steprule.Optimizer]) -> None:
    whole, parts = resumed(make)
    assert_equal(parts, whole)


def test_a_schedule_that_only_the_file_has_goes_on() -> None:
    """Built-in schedules travel as plain data: the new optimizer need not be told them."""
    whole = Net()
    optimizer = steprule.SGD(whole, lr=0.1 * warmup(5).then(cosine(10)))
    for step in range(7):
        train(whole, optimizer, [step])
    parts = Net()
    parts.load_state_dict(whole.state_dict())
    bare = steprule.SGD(parts, lr=0.5)
    bare.load_state_dict(through_a_file(optimizer.state_dict()))
    assert bare.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    for step in range(7, 12):
        train(whole, optimizer, [step])
        train(parts, bare, [step])
    assert_equal(parts, whole)


def test_a_changed_schedule_wins_and_is_said() -> None:
    model = Net()
    optimizer = steprule.SGD(model, lr=0.1 * cosine(10))
    for step in range(4):
        train(model, optimizer, [step])
    state = through_a_file(optimizer.state_dict())
    changed = steprule.SGD(model, lr=0.3 * linear(20))
    with pytest.warns(UserWarning, match=r"lr of group 0 is 0.3 \* linear\(20\) now, which is not what was saved"):
        changed.load_state_dict(state)
    train(model, changed, [4])
    assert changed.param_groups[0]["lr"] == 0.3 * linear(20)(4)
    same = steprule.SGD(model, lr=0.1 * cosine(10))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same.load_state_dict(state)


def test_a_plateau_fed_by_report_metric_is_that_of_torch() -> None:
    ours, theirs = Net().double(), Net().double()
    optimizer = steprule.SGD(ours, lr=0.1 * plateau(patience=1, factor=0.5), momentum=0.9)
    reference = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    scheduler = peers.ReduceLROnPlateau(reference, patience=1, factor=0.5)
    rates = set()
    for step, metric in enumerate([5.0, 4.0, 4.1, 4.2, 3.0, 3.5, 3.6, 3.7, 2.0, 2.1]):
        train(ours, optimizer, [step])
        train(theirs, reference, [step])
        assert optimizer.param_groups[0]["lr"] == pytest.approx(reference.param_groups[0]["lr"])
        rates.add(optimizer.param_groups[0]["lr"])
        optimizer.report_metric(metric)
        scheduler.step(metric)
    assert len(rates) == 3
    assert_close(ours.parameters(), theirs.parameters(), 1e-9)


def test_one_report_reaches_every_plateau_once() -> None:
    shared, own = plateau(patience=0, factor=0.5), plateau(patience=0, factor=0.1)
    overrides = {"layers.0.*": {"lr": 0.2 * shared}, "norm.*": {"lr": own}}
    optimizer = steprule.SGD(Net(), lr=0.1 * shared, overrides=overrides)
    for metric in (1.0, 2.0):
        optimizer.report_metric(metric)
    optimizer.add(nn.Linear(2, 2).named_parameters(prefix="new"))
    steprule.schedules.write(optimizer.param_groups, 0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.05, 0.1, 0.05])
    with pytest.raises(RuntimeError, match=r"no hyperparameter follows a plateau: give one, such as lr="):
        steprule.SGD(Net(), lr=0.1 * cosine(3)).report_metric(1.0)


# -- freezing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SGD", "AdamW", "RMSprop", "Adagrad", "NAdam"])
def test_frozen_parameters_are_skipped_and_go_on_from_their_state(name: str) -> None:
    ours, theirs = Net().double(), Net().double()
    optimizer = getattr(steprule, name)(ours, lr=0.05, **OPTIONS.get(name, {}))
    reference = getattr(torch.optim, name)(theirs.parameters(), lr=0.05, **OPTIONS.get(name, {}))
    held = [p for n, p in theirs.named_parameters() if n.startswith("layers.0")]
    for step in range(9):
        if step == 3:
            assert optimizer.freeze("layers.0.*") == ["layers.0.weight", "layers.0.bias"]
            state = {key: value.clone() for key, value in optimizer.state[ours.layers[0].weight].items()}
            frozen = ours.get_parameter("layers.0.weight").detach().clone()
        if step == 6:
            assert torch.equal(ours.get_parameter("layers.0.weight"), frozen)
            assert all(torch.equal(optimizer.state[ours.layers[0].weight][key], state[key]) for key in state)
            optimizer.unfreeze("layers.0.*")
        for p in held:
            p.requires_grad_(not 3 <= step < 6)
        train(ours, optimizer, [step])
        train(theirs, reference, [step])
    assert_close(ours.parameters(), theirs.parameters(), 1e-9)
    assert not torch.equal(ours.get_parameter("layers.0.weight"), frozen)


def test_freezing_drops_a_gradient_that_is_there_and_takes_any_selector() -> None:
    model = Net()
    optimizer = steprule.SGD(model, lr=0.1)
    model(0).sum().backward()
    before = model.get_parameter("norm.weight").detach().clone()
    assert optimizer.freeze(nn.LayerNorm) == ["norm.weight", "norm.bias"]
    assert model.norm.weight.grad is None
    optimizer.step()
    assert torch.equal(model.norm.weight, before)
    assert optimizer.unfreeze(norms & biases) == ["norm.bias"]
    assert [p.requires_grad for p in model.norm.parameters()] == [False, True]
    with pytest.raises(ValueError, match=r"'layer\.\*' matches no parameter; did you mean 'layers\.\*'"):
        optimizer.freeze("layer.*")


def test_selectors_see_what_the_optimizer_was_given() -> None:
    named = steprule.SGD(Net().named_parameters(), lr=0.1)
    assert named.freeze("norm.*") == ["norm.weight", "norm.bias"]
    with pytest.raises(ValueError, match=r"norms selects by module, .*give the nn.Module itself"):
        named.freeze(norms)
    bare = steprule.SGD(Net().parameters(), lr=0.1)
    assert bare.freeze(by_ndim(2)) == ["", ""]
    with pytest.raises(ValueError, match=r"selects by name"):
        bare.freeze("norm.*")
    model = Net()
    grown = steprule.SGD(model, lr=0.1)
    grown.add(other := nn.Sequential(nn.LayerNorm(2)))
    assert grown.freeze(norms) == ["norm.weight", "norm.bias", "0.weight", "0.bias"]
    assert not other[0].weight.requires_grad
    grown.add([("loose", loose := nn.Parameter(torch.zeros(2)))])
    assert grown.freeze("l*se") == ["loose"]
    assert not loose.requires_grad
    with pytest.raises(ValueError, match="norms selects by module"):
        grown.freeze(norms)


# -- layers made while training runs -----------------------------------------------------------------------------------


def test_a_layer_added_to_the_model_is_warned_of_once() -> None:
    model = Net()
    optimizer = steprule.AdamW(model, lr=0.1)
    model.extra = nn.Linear(4, 4)
    with pytest.warns(UserWarning, match=r"^of Net, extra.weight, extra.bias train but are in no group") as caught:
        train(model, optimizer, [0])
    assert [Path(warning.filename).name for warning in caught] == ["training.py"]  # where step() is called
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer, [1])
        optimizer.add(model.extra)
        train(model, optimizer, [2])


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_warns(name: str) -> None:
    model = net(name)
    optimizer = getattr(steprule, name)(model)
    model.extra = nn.Linear(2, 2)
    with pytest.warns(UserWarning, match="extra.weight"):
        train(model, optimizer, [0])


def test_a_resumed_optimizer_warns_too() -> None:
    model = Net()
    optimizer = steprule.SGD(model, lr=0.1)
    train(model, optimizer, [0])
    again = steprule.SGD(model, lr=0.1)
    again.load_state_dict(optimizer.state_dict())
    model.extra = nn.Linear(4, 4)
    with pytest.warns(UserWarning, match="extra.weight"):
        train(model, again, [1])


def test_check_names_what_trains_and_is_in_no_group() -> None:
    model = Net()
    optimizer = steprule.SGD(model, lr=0.1)
    check = optimizer.check
    check(model)
    model.extra = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))
    model.extra[1].requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"^of Net, extra.0.weight, extra.0.bias train but are in no group of this SGD: "
    ):
        check(model)
    optimizer.add(model.extra)
    check(model)
    model.more = nn.ModuleList(nn.Linear(2, 2) for _ in range(50))
    with pytest.raises(ValueError, match=r"^of Net, more\.\{0\.\.49\}\.\{weight,bias\} train"):
        check(model)


def test_add_takes_modules_tensors_and_pairs() -> None:
    model = Net()
    optimizer = steprule.SGD(model, lr=0.1, momentum=0.9)
    train(model, optimizer, [0])
    model.extra = nn.Linear(4, 4)
    model.loose = nn.Parameter(torch.ones(3))
    optimizer.add(model, lr=scale(0.5))
    optimizer.add([("other", nn.Parameter(torch.ones(2)))], momentum=0.0)
    assert [group["param_names"] for group in optimizer.param_groups[1:]] == [
        ["loose", "extra.weight", "extra.bias"],
        ["other"],
    ]
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.05, 0.1]
    assert [group["momentum"] for group in optimizer.param_groups] == [0.9, 0.9, 0.0]
    start = model.extra.weight.detach().clone()
    model.extra.weight.grad = torch.ones(4, 4)
    optimizer.step()
    torch.testing.assert_close(model.extra.weight.detach(), start - 0.05)
    bare = steprule.SGD([torch.zeros(2, requires_grad=True)], lr=0.1)
    bare.add(tensor := torch.ones(2, requires_grad=True))
    bare.add(nn.Linear(2, 2))
    assert bare.param_groups[1]["params"][0] is tensor
    assert [len(group["params"]) for group in bare.param_groups] == [1, 1, 2]


def test_what_can_not_be_added_is_refused_and_nothing_changes() -> None:
    model = Net()
    optimizer = steprule.SGD(model, lr=0.1)
    new = nn.Parameter(torch.ones(2))
    refused: list[tuple[Any, dict[str, Any], Any, str]] = [
        (model, {}, ValueError, "every one of these parameters is in a group already"),
        (new, {}, ValueError, "the optimizer knows its parameters by name"),
        ([("norm.weight", new)], {}, ValueError, "other parameters are called norm.weight already"),
        ([("new", new)], {"weight_deacy": 0.1}, TypeError, "has no hyperparameter 'weight_deacy'; did you mean"),
        ([("new", new)], {"q": 0.1}, TypeError, "has no hyperparameter 'q'; there are .*lr, momentum"),
        ([("new", new)], {"lr": -1.0}, ValueError, "Invalid learning rate"),
        ([("new", new)], {"nesterov": scale(0.1)}, ValueError, "can't multiply nesterov=False"),
        ([("new", 3)], {}, TypeError, "Tensors"),
    ]
    for what, hyper, kind, message in refused:
        with pytest.raises(kind, match=message):
            optimizer.add(what, **hyper)
    assert len(optimizer.param_groups) == 1
    optimizer.add([("new", new)])
