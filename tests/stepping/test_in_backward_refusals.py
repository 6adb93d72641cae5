"""What a step in backward is not for is refused by name, with nothing changed; errors say what was updated."""

from __future__ import annotations

import copy
import gc
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from comparing import same
from tensors import normal
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.utils.checkpoint import checkpoint

import steprule
from steprule.modifiers import SAM
from steprule.rule import norm


class Total(steprule.Optimizer):
    """Goes by the norm of all gradients."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, dict(lr=lr))

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        return p - h.lr * g / norm(g, scope="all")


class OwnStep(steprule.SGD):
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        return super().step(closure)


def network(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(widths)))


@pytest.fixture
def model() -> nn.Sequential:
    return network(160, 160, 8)


X = normal(4, 160, seed=9)


def loss(model: nn.Module) -> Tensor:
    return model(X).square().sum()


def frozen_copy(model: nn.Module, optimizer: Any) -> Any:
    return copy.deepcopy([dict(model.state_dict()), optimizer.state_dict(), optimizer.steps_taken])


@pytest.mark.parametrize(
    ("algorithm", "options", "said"),
    [
        (steprule.SGD, {"clip_norm": 1.0}, "clip_norm=1.0 of group 0 needs the norm of all gradients"),
        (steprule.SGD, {"nonfinite": "skip"}, "nonfinite='skip' has to see all gradients"),
        (steprule.SGD, {"nonfinite": "raise"}, "nonfinite='raise' has to see all gradients"),
        (steprule.SGD, {"modifiers": [SAM()]}, "two points"),
        (steprule.SGD, {"differentiable": True}, "differentiable=True"),
        (steprule.LBFGS, {}, "LBFGS has no update rule"),
        (Total, {}, 'Total reduces over all parameters (scope="all")'),
        (OwnStep, {}, "OwnStep has a step() of its own"),
    ],
)
def test_at_once(model: nn.Module, algorithm: Any, options: dict[str, Any], said: str) -> None:
    optimizer = algorithm(model, **options)
    with pytest.raises(RuntimeError) as error:
        optimizer.step_in_backward(model)
    assert said in str(error.value)
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    assert not optimizer._optimizer_step_pre_hooks


def test_a_module_that_lacks_a_parameter(model: nn.Sequential) -> None:
    optimizer = steprule.SGD(model)
    with pytest.raises(ValueError, match=r"that Linear does not have: '1.weight', '1.bias'"):
        optimizer.step_in_backward(model[0])
    with pytest.raises(TypeError, match="takes the module"):
        optimizer.step_in_backward(list(model.parameters()))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda o: o.param_groups[0].update(clip_norm=2.0), "clip_norm=2.0"),
        (lambda o: setattr(o, "nonfinite", "raise"), "nonfinite='raise'"),
        (lambda o: o.track("grad_norm"), "grad_norm can't be tracked"),
        (lambda o: o.eval(), "the weights to evaluate with|those to evaluate with"),
    ],
)
def test_when_backward_begins(model: nn.Module, change: Any, said: str) -> None:
    optimizer = steprule.AdamW(model)
    with optimizer.step_in_backward(model):
        loss(model).backward()
        optimizer.step()
        change(optimizer)
        before = frozen_copy(model, optimizer)
        with pytest.raises(RuntimeError, match=said):
            loss(model).backward()
        assert same(frozen_copy(model, optimizer), before)


def test_two_backwards_before_a_step(model: nn.Module) -> None:
    optimizer = steprule.AdamW(model)
    with optimizer.step_in_backward(model):
        loss(model).backward()
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(RuntimeError, match=r"a second backward before step\(\).*can't be accumulated"):
            loss(model).backward()
        assert same(dict(model.state_dict()), dict(before))


def test_a_second_gradient_of_a_small_parameter_that_no_hook_sees() -> None:
    model = network(160, 160, *[3] * 30)
    optimizer = steprule.AdamW(model)
    with optimizer.step_in_backward(model):
        loss(model).backward()
        before = copy.deepcopy(model.state_dict())
        heralds = {p for p in model.parameters() if p._post_accumulate_grad_hooks}
        name, quiet = next((n, p) for n, p in model.named_parameters() if p not in heralds)
        quiet.sum().backward()
        with pytest.raises(RuntimeError, match=f"the gradient of parameter '{name}' came again"):
            optimizer.step()
        assert same(dict(model.state_dict()), dict(before))


def test_a_closure_and_inputs(model: nn.Module) -> None:
    optimizer, called = steprule.SGD(model, lr=0.1), []
    with optimizer.step_in_backward(model):
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(RuntimeError, match=r"step\(closure\).*Nothing has changed"):
            optimizer.step(lambda: called.append(1))
        with pytest.raises(RuntimeError, match=r"step\(closure\)"):
            optimizer.step(closure=lambda: called.append(1))
        with pytest.raises(RuntimeError, match=r"step\(inputs=...\)"):
            optimizer.step(inputs={"a": 1.0})
        assert not called
        assert same(dict(model.state_dict()), dict(before))
        optimizer.step(None)


def test_a_scaler(model: nn.Module) -> None:
    optimizer = steprule.SGD(model, lr=0.1)
    handle = optimizer.step_in_backward(model)
    scaler = torch.amp.GradScaler("cpu")
    before = frozen_copy(model, optimizer)
    with pytest.raises(RuntimeError, match="GradScaler: gradients are still scaled"):
        scaler.scale(loss(model)).backward()
    assert same(frozen_copy(model, optimizer), before)
    handle.remove()
    with pytest.raises(RuntimeError, match="GradScaler"):
        optimizer.step_in_backward(model)
    del scaler
    gc.collect()
    optimizer.step_in_backward(model).remove()


def test_hyperparameters_that_change_between_backward_and_step(model: nn.Module) -> None:
    optimizer = steprule.SGD(model, lr=0.1)
    with optimizer.step_in_backward(model):
        loss(model).backward()
        optimizer.param_groups[0]["lr"] = 0.2
        with pytest.raises(RuntimeError, match="hyperparameters of group 0 were changed after backward"):
            optimizer.step()
        assert optimizer.steps_taken == 0


def test_saving_before_the_step_is_counted(model: nn.Module) -> None:
    optimizer = steprule.AdamW(model)
    with optimizer.step_in_backward(model):
        loss(model).backward()
        with pytest.raises(RuntimeError, match=r"call step\(\) before saving"):
            optimizer.state_dict()
        optimizer.step()
        optimizer.state_dict()


def test_two_on_the_same_parameters(model: nn.Module) -> None:
    optimizer = steprule.AdamW(model)
    with optimizer.step_in_backward(model):
        for other in (optimizer, steprule.SGD(model)):
            with pytest.raises(RuntimeError, match="stepped in backward already"):
                other.step_in_backward(model)
    optimizer.step_in_backward(model).remove()


@pytest.fixture
def _alone(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_alone")
def test_what_several_processes_hold_or_add_up(model: nn.Sequential) -> None:
    optimizer = steprule.AdamW(model)
    handle = optimizer.step_in_backward(model)
    wrapped = nn.parallel.DistributedDataParallel(model)
    before = frozen_copy(model, optimizer)
    with pytest.raises(RuntimeError, match="DistributedDataParallel adds up gradients"):
        loss(wrapped).backward()
    assert same(frozen_copy(model, optimizer), before)
    handle.remove()
    for given in (model, wrapped):
        with pytest.raises(RuntimeError, match="DistributedDataParallel adds up gradients"):
            optimizer.step_in_backward(given)
    del wrapped
    gc.collect()
    mesh = init_device_mesh("cpu", (1,))
    sharded = nn.Linear(4, 4)
    for name, p in list(sharded.named_parameters()):
        sharded.register_parameter(name, nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])))
    with pytest.raises(RuntimeError, match="parameter 'weight' is sharded"):
        steprule.AdamW(sharded).step_in_backward(sharded)


# -- errors half way -------------------------------------------------------------------------------------------------


class Fails(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        raise ZeroDivisionError("in the middle of backward")


def broken(model: nn.Sequential) -> Tensor:
    return model[1](Fails.apply(model[0](X))).square().sum()


def test_a_backward_that_breaks_off_says_what_was_updated() -> None:
    model = network(160, 160, 160)
    optimizer = steprule.AdamW(model)
    with optimizer.step_in_backward(model) as handle:
        for _ in range(3):
            loss(model).backward()
            optimizer.step()
        with pytest.raises(ZeroDivisionError):
            broken(model).backward()
        assert handle.updated == ["'1.weight'"]
        for go_on in (optimizer.step, lambda: loss(model).backward()):
            with pytest.raises(RuntimeError, match=r"broke off.*'1.weight' are updated and the others are not"):
                go_on()
        assert optimizer.steps_taken == 3
        assert optimizer.state[model[1].weight]["step"] == 4
        assert optimizer.state[model[0].weight]["step"] == 3
        optimizer.zero_grad()
        optimizer.load_state_dict(optimizer.state_dict())
        loss(model).backward()
        optimizer.step()
        assert optimizer.steps_taken == 4


def test_a_backward_that_breaks_off_with_nothing_changed_is_taken_again() -> None:
    model = network(160, 160, 8)
    optimizer, other = steprule.SGD(model, lr=0.1), copy.deepcopy(model)
    with optimizer.step_in_backward(model):
        with pytest.raises(ZeroDivisionError):
            broken(model).backward()
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
    plain = steprule.SGD(other, lr=0.1)
    loss(other).backward()
    plain.step()
    assert same(dict(model.state_dict()), dict(other.state_dict()))


def test_an_error_of_a_parameter_names_those_that_were_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(160, 160, 160)
    optimizer = steprule.SGD(model, lr=0.1)

    def refuse(p: Tensor) -> None:
        if p is model[0].weight:
            raise ValueError("not this one")

    monkeypatch.setattr(optimizer, "refuse", refuse)
    with optimizer.step_in_backward(model):
        with pytest.raises(ValueError, match="not this one") as error:
            loss(model).backward()
        assert "Updated since the last step(): '1.weight'" in "".join(getattr(error.value, "__notes__", ["'1.weight'"]))


def test_a_weight_whose_value_is_needed_after_its_gradient() -> None:
    model = network(160, 160)
    weight, optimizer = model.get_parameter("0.weight"), steprule.SGD(model, lr=0.1)
    x = X.clone().requires_grad_()
    with optimizer.step_in_backward(model):
        hidden = nn.functional.linear(x, weight.detach())
        end = nn.functional.linear(hidden, weight).sum()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            end.backward()


# -- hooks that fire twice -------------------------------------------------------------------------------------------


class Twice(nn.Module):
    """One layer used twice, in checkpoints or not."""

    def __init__(self, reentrant: bool | None, outer: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer, self.last = nn.Linear(160, 160), nn.Linear(160, 160)
        self.reentrant, self.outer = reentrant, outer

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        for _ in range(2):
            x = self.layer(x) if self.reentrant is None else checkpoint(self.layer, x, use_reentrant=self.reentrant)
        return self.last(x) if self.outer else x


@pytest.mark.parametrize("reentrant", [None, False, True])
@pytest.mark.parametrize("outer", [True, False])
def test_a_layer_that_is_used_twice_is_updated_once(reentrant: bool | None, outer: bool) -> None:
    model, other = Twice(reentrant, outer), Twice(None, outer)
    optimizer, plain = steprule.AdamW(model), steprule.AdamW(other)
    with optimizer.step_in_backward(model):
        for _ in range(4):
            loss(model).backward()
            optimizer.step()
            optimizer.zero_grad()
            loss(other).backward()
            plain.step()
            plain.zero_grad()
            assert same(dict(model.state_dict()), dict(other.state_dict()))
    assert same(optimizer.state_dict(), plain.state_dict())


def test_a_tied_weight() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(2)
            self.one, self.two = nn.Linear(160, 160), nn.Linear(160, 160)
            self.two.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x).tanh())

    model, other = Tied(), Tied()
    optimizer, plain = steprule.AdamW(model), steprule.AdamW(other)
    with optimizer.step_in_backward(model):
        for _ in range(3):
            loss(model).backward()
            optimizer.step()
            loss(other).backward()
            plain.step()
            plain.zero_grad()
    assert same(dict(model.state_dict()), dict(other.state_dict()))


def test_parameters_that_share_memory_are_taken_at_the_end() -> None:
    def make() -> nn.Sequential:
        model = network(160, 160, 160)
        model[1].weight.data = model[0].weight.data
        return model

    model, other = make(), make()
    optimizer, plain = steprule.SGD(model, lr=0.01), steprule.SGD(other, lr=0.01)
    with optimizer.step_in_backward(model):
        for _ in range(3):
            loss(model).backward()
            optimizer.step()
            loss(other).backward()
            plain.step()
            plain.zero_grad()
    assert same(dict(model.state_dict()), dict(other.state_dict()))


# -- while it lasts --------------------------------------------------------------------------------------------------


def test_gradients_are_freed_one_by_one() -> None:
    model = network(160, 160, 160, 160)
    optimizer = steprule.AdamW(model)
    most = []

    def look(_: Tensor) -> None:
        most.append(sum(p.grad is not None and p.numel() > 1000 for p in model.parameters()))

    with optimizer.step_in_backward(model):
        for p in model.parameters():
            p.register_post_accumulate_grad_hook(look)
        for _ in range(3):
            loss(model).backward()
            assert all(p.grad is None for p in model.parameters())
            optimizer.step()
    assert max(most) == 0


def test_schedulers_and_hooks_of_torch(model: nn.Module) -> None:
    other = copy.deepcopy(model)
    counts = [0, 0]

    def run(k: int, model: nn.Module, optimizer: Any) -> None:
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        optimizer.register_step_post_hook(lambda *_: counts.__setitem__(k, counts[k] + 1))
        for _ in range(4):
            loss(model).backward()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()

    optimizer, plain = steprule.AdamW(model), steprule.AdamW(other)
    with optimizer.step_in_backward(model):
        run(0, model, optimizer)
    run(1, other, plain)
    assert counts == [4, 4]
    assert same(dict(model.state_dict()), dict(other.state_dict()))


def test_a_layer_that_is_added_while_it_lasts(model: nn.Sequential) -> None:
    other = copy.deepcopy(model)

    def run(model: nn.Sequential, optimizer: Any) -> None:
        for number in range(4):
            if number == 1:
                torch.manual_seed(7)
                model.append(nn.Linear(8, 2100))
                optimizer.add(model)
            loss(model).backward()
            optimizer.step()
            optimizer.zero_grad()

    optimizer, plain = steprule.AdamW(model), steprule.AdamW(other)
    with optimizer.step_in_backward(model):
        run(model, optimizer)
        assert model[2].weight._post_accumulate_grad_hooks
    run(other, plain)
    assert same(dict(model.state_dict()), dict(other.state_dict()))
    assert same(optimizer.state_dict(), plain.state_dict())


def test_evaluation_in_between(model: nn.Module) -> None:
    other = copy.deepcopy(model)

    def run(model: nn.Module, optimizer: Any) -> None:
        for _ in range(4):
            loss(model).backward()
            optimizer.step()
            optimizer.zero_grad()
            with optimizer.evaluating():
                loss(model)

    make = lambda m: steprule.AdamW(m, modifiers=[steprule.modifiers.EMA(0.9)])
    optimizer, plain = make(model), make(other)
    with optimizer.step_in_backward(model):
        run(model, optimizer)
    run(other, plain)
    assert same(dict(model.state_dict()), dict(other.state_dict()))
    assert same(optimizer.state_dict(), plain.state_dict())


def test_nothing_is_left_on_the_parameters(model: nn.Module) -> None:
    optimizer = steprule.AdamW(model)
    with pytest.raises(KeyError), optimizer.step_in_backward(model):
        raise KeyError
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    loss(model).backward()
    assert all(p.grad is not None for p in model.parameters())
    optimizer.step()
