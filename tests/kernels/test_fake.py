"""Steps over FakeTensors, as memory estimators take them: the state is that of a step over real ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from every_algorithm import ONLY_MATRICES
from inside import params_of
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.fx.experimental.proxy_tensor import make_fx

import steprule
from steprule import Optimizer, modifiers, rule
from steprule.rule import array, channel, column, matrix, mean, norm, row, scalar, sqrt, square, table

Made = Callable[[nn.Module], Optimizer]
Stepped = Callable[[Optimizer, Callable[[], Tensor]], Any]


def step(optimizer: Optimizer, loss: Callable[[], Tensor]) -> None:
    loss().backward()
    optimizer.step()


def train(make: Made, take: Stepped = step, dtype: torch.dtype = torch.float32, steps: int = 2) -> Optimizer:
    model = nn.Sequential(nn.Linear(3, 4, dtype=dtype), nn.Linear(4, 2, bias=False, dtype=dtype))
    optimizer = make(model)
    for _ in range(steps):
        take(optimizer, lambda: model(torch.ones(2, 3, dtype=dtype)).float().square().sum())
        optimizer.zero_grad()
    return optimizer


def forms(optimizer: Optimizer) -> list[Any]:
    """What the state is like, parameter by parameter."""
    look = lambda v: (v.shape, v.dtype, v.device, v.stride()) if isinstance(v, Tensor) else v
    return [{name: look(v) for name, v in optimizer.state[p].items()} for p in params_of(optimizer)]


def assert_alike(make: Made, take: Stepped = step, dtype: torch.dtype = torch.float32) -> Optimizer:
    """The state is of FakeTensors like those of real training, and the steps are counted."""
    real = train(make, take, dtype)
    with FakeTensorMode():
        fake = train(make, take, dtype)
    tensors = [v for own in fake.state.values() for v in own.values() if isinstance(v, Tensor)]
    assert all(isinstance(v, FakeTensor) for v in tensors)
    assert forms(fake) == forms(real)
    assert fake.steps_taken == real.steps_taken == 2
    return fake


OTHERS = {"LBFGS", "SparseAdam"}


ALGORITHMS = [(name, torch.float32) for name in sorted(set(steprule.algorithms.names()) - OTHERS)]


@pytest.mark.parametrize(("name", "dtype"), [*ALGORITHMS, ("AdamW", torch.bfloat16), ("Adafactor", torch.bfloat16)])
def test_every_algorithm_makes_the_state_it_makes_of_real_ones(name: str, dtype: torch.dtype) -> None:
    matrices = lambda model: [p for p in model.parameters() if p.ndim == 2]
    params = matrices if name in ONLY_MATRICES else nn.Module.parameters
    options = dict(momentum=0.9) if name == "SGD" else {}
    assert_alike(lambda model: getattr(steprule, name)(params(model), lr=0.1, **options), dtype=dtype)


FOLLOWED = sorted(name for name, _ in ALGORITHMS if "differentiable" in getattr(steprule, name).switches)


QUICK = {"Adagrad", "RAdam", "Rprop", "ADOPT"}


@pytest.mark.parametrize(
    ("name", "nonfinite"),
    [
        ("AdaGC", "skip"),
        *(pytest.param(name, "propagate", marks=[] if name in QUICK else pytest.mark.slow) for name in FOLLOWED),
    ],
)
def test_autograd_follows_steps_over_fake_ones(name: str, nonfinite: str) -> None:
    def stepped(fake: bool) -> list[Any]:
        start = torch.ones(3, 4, requires_grad=True)
        p = start.clone()
        options = dict(differentiable=True, clip_norm=0.5, nonfinite=nonfinite)
        optimizer = getattr(steprule, name)([p], lr=0.1, **options)
        for _ in range(3):
            p.grad = torch.ones(3, 4)
            optimizer.step()
        (slope,) = torch.autograd.grad(p.sum(), start)
        assert isinstance(slope, FakeTensor) is isinstance(p, FakeTensor) is fake
        assert optimizer.steps_taken == 3
        return [slope.shape, forms(optimizer)]

    try:
        real = stepped(fake=False)
    except RuntimeError as error:
        if "autograd can't follow" not in str(error):
            raise
        return
    with FakeTensorMode():
        assert stepped(fake=True) == real


def test_autograd_follows_all_of_a_step_over_fake_ones_or_none_of_it() -> None:
    with FakeTensorMode():
        params = [torch.ones(2, requires_grad=True).clone(), torch.ones(2, requires_grad=True)]
        for p in params:
            p.grad = torch.ones(2)
        groups = [dict(params=[("a", params[0])]), dict(params=[("b", params[1])], differentiable=False)]
        with pytest.raises(RuntimeError, match="'a' and 'b' are FakeTensors, and one alone has differentiable=True"):
            steprule.SGD(groups, lr=0.1, differentiable=True).step()


def test_sparse_gradients_make_it_too() -> None:
    with FakeTensorMode():
        embedding = nn.Embedding(5, 3, sparse=True)
        optimizer = steprule.SparseAdam(embedding.parameters())
        embedding(torch.tensor([1, 2])).sum().backward()
        optimizer.step()
    assert optimizer.state[embedding.weight]["exp_avg"].shape == (5, 3)


def test_lbfgs_asks_for_values_as_torchs_does() -> None:
    for lib in (torch.optim, steprule):
        with FakeTensorMode(), pytest.raises(DataDependentOutputException):
            train(lambda model, lib=lib: lib.LBFGS(model.parameters()), lambda o, loss: o.step(lambda: backward(loss)))


def backward(loss: Callable[[], Tensor]) -> Tensor:
    found = loss()
    found.backward()
    return found


def grown(stack: Tensor, g: Tensor) -> Tensor:
    return stack + g @ g.mT


class Everything(Optimizer):
    """A slot of each kind, reductions of each scope, a matrix function with state."""

    slots: ClassVar = {
        "by_row": row(),
        "by_column": column(),
        "by_channel": channel(),
        "left": table("rows", "rows", "identity"),
        "start": array("parameter"),
        "number": scalar(1.0),
    }

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, dict(lr=lr))

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        total = norm(g, scope="all")
        s.by_row = s.by_row + mean(square(g), dim=-1)
        s.by_column = s.by_column + mean(square(g), dim=-2)
        s.by_channel = s.by_channel + rule.sum(square(g), scope="channel")
        s.left = matrix(grown, s.left, g, returns=s.left)
        s.number = s.number * 0.5
        s.measured = norm(p - s.start)
        scaled = g / (sqrt(s.by_row) + sqrt(s.by_column) + sqrt(s.by_channel) + 1e-8)
        return p - h.lr * scaled / (1 + total) * (1 + s.measured) * s.number


def test_a_rule_with_slots_of_every_kind() -> None:
    fake = assert_alike(lambda model: Everything([p for p in model.parameters() if p.ndim == 2]))
    kinds = fake.state[params_of(fake)[0]]
    assert {name: tuple(v.shape) for name, v in kinds.items()} == {
        "start": (4, 3), "by_row": (4, 1), "by_column": (1, 3), "by_channel": (4, 1), "left": (4, 4), "number": (),
        "measured": (),
    }  # fmt: skip


CALLED: list[Any] = []


def noted(stack: Tensor) -> Tensor:
    CALLED.append(type(stack))
    return stack @ stack.mT @ stack


class Seldom(Optimizer):
    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, dict(lr=lr))

    slots: ClassVar = {"left": table("rows", "columns")}

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        s.left = matrix(noted, g, returns=s.left, every=3)
        return p - h.lr * g * s.step


@pytest.mark.parametrize("fake", [True, False])
def test_matrix_functions_are_called_when_they_are_due(fake: bool) -> None:
    CALLED.clear()
    make = lambda model: Seldom([model[0].weight])
    if fake:
        with FakeTensorMode():
            train(make, steps=7)
    else:
        train(make, steps=7)
    assert [FakeTensor if fake else Tensor] * 3 == CALLED


NEEDED = {"EMA": (0.9,)}
ONE_POINT = sorted(set(modifiers.__all__) - {"Modifier", "SAM", "ASAM"})


@pytest.mark.parametrize("name", ONE_POINT)
def test_every_modifier(name: str) -> None:
    made = lambda: getattr(modifiers, name)(*NEEDED.get(name, ()))
    fake = assert_alike(lambda model: steprule.AdamW(model, lr=0.1, modifiers=[made()]))
    before = forms(fake)
    with fake.evaluating():
        pass
    assert forms(fake) == before


@pytest.mark.parametrize("name", ["SAM", "ASAM"])
def test_gradients_at_two_points(name: str) -> None:
    def twice(optimizer: Optimizer, loss: Callable[[], Tensor]) -> None:
        loss().backward()
        optimizer.first_step(zero_grad=True)
        loss().backward()
        optimizer.second_step()

    made = lambda model: steprule.SGD(model, lr=0.1, momentum=0.9, modifiers=[getattr(modifiers, name)()])
    assert_alike(made, twice)
    assert_alike(made, lambda optimizer, loss: optimizer.step(lambda: backward(loss)))


def scaled(optimizer: Optimizer, loss: Callable[[], Tensor]) -> None:
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss()).backward()
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize(
    ("options", "take"),
    [
        (dict(clip_norm=0.5), step),
        (dict(nonfinite="skip"), step),
        (dict(nonfinite="raise"), step),
        (dict(backend="eager"), step),
        (dict(backend="llvm"), step),
        (dict(foreach=True), step),
        (dict(fused=True), scaled),
        (dict(lr=0.1 * steprule.schedules.cosine(5)), step),
        (dict(overrides={"0.weight": dict(algorithm=steprule.Adafactor)}), step),
    ],
    ids=lambda given: str(given) if isinstance(given, dict) else "",
)
def test_what_a_step_may_be_asked_for(options: dict[str, Any], take: Stepped) -> None:
    fake = assert_alike(lambda model: steprule.AdamW(model, **{"lr": 0.1, **options}), take)
    assert fake.skipped == 0
    assert "clip_norm" not in options or isinstance(fake.grad_norm, FakeTensor)


def test_what_is_measured_is_not_known() -> None:
    def tracking(model: nn.Module) -> Optimizer:
        optimizer = steprule.AdamW(model, lr=0.1)
        optimizer.track("grad_norm", "update_to_param")
        return optimizer

    assert assert_alike(tracking).tracked() == {}


def test_it_is_saved_loaded_and_shown() -> None:
    with FakeTensorMode():
        optimizer = train(lambda model: steprule.Adafactor(model, lr=0.1))
        assert "no values to compute with" in optimizer.explain()
        before = forms(optimizer)
        assert not any(optimizer.load_state_dict(optimizer.state_dict()))
        assert forms(optimizer) == before
        assert "kernel=fake" in repr(optimizer)
        theirs = torch.optim.Adafactor(params_of(optimizer), lr=0.1)
        theirs.load_state_dict(optimizer.state_dict())
        assert type(Optimizer.from_torch(theirs)) is steprule.Adafactor


def test_a_tensor_that_is_fake_needs_no_mode_around_the_step() -> None:
    with FakeTensorMode():
        weight = torch.ones(2, 3, requires_grad=True)
        weight.grad = torch.ones(2, 3)
    optimizer = steprule.Adafactor([weight])
    optimizer.step()
    assert forms(optimizer)[0]["col_var"][0] == (1, 3)


def test_fake_and_real_ones_do_not_go_together() -> None:
    real = torch.ones(2, requires_grad=True)
    real.grad = torch.ones(2)
    with FakeTensorMode():
        fake = torch.ones(2, requires_grad=True)
        fake.grad = torch.ones(2)
    optimizer = steprule.SGD([("real", real), ("fake", fake)], lr=0.1)
    with pytest.raises(RuntimeError, match="parameter 'fake' is a FakeTensor, parameter 'real' is not"):
        optimizer.step()
    assert real.tolist() == [1, 1]


def test_a_recording_is_refused() -> None:
    def stepped(p: Tensor, g: Tensor) -> Tensor:
        p.grad = g
        steprule.SGD([("w", p)], lr=0.1, backend="eager").step()
        return p

    assert make_fx(stepped, tracing_mode="real")(torch.ones(2), torch.ones(2))(torch.ones(2), torch.ones(2)).tolist()
    with pytest.raises(RuntimeError, match="record the step over parameter 'w', a FakeTensor"):
        make_fx(stepped, tracing_mode="fake")(torch.ones(2), torch.ones(2))


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Adagrad", "Adafactor", "Lamb"])
def test_a_memory_tracker_finds_the_state_and_nothing_beside_it(name: str) -> None:
    options = dict(momentum=0.9) if name == "SGD" else {}
    real = train(lambda model: getattr(steprule, name)(model, lr=0.1, **options))
    storages = {
        v.untyped_storage().data_ptr(): v.untyped_storage() for own in real.state.values() for v in own.values()
    }
    with FakeTensorMode():
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))
        optimizer = getattr(steprule, name)(model, lr=0.1, **options)
        tracker = MemTracker()
        tracker.track_external(model, optimizer)
        with tracker:
            for _ in range(2):
                step(optimizer, lambda: model(torch.ones(2, 3)).sum())
                optimizer.zero_grad()
                tracker.reset_mod_stats()
        (found,) = tracker.get_tracker_snapshot("current").values()
    (size,) = (size for kind, size in found.items() if getattr(kind, "value", kind) == "Optstate")
    assert size == sum(storage.nbytes() for storage in storages.values())
