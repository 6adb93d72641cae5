"""What a reading of torch's optimizers shows: checks, state dictionaries, SGD's formula, groups by name."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import steprule as optim


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


# The constructor and add_param_group check what they are given.


@pytest.mark.parametrize(
    ("construct", "error", "message"),
    [
        (lambda: optim.SGD(leaf(2), lr=0.1), TypeError, "iterable of Tensors or dicts"),
        (lambda: optim.SGD([], lr=0.1), ValueError, "empty parameter list"),
        (lambda: optim.SGD([leaf(2) * 2], lr=0.1), ValueError, "can't optimize a non-leaf Tensor"),
        (lambda: optim.SGD([3.0], lr=0.1), TypeError, "optimizer can only optimize Tensors"),
        (lambda: optim.SGD([leaf(2)], lr=-0.1), ValueError, "Invalid learning rate"),
        (lambda: optim.SGD([leaf(2)], momentum=-0.9), ValueError, "Invalid momentum value"),
        (lambda: optim.SGD([leaf(2)], weight_decay=-1), ValueError, "Invalid weight_decay value"),
        (lambda: optim.SGD([leaf(2)], nesterov=True), ValueError, "Nesterov momentum requires a momentum"),
        (
            lambda: optim.SGD([leaf(2)], momentum=0.9, dampening=0.1, nesterov=True),
            ValueError,
            "zero dampening",
        ),
        (lambda: optim.SGD([{"params": {leaf(2)}}]), TypeError, "ordered collections"),
    ],
)
def test_the_constructor_refuses(construct: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        construct()


def test_a_parameter_belongs_to_one_group() -> None:
    weight = leaf(2)
    optimizer = optim.SGD([weight], lr=0.1)

    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        optimizer.add_param_group({"params": [leaf(3), weight]})

    assert len(optimizer.param_groups) == 1


def test_a_group_takes_what_it_does_not_say_from_the_defaults() -> None:
    optimizer = optim.SGD(
        [{"params": leaf(2)}, {"params": (leaf(3) for _ in range(2)), "lr": 1.0}], lr=0.1, momentum=0.5
    )

    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 2]
    assert [(group["lr"], group["momentum"]) for group in optimizer.param_groups] == [(0.1, 0.5), (1.0, 0.5)]


# State dictionaries.


def test_loading_checks_the_groups_first() -> None:
    saved = optim.SGD([leaf(2), leaf(3)], lr=0.1).state_dict()
    weights = [leaf(2), leaf(3)]

    two_groups = optim.SGD([{"params": weights[0]}, {"params": weights[1]}], lr=0.5)
    with pytest.raises(ValueError, match="different number of parameter groups"):
        two_groups.load_state_dict(saved)

    one_tensor = optim.SGD(weights[:1], lr=0.5)
    with pytest.raises(ValueError, match="doesn't match the size of optimizer's group"):
        one_tensor.load_state_dict(saved)

    assert two_groups.param_groups[0]["lr"] == one_tensor.param_groups[0]["lr"] == 0.5


def test_loading_brings_the_state_to_the_dtype_of_its_parameter() -> None:
    double = torch.ones(2, dtype=torch.float64, requires_grad=True)
    double.grad = torch.full_like(double, 0.5)
    saving = optim.SGD([double], lr=0.1, momentum=0.9)
    saving.step()
    single = torch.ones(2, requires_grad=True)

    loading = optim.SGD([single], lr=0.1, momentum=0.9)
    loading.load_state_dict(saving.state_dict())

    torch.testing.assert_close(loading.state[single]["momentum_buffer"], torch.full((2,), 0.5))


# SGD: v = m v + (1 - dampening) g, and w = w - lr v, or with Nesterov w - lr (g + m v); the first v is g.


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize(
    ("momentum", "dampening", "nesterov"),
    [(0.0, 0.0, False), (0.9, 0.0, False), (0.9, 0.3, False), (0.9, 0.0, True)],
)
def test_sgd_is_its_formula(momentum: float, dampening: float, nesterov: bool, weight_decay: float) -> None:
    weight = torch.linspace(-1, 2, 7, dtype=torch.float64, requires_grad=True)
    w = weight.detach().numpy().copy()
    optimizer = optim.SGD(
        [weight], lr=0.1, momentum=momentum, dampening=dampening, weight_decay=weight_decay, nesterov=nesterov
    )
    v: np.ndarray | None = None
    for step in range(20):
        optimizer.zero_grad()
        (weight - step / 10).pow(2).sum().backward()
        optimizer.step()

        g = 2 * (w - step / 10) + weight_decay * w
        if momentum:
            v = g if v is None else momentum * v + (1 - dampening) * g
            g = g + momentum * v if nesterov else v
        w = w - 0.1 * g

    np.testing.assert_allclose(weight.detach().numpy(), w, rtol=1e-12)


# Decay for some layers only, chosen by name.


class MobileBlock(nn.Module):
    """One block with the names that the article asks for: conv1, bn1, dwconv, pwconv, fc."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.dwconv = nn.Conv2d(4, 4, 3, groups=4, bias=False)
        self.pwconv = nn.Conv2d(4, 6, 1, bias=False)
        self.fc = nn.Linear(6, 5)


def test_decay_by_name() -> None:
    torch.manual_seed(0)
    model = MobileBlock()
    decays = {name: any(part in name for part in ("fc", "conv1", "pwconv")) for name, _ in model.named_parameters()}
    others = [weight for name, weight in model.named_parameters() if not decays[name]]
    decayed = [weight for name, weight in model.named_parameters() if decays[name]]
    optimizer = optim.SGD([{"params": others}, {"params": decayed, "weight_decay": 0.5}], 0.1, momentum=0.9)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)

    optimizer.step()

    assert [name for name, decay in decays.items() if decay] == [
        "conv1.weight",
        "pwconv.weight",
        "fc.weight",
        "fc.bias",
    ]
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.detach(), before[name] * (0.95 if decays[name] else 1.0))


# Convolution, BatchNorm and Linear in two groups.


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1), nn.ReLU(inplace=True))
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.fc(self.conv(x).view(-1, 4))
        return scores


PRINTED = [
    torch.tensor([[[[-0.0003]]]]),
    torch.tensor([-0.1267]),
    torch.tensor([-0.2534]),
    torch.tensor(
        [
            [2.7221e-01, 5.9235e-01, 1.5873e-06, 5.2255e-07],
            [-2.7221e-01, -5.9235e-01, -4.2629e-06, -4.6668e-06],
        ]
    ),
    torch.tensor([0.5391, -0.5391]),
]
LAST_DIGIT = [1e-4, 1e-4, 1e-4, torch.tensor([[1e-5, 1e-5, 1e-10, 1e-11], [1e-5, 1e-5, 1e-10, 1e-10]]), 1e-4]


def test_conv_batchnorm_linear_leaves_the_five_buffers_that_are_printed() -> None:
    model = Net()
    # The article draws without a seed: these are a model and an input that its numbers imply.
    with torch.no_grad():
        model.get_parameter("conv.0.weight").fill_(0.37)
        model.fc.weight.copy_(torch.tensor([[-0.4739, 0.0039, 0.15873, 0.052255], [0.0, 0.0, -0.42629, -0.46668]]))
        model.fc.bias.copy_(torch.tensor([0.39172, 0.0]))
    x = torch.tensor([[[[0.79539, 0.96638], [0.64659, 0.19164]]]])
    optimizer = optim.SGD(
        [{"params": model.conv.parameters(), "lr": 0.01}, {"params": model.fc.parameters(), "lr": 0.02}],
        momentum=0.9,
        weight_decay=1e-5,
    )

    optimizer.zero_grad()
    cross_entropy(model(x), torch.tensor([1])).backward()
    optimizer.step()

    saved = optimizer.state_dict()
    assert saved.keys() >= {"state", "param_groups"}
    assert [len(group["params"]) for group in saved["param_groups"]] == [3, 2]
    assert [group["lr"] for group in saved["param_groups"]] == [0.01, 0.02]
    shared = {"momentum": 0.9, "dampening": 0, "weight_decay": 1e-5, "nesterov": False}
    for group in saved["param_groups"]:
        assert {name: group[name] for name in shared} == shared
    keys = [key for group in saved["param_groups"] for key in group["params"]]
    assert list(saved["state"]) == keys
    for key, printed, digit in zip(keys, PRINTED, LAST_DIGIT, strict=True):
        buffer = saved["state"][key]["momentum_buffer"]
        assert buffer.shape == printed.shape
        assert torch.all((buffer - printed).abs() <= torch.as_tensor(digit) / 2), buffer


def test_conv_batchnorm_linear_trains_as_with_torch() -> None:
    torch.manual_seed(3)
    models = [Net(), Net()]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [
        library.SGD(
            [{"params": model.conv.parameters(), "lr": 0.01}, {"params": model.fc.parameters(), "lr": 0.02}],
            momentum=0.9,
            weight_decay=1e-5,
        )
        for library, model in zip((optim, torch.optim), models, strict=True)
    ]
    for _ in range(20):
        x, y = torch.rand(3, 1, 2, 2), torch.randint(2, (3,))
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()

    for ours, torchs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-5, atol=1e-6)


# Word vectors: each word predicts the next one.

HAMLET = """
The king doth wake to-night and takes his rouse,
Keeps wassail, and the swaggering up-spring reels;
And, as he drains his draughts of Rhenish down,
The kettle-drum and trumpet thus bray out
The triumph of his pledge. The king doth wake.
"""
STOP_WORDS = {"the", "and", "his", "to", "as", "he", "of", "out", "doth", "thus", "down"}


def test_word_vectors() -> None:
    words = [word for word in re.findall(r"[a-z]+", HAMLET.lower()) if word not in STOP_WORDS]
    vocabulary = sorted(set(words))
    numbers = torch.tensor([vocabulary.index(word) for word in words])
    torch.manual_seed(0)
    # A word's vector is its scores of the word that follows: at least as many numbers as there are words.
    model = nn.Embedding(len(vocabulary), 100)
    vectors = model.weight.detach().double().numpy().copy()
    first_vectors = vectors.copy()
    optimizer = optim.SGD(model.parameters(), lr=0.05)
    epoch_losses = []

    for _ in range(60):
        losses = []
        for word, following in pairwise(numbers):
            loss = cross_entropy(model(word.view(1)), following.view(1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())

            softmax = np.exp(vectors[word]) / np.exp(vectors[word]).sum()
            vectors[word] -= 0.05 * (softmax - np.eye(100)[following])
        epoch_losses.append(math.fsum(losses) / len(losses))

    king, wake = vocabulary.index("king"), vocabulary.index("wake")
    assert model(torch.tensor([king])).shape == (1, 100)
    np.testing.assert_allclose(model.weight.detach().numpy(), vectors, rtol=1e-4, atol=1e-5)
    assert all(later < earlier for earlier, later in pairwise(epoch_losses))
    # A word is followed by "wake" only after "king", which comes twice.
    assert (vectors - first_vectors)[:, wake].argmax() == king
