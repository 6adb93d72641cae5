"""The LeNet of 3x32x32: rates for modules and layers, rates that change, an SGD written anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tensors import grad_of
from torch import Tensor, nn

import steprule as optim


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2, 2),
            nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2, 2),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Linear(16 * 5 * 5, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.features(x).view(-1, 16 * 5 * 5))
        return scores


@pytest.fixture
def net() -> LeNet:
    torch.manual_seed(0)
    return LeNet()


def values(net: nn.Module) -> list[Tensor]:
    return [weight.detach().clone() for weight in net.parameters()]


def backward(net: nn.Module) -> None:
    """The article's gradient: of half the squared output, for a random image."""
    net.zero_grad()
    output = net(torch.randn(1, 3, 32, 32))
    output.backward(output)


def test_the_usual_step(net: LeNet) -> None:
    optimizer = optim.SGD(params=net.parameters(), lr=1)
    backward(net)
    before, gradients = values(net), [grad_of(weight).clone() for weight in net.parameters()]

    optimizer.step()

    assert len(before) == 10
    for weight, old, gradient in zip(net.parameters(), before, gradients, strict=True):
        assert gradient.abs().max() > 0
        torch.testing.assert_close(weight.detach(), old - gradient, rtol=1e-6, atol=1e-7)


def test_zero_grad_of_the_optimizer_and_of_the_model_do_the_same(net: LeNet) -> None:
    optimizer = optim.SGD(net.parameters(), lr=1)
    backward(net)
    optimizer.zero_grad()
    assert all(weight.grad is None for weight in net.parameters())

    backward(net)
    net.zero_grad()
    before = values(net)
    optimizer.step()
    assert all(torch.equal(*pair) for pair in zip(values(net), before, strict=True))


def moved_by(net: LeNet, optimizer: Any) -> dict[str, float]:
    """How far a step with a gradient of ones moves each parameter."""
    before = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    for weight in net.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    return {name: (before[name] - weight.detach()).mean().item() for name, weight in net.named_parameters()}


def test_a_rate_for_each_sub_module(net: LeNet) -> None:
    optimizer = optim.SGD(
        [{"params": net.features.parameters()}, {"params": net.classifier.parameters(), "lr": 1e-2}], lr=1e-5
    )

    assert [len(group["params"]) for group in optimizer.param_groups] == [4, 6]
    for name, distance in moved_by(net, optimizer).items():
        assert distance == pytest.approx(1e-2 if name.startswith("classifier") else 1e-5, rel=0.02)


def test_a_rate_for_single_layers(net: LeNet) -> None:
    special_layers = nn.ModuleList([net.classifier[0], net.classifier[3]])  # the second is a ReLU
    special = [id(weight) for weight in special_layers.parameters()]
    base = filter(lambda weight: id(weight) not in special, net.parameters())
    optimizer = optim.SGD([{"params": base}, {"params": special_layers.parameters(), "lr": 0.01}], lr=0.001)

    assert [len(group["params"]) for group in optimizer.param_groups] == [8, 2]
    for name, distance in moved_by(net, optimizer).items():
        assert distance == pytest.approx(0.01 if name.startswith("classifier.0") else 0.001, rel=1e-3)


def test_a_group_tells_its_options(net: LeNet) -> None:
    optimizer = optim.SGD(net.parameters(), lr=0.1)

    [group] = optimizer.param_groups
    assert group["lr"] == 0.1
    assert group.keys() >= {"params", "lr", "momentum", "dampening", "weight_decay", "nesterov"}


def momentum_of(net: LeNet, optimizer: Any) -> list[Tensor]:
    return [optimizer.state[weight]["momentum_buffer"] for weight in net.parameters()]


def test_a_changed_rate_keeps_momentum_and_a_new_optimizer_loses_it(net: LeNet) -> None:
    optimizer = optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    for _ in range(3):
        moved_by(net, optimizer)
    assert momentum_of(net, optimizer)[0].mean().item() == pytest.approx(2.71, rel=1e-6)  # 1 + 0.9 + 0.81

    optimizer.param_groups[0]["lr"] = 1e-4
    distance = moved_by(net, optimizer)
    assert momentum_of(net, optimizer)[0].mean().item() == pytest.approx(3.439, rel=1e-6)
    assert distance["classifier.4.bias"] == pytest.approx(3.439e-4, rel=1e-3)

    old_lr = 0.1
    optimizer = optim.SGD(
        [{"params": net.features.parameters()}, {"params": net.classifier.parameters(), "lr": old_lr * 0.1}],
        lr=1e-5,
        momentum=0.9,
    )
    assert len(optimizer.state) == 0
    distance = moved_by(net, optimizer)
    assert momentum_of(net, optimizer)[0].mean().item() == 1.0
    assert distance["classifier.4.bias"] == pytest.approx(0.01, rel=1e-4)


def test_lenet_trains_as_with_torch(net: LeNet) -> None:
    other = LeNet()
    other.load_state_dict(net.state_dict())

    def build(library: Any, model: LeNet) -> Any:
        return library.SGD(
            [{"params": model.features.parameters()}, {"params": model.classifier.parameters(), "lr": 1e-2}],
            lr=1e-3,
            momentum=0.9,
            nesterov=True,
            weight_decay=1e-3,
        )

    pairs = [(net, build(optim, net)), (other, build(torch.optim, other))]
    for step in range(20):
        for model, optimizer in pairs:
            torch.manual_seed(step)
            backward(model)
            optimizer.step()
            for group in optimizer.param_groups:
                group["lr"] *= 0.95

    for ours, torchs in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-5, atol=1e-7)


# The SGD that the article writes again, to have an L1 penalty beside the L2 penalty.


class PenaltySGD(optim.Optimizer):
    def __init__(
        self,
        params: Any,
        lr: float,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay1: float = 0.0,
        weight_decay2: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay1": weight_decay1,
                "weight_decay2": weight_decay2,
                "nesterov": nesterov,
            },
        )

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        from steprule.rule import sign, where

        if h.weight_decay1:
            g = g + h.weight_decay1 * sign(p)
        if h.weight_decay2:
            g = g + h.weight_decay2 * p
        if h.momentum:
            s.momentum_buffer = where(s.is_new, g, h.momentum * s.momentum_buffer + (1 - h.dampening) * g)
            g = g + h.momentum * s.momentum_buffer if h.nesterov else s.momentum_buffer
        return p - h.lr * g


Gradient = Callable[[np.ndarray, int], np.ndarray]


def plain_loop(
    w: np.ndarray,
    gradient: Gradient,
    steps: int,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay1: float = 0.0,
    weight_decay2: float = 0.0,
    nesterov: bool = False,
) -> np.ndarray:
    """The article's step, on numpy arrays."""
    buffer = None
    for step in range(steps):
        d_p = gradient(w, step) + weight_decay1 * np.sign(w) + weight_decay2 * w
        if momentum != 0:
            buffer = d_p if buffer is None else buffer * momentum + (1 - dampening) * d_p
            d_p = d_p + momentum * buffer if nesterov else buffer
        w = w - lr * d_p
    return w


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay1": 0.03},
        {"weight_decay2": 0.05},
        {"weight_decay1": 0.03, "weight_decay2": 0.05, "momentum": 0.9},
        {"weight_decay1": 0.03, "momentum": 0.8, "dampening": 0.2},
        {"weight_decay1": 0.03, "weight_decay2": 0.05, "momentum": 0.9, "nesterov": True},
    ],
)
def test_the_rewritten_sgd_is_the_plain_loop(options: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    start, target = rng.normal(size=(2, 5, 7))
    start[0] = 0.0  # the L1 penalty pulls on nothing that is zero
    weight = torch.from_numpy(start.copy()).requires_grad_()
    optimizer = PenaltySGD([weight], lr=0.05, **options)
    for step in range(30):
        weight.grad = weight.detach() - torch.from_numpy(target) * step / 10
        optimizer.step()

    expected = plain_loop(start, lambda w, step: w - target * step / 10, 30, lr=0.05, **options)
    np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=1e-12, atol=1e-14)


def test_the_rewritten_sgd_refuses_nesterov_without_momentum() -> None:
    with pytest.raises(ValueError, match="Nesterov momentum requires a momentum and zero dampening"):
        PenaltySGD([torch.ones(2, requires_grad=True)], lr=0.1, nesterov=True)
