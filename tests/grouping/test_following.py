"""Parameters that a module replaces after the optimizer was made."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import steprule


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def step(net: nn.Module, optimizer: steprule.Optimizer) -> None:
    optimizer.zero_grad()
    net(torch.linspace(-1, 1, 6).reshape(2, 3)).square().sum().backward()
    optimizer.step()


def new_head(net: nn.Sequential) -> None:
    net[2] = nn.Linear(4, 5)


def assign(net: nn.Sequential) -> None:
    net.load_state_dict({name: p.detach().clone() for name, p in net.state_dict().items()}, assign=True)


def overwrite(net: nn.Sequential) -> None:
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        net.double().float()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


REPLACED: dict[str, tuple[Callable[[nn.Sequential], object], str]] = {
    "assign": (assign, "0.weight, 0.bias, 2.weight, 2.bias"),
    "head": (new_head, "2.weight, 2.bias"),
    "parametrized": (lambda net: parametrizations.weight_norm(net[0]), "0.weight"),
    "overwritten": (overwrite, "0.weight, 0.bias, 2.weight, 2.bias"),
    "behind its back": (lambda net: net[0]._parameters.update(bias=nn.Parameter(torch.ones(4))), "0.bias"),
    "set": (lambda net: setattr(net[0], "bias", nn.Parameter(torch.ones(4))), "0.bias"),
}


@pytest.mark.parametrize("how", REPLACED)
def test_the_next_step_says_which_parameters_are_trained_in_vain(how: str) -> None:
    net = model()
    optimizer = steprule.AdamW(net, lr=0.1)
    step(net, optimizer)
    replace, names = REPLACED[how]
    replace(net)
    with pytest.warns(UserWarning, match=f"of this AdamW, {names} are parameters of Sequential no more") as caught:
        step(net, optimizer)
    assert {warning.filename for warning in caught} == {__file__}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(net, optimizer)


def test_saving_says_it_too() -> None:
    net = model()
    optimizer = steprule.AdamW(net, lr=0.1)
    new_head(net)
    with pytest.warns(UserWarning, match="no more"):
        optimizer.state_dict()


def test_following_carries_state_where_shapes_agree() -> None:
    net, other = model(), model()
    optimizer, expected = steprule.AdamW(net, lr=0.1), steprule.AdamW(other, lr=0.1)
    step(net, optimizer)
    step(other, expected)
    assign(net)
    assert optimizer.follow(net).carried == ["0.weight", "0.bias", "2.weight", "2.bias"]
    for _ in range(3):
        step(net, optimizer)
        step(other, expected)
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_head_of_another_shape_begins_anew_in_the_group_of_the_old_one() -> None:
    net = model()
    optimizer = steprule.SGD(net, lr=0.1, momentum=0.9, overrides={"2.*": dict(lr=0.5)})
    step(net, optimizer)
    new_head(net)
    followed = optimizer.follow(net)
    assert (followed.carried, followed.anew, followed.dropped) == ([], ["2.weight", "2.bias"], [])
    [group] = [group for group in optimizer.param_groups if group["lr"] == 0.5]
    assert [p is q for p, q in zip(group["params"], net[2].parameters(), strict=True)] == [True, True]
    assert not any(p in optimizer.state for p in net[2].parameters())
    before = net.get_parameter("2.weight").detach().clone()
    step(net, optimizer)
    assert not torch.equal(before, net.get_parameter("2.weight"))


def test_pruning_keeps_the_parameter_and_nothing_is_said() -> None:
    net = model()
    optimizer = steprule.SGD(net, lr=0.1, momentum=0.9)
    step(net, optimizer)
    prune.l1_unstructured(net[0], "weight", amount=0.25)
    step(net, optimizer)
    assert optimizer.follow(net) == ([], [], [])
    assert "momentum_buffer" in optimizer.state[net[0].weight_orig]


def test_one_parameter_may_become_two_and_may_go() -> None:
    net = model()
    optimizer = steprule.SGD(net, lr=0.1, momentum=0.9)
    step(net, optimizer)
    parametrizations.weight_norm(net[0])
    followed = optimizer.follow(net)
    assert followed.anew == [f"0.parametrizations.weight.original{i}" for i in (0, 1)]
    net[2] = nn.Identity()
    assert optimizer.follow(net).dropped == ["2.weight", "2.bias"]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 3
    step(net, optimizer)


def test_another_module_of_the_class_takes_over() -> None:
    net = model()
    optimizer = steprule.AdamW(net, lr=0.1)
    step(net, optimizer)
    other = copy.deepcopy(net)
    assert len(optimizer.follow(other).carried) == 4
    step(other, optimizer)
    step_twice = model()
    expected = steprule.AdamW(step_twice, lr=0.1)
    for _ in range(2):
        step(step_twice, expected)
    for p, q in zip(other.parameters(), step_twice.parameters(), strict=True):
        assert torch.equal(p, q)


def test_parameters_of_another_module_stay() -> None:
    first, second = model(), nn.Linear(2, 2)
    optimizer = steprule.SGD(first, lr=0.1)
    optimizer.add([("head.weight", second.weight)])
    new_head(first)
    optimizer.follow(first)
    assert any(p is second.weight for group in optimizer.param_groups for p in group["params"])


def test_without_names_it_says_what_to_do() -> None:
    net = model()
    optimizer = steprule.SGD(list(net.parameters()), lr=0.1)
    assert optimizer.follow(net) == ([], [], [])
    other = model()
    with pytest.raises(ValueError, match="does not know its parameters by name"):
        optimizer.follow(other)
