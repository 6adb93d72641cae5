"""One training step through Linear, softmax and cross-entropy, from modules and autograd to the update."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softmax

import steprule as optim


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, features: Tensor) -> Tensor:
        return softmax(self.linear(features), dim=1)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def test_autograd_fills_the_gradient_that_the_optimizer_reads() -> None:
    x = torch.ones(1, 1, requires_grad=True)
    optimizer = optim.SGD([x], lr=0.25)
    y = x + 2
    assert x.grad is None
    optimizer.step()  # without a gradient nothing moves
    assert x.item() == 1

    y.backward()

    assert x.grad.item() == 1  # dy/dx
    optimizer.step()
    assert x.item() == 0.75


def test_a_module_registers_what_the_optimizer_gets(net: Net) -> None:
    optimizer = optim.SGD(net.parameters(), lr=0.001)

    assert list(net._modules) == ["linear"]
    assert list(net.linear._parameters) == ["weight", "bias"]
    [group] = optimizer.param_groups
    assert group["params"][0] is net.linear.weight
    assert group["params"][1] is net.linear.bias


def gradient_by_hand(features: np.ndarray, target: np.ndarray, net: Net) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of weight and bias, by the chain rule through cross-entropy, softmax and Linear."""

    def soft(scores: np.ndarray) -> np.ndarray:
        powers = np.exp(scores)
        return powers / powers.sum(1, keepdims=True)

    weight, bias = (tensor.detach().double().numpy() for tensor in (net.linear.weight, net.linear.bias))
    out = soft(features @ weight.T + bias)
    of_out = (soft(out) - np.eye(2)[target]) / len(target)
    of_scores = out * (of_out - (of_out * out).sum(1, keepdims=True))
    return of_scores.T @ features, of_scores.sum(0)


def test_one_step(net: Net) -> None:
    sgd = optim.SGD(net.parameters(), lr=0.001)
    features = torch.randn(3, 4, requires_grad=True)
    target = torch.tensor([1, 0, 1])
    weight, bias = (tensor.detach().double().numpy().copy() for tensor in net.parameters())
    of_weight, of_bias = gradient_by_hand(features.detach().double().numpy(), target.numpy(), net)

    sgd.zero_grad()
    loss = cross_entropy(net(features), target)
    loss.backward()
    sgd.step()

    np.testing.assert_allclose(net.linear.weight.detach().numpy(), weight - 0.001 * of_weight, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(net.linear.bias.detach().numpy(), bias - 0.001 * of_bias, rtol=1e-6, atol=1e-7)
    assert cross_entropy(net(features), target) < loss  # the step changed the network itself


def test_momentum_weight_decay_and_closure(net: Net) -> None:
    sgd = optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    features, target = torch.randn(3, 4), torch.tensor([1, 0, 1])
    expected = [tensor.detach().double().numpy().copy() for tensor in net.parameters()]
    buffers: list[np.ndarray] | None = None
    losses = []

    def closure() -> Tensor:
        sgd.zero_grad()
        loss = cross_entropy(net(features), target)
        loss.backward()
        return loss

    for _ in range(10):
        gradients = gradient_by_hand(features.double().numpy(), target.numpy(), net)
        decayed = [g + 0.01 * w for g, w in zip(gradients, expected, strict=True)]
        buffers = decayed if buffers is None else [0.9 * b + d for b, d in zip(buffers, decayed, strict=True)]
        expected = [w - 0.1 * b for w, b in zip(expected, buffers, strict=True)]
        losses.append(sgd.step(closure).item())

    for tensor, value in zip(net.parameters(), expected, strict=True):
        np.testing.assert_allclose(tensor.detach().numpy(), value, rtol=1e-5, atol=1e-6)
    assert losses == sorted(losses, reverse=True)


def test_the_step_is_for_algorithms_to_write() -> None:
    class Nothing(optim.Optimizer):
        pass

    optimizer = Nothing([torch.ones(2, requires_grad=True)], {})

    with pytest.raises(NotImplementedError):
        optimizer.step()
