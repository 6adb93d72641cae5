"""Optimizer.from_torch: a live torch.optim optimizer's groups and state go on as ours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from training import train

import steprule
from steprule import Optimizer

ALGORITHMS = ["SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "Adamax", "NAdam", "RAdam", "Adadelta", "Rprop", "ASGD"]
ALGORITHMS.append("Adafactor")


INPUTS = torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 4)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def groups(net: nn.Module) -> list[dict[str, Any]]:
    named = list(net.named_parameters())
    return [{"params": named[:2], "lr": 0.02}, {"params": named[2:], "lr": 0.01, "initial_lr": 0.5}]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_goes_on_as_torch_would(name: str) -> None:
    ours, theirs = model(), model()
    peer = getattr(torch.optim, name)(groups(theirs))
    train(theirs, peer, [INPUTS] * 8)
    old = getattr(torch.optim, name)(groups(ours))
    train(ours, old, [INPUTS] * 4)
    new = Optimizer.from_torch(old)
    assert type(new) is getattr(steprule, name)
    train(ours, new, [INPUTS] * 4)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)


def test_groups_keep_their_parameters_names_and_numbers() -> None:
    net = model()
    old = torch.optim.AdamW(groups(net), weight_decay=0.3, maximize=True)
    new = steprule.AdamW.from_torch(old)
    for mine, other in zip(new.param_groups, old.param_groups, strict=True):
        assert all(p is q for p, q in zip(mine["params"], other["params"], strict=True))
        for key in ("param_names", "lr", "weight_decay", "maximize", "betas"):
            assert mine[key] == other[key]
    assert new.param_groups[1]["initial_lr"] == 0.5


def test_the_state_is_taken_over_and_not_copied() -> None:
    net = model()
    old = torch.optim.Adam(net.parameters(), lr=0.01)
    train(net, old, [INPUTS] * 2)
    new = Optimizer.from_torch(old)
    first = next(net.parameters())
    assert new.state[first]["exp_avg"].data_ptr() == old.state[first]["exp_avg"].data_ptr()
    assert new.state[first]["step"] == 2


def test_a_changed_rate_and_a_later_group_come_along() -> None:
    net = model()
    old = torch.optim.SGD(net[0].parameters(), lr=0.1, momentum=0.9)
    old.param_groups[0]["lr"] = 0.025
    old.add_param_group({"params": list(net[2].parameters()), "lr": 0.5, "nesterov": True})
    new = Optimizer.from_torch(old)
    assert [group["lr"] for group in new.param_groups] == [0.025, 0.5]
    assert [group["nesterov"] for group in new.param_groups] == [False, True]


def test_another_algorithm_is_refused() -> None:
    weight = torch.ones(2, requires_grad=True)
    with pytest.raises(TypeError, match=r"AdamW\.from_torch\(\) takes no torch\.optim\.sgd\.SGD"):
        steprule.AdamW.from_torch(torch.optim.SGD([weight], lr=0.1))

    class Own(torch.optim.SGD):
        pass

    with pytest.raises(TypeError, match="Own"):
        Optimizer.from_torch(Own([weight], lr=0.1))


def test_a_fused_optimizer_whose_counts_are_on_the_device() -> None:
    weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
    peer = torch.ones(3, dtype=torch.float64, requires_grad=True)
    optimizers = [torch.optim.Adam([p], lr=0.1, fused=True) for p in (weight, peer)]
    for _ in range(2):
        for p, optimizer in zip((weight, peer), optimizers, strict=True):
            p.grad = p.detach() * 2
            optimizer.step()
    new = Optimizer.from_torch(optimizers[0])
    weight.grad, peer.grad = weight.detach() * 2, peer.detach() * 2
    new.step()
    optimizers[1].step()
    torch.testing.assert_close(weight, peer, rtol=1e-12, atol=0)


def test_a_fused_optimizer_stays_fused() -> None:
    weight = torch.ones(3, requires_grad=True)
    for fused in (True, False, None):
        new = Optimizer.from_torch(torch.optim.AdamW([weight], lr=0.1, fused=fused))
        assert bool(new.defaults["fused"]) is bool(new.param_groups[0]["fused"]) is bool(fused)
        assert new._step_supports_amp_scaling is bool(fused)
    assert Optimizer.from_torch(torch.optim.Adam([weight], capturable=True)).defaults["capturable"]
