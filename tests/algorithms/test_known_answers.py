"""Every algorithm finds minima that are known: of a quadratic, of Rosenbrock's valley, of a logistic regression."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from every_algorithm import ALGORITHMS
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from tensors import grad_of
from torch import Tensor
from torch.nn.functional import cross_entropy

import steprule
from steprule.schedules import Schedule, constant, cosine, warmup


class Way(NamedTuple):
    """How an algorithm goes about a problem.

    Attributes:
        lr: the largest rate.
        steps: how many.
        options: its other hyperparameters.
        shape: the rate over the steps, as a factor; None for a cosine.
    """

    lr: float
    steps: int = 400
    options: dict[str, Any] = {}  # noqa: RUF012
    shape: Schedule | None = None


MOMENTUM, NO_DECAY, SEARCH = {"momentum": 0.9}, {"weight_decay": 0.0}, {"line_search_fn": "strong_wolfe"}

QUADRATIC = {
    "SGD": Way(0.03, options=MOMENTUM),
    "Adam": Way(0.3),
    "AdamW": Way(0.3, options=NO_DECAY),
    "Adagrad": Way(1.0),
    "RMSprop": Way(0.1),
    "Adamax": Way(0.3),
    "NAdam": Way(0.3),
    "RAdam": Way(0.3),
    "Adadelta": Way(300.0),
    "Rprop": Way(0.01),
    "ASGD": Way(0.1, options={"lambd": 0.0}),
    "SparseAdam": Way(0.3),
    "Adafactor": Way(0.3),
    "LBFGS": Way(1.0, 10, SEARCH, constant(1.0)),
    "Muon": Way(0.1, options=NO_DECAY),
    "Lion": Way(0.03),
    "Lamb": Way(0.03, options=NO_DECAY),
}

LATER = {
    "ADOPT": Way(1.0),
    "AdaBound": Way(0.3),
    "AdaGC": Way(0.1, 200, options=NO_DECAY),
    "AdamMini": Way(0.3, 200),
    "AdamP": Way(0.3, 200),
    "CAME": Way(0.03, 200),
    "DAdaptAdam": Way(1.0, 200),
    "DAdaptLion": Way(0.3, options={"betas": (0.9, 0.9)}),
    "DAdaptSGD": Way(1.0),
    "LARS": Way(0.03, 200, options={"trust_coefficient": 0.1}),
    "NovoGrad": Way(0.1),
    "Prodigy": Way(1.0, 200),
    "SGDP": Way(0.1, 200),
    "Signum": Way(0.03),
    "Sophia": Way(0.3, options={"rho": 0.1, "k": 1, "bs": 1, **NO_DECAY}),
    "StableSPAM": Way(0.03, 200),
    "Tiger": Way(0.03, options={"beta": 0.9, **NO_DECAY}),
    "AdEMAMix": Way(1.0),
    "AdaBelief": Way(0.3),
    "Adan": Way(1.0),
    "LaProp": Way(0.3),
    "MADGRAD": Way(0.3),
    "MARS": Way(0.3, 200),
    "QHAdam": Way(0.3),
    "RMSpropTF": Way(0.1),
    "Ranger": Way(0.3),
    "ScheduleFreeAdamW": Way(1.0),
    "ScheduleFreeRAdam": Way(3.0),
    "ScheduleFreeSGD": Way(1.0),
    "SimplifiedAdEMAMix": Way(0.03, options={"betas": (0.9, 0.95)}),
    "StableAdamW": Way(0.3, 200, options=NO_DECAY),
    "Yogi": Way(0.3),
    "AdaMuon": Way(0.1),
    "Apollo": Way(0.3, 200),
    "Dion": Way(0.1, options=NO_DECAY),
    "GaLore": Way(1.0, 200),
    "Kron": Way(0.03),
    "NorMuon": Way(0.1),
    "SOAP": Way(0.3, options=NO_DECAY),
    "Scion": Way(0.03, options={"unconstrained": True}),
    "Shampoo": Way(0.03, 200),
}
"""Those that are held against a reference in tests/parity: they go through the quadratic alone."""

LOGISTIC = QUADRATIC | {
    "SGD": Way(1.0, options=MOMENTUM),
    "Adagrad": Way(3.0),
    "Adamax": Way(3.0),
    "RAdam": Way(1.0),
    "ASGD": Way(3.0, options={"lambd": 0.0}),
    "Adafactor": Way(1.0),
    "Lion": Way(0.1),
    "Lamb": Way(0.1, options=NO_DECAY),
}

ROSENBROCK = {
    "SGD": Way(1e-3, 1500, MOMENTUM),
    "Adam": Way(0.3, 1500),
    "AdamW": Way(0.3, 1500, NO_DECAY),
    "Adagrad": Way(1.0, 1500, shape=constant(1.0)),
    "RMSprop": Way(0.02, 1500),
    "Adamax": Way(1.0, 1500),
    "NAdam": Way(0.1, 1500),
    "RAdam": Way(0.1, 1500, {"betas": (0.9, 0.99)}, warmup(300).then(cosine(1200))),
    "Adadelta": Way(3.0, 1500),
    "Rprop": Way(0.01, 1500),
    "ASGD": Way(2e-3, 1500, {"lambd": 0.0}, constant(1.0)),
    "SparseAdam": Way(0.3, 1500),
    "Adafactor": Way(0.1, 1500),
    "LBFGS": Way(1.0, 10, SEARCH, constant(1.0)),
    "Lion": Way(0.01, 1500),
    "Lamb": Way(0.1, 1500, NO_DECAY),
}


def minimized(name: str, loss: Callable[[Tensor], Tensor], start: Tensor, way: Way) -> Tensor:
    x = start.clone().requires_grad_()
    rate = way.lr * (cosine(way.steps) if way.shape is None else way.shape)
    optimizer = getattr(steprule, name)([x], lr=rate, **way.options)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(x)
        value.backward()
        if name == "SparseAdam":
            x.grad = grad_of(x).to_sparse(1)
        return value

    for _ in range(way.steps):
        optimizer.step(closure)
    return x.detach()


def test_every_algorithm_is_here() -> None:
    # two numbers are no matrix
    assert set(QUADRATIC) == set(LOGISTIC) == set(ROSENBROCK) | {"Muon"} == set(ALGORITHMS) - set(LATER)


@pytest.mark.parametrize("name", [*QUADRATIC, *LATER])
def test_a_quadratic(name: str) -> None:
    curvature = torch.arange(1.0, 21.0, dtype=torch.float64).view(4, 5)
    answer = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return (curvature * (x - answer).square()).sum() / 2

    found = minimized(name, loss, torch.zeros_like(answer), {**QUADRATIC, **LATER}[name])
    torch.testing.assert_close(found, answer, rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", ROSENBROCK)
def test_rosenbrocks_valley(name: str) -> None:
    def loss(x: Tensor) -> Tensor:
        return (1 - x[0]).square() + 100 * (x[1] - x[0].square()).square()

    start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    found = minimized(name, loss, start, ROSENBROCK[name])
    assert loss(start) > 24
    assert loss(found) < 0.05
    torch.testing.assert_close(found, torch.ones_like(found), rtol=0, atol=0.4)


@pytest.fixture(scope="module")
def flowers() -> tuple[Tensor, Tensor, Tensor]:
    """Measures and kinds of irises, and scikit-learn's solution: weights and bias for each kind."""
    measures, kinds = load_iris(return_X_y=True)
    measures = (measures - measures.mean(0)) / measures.std(0)
    solution = LogisticRegression(C=1.0, tol=1e-12, max_iter=10_000).fit(measures, kinds)
    answer = np.hstack([solution.coef_, solution.intercept_[:, None]])
    return torch.from_numpy(measures), torch.from_numpy(kinds), torch.from_numpy(answer)


@pytest.mark.parametrize("name", LOGISTIC)
def test_logistic_regression_as_scikit_learn_solves_it(name: str, flowers: tuple[Tensor, Tensor, Tensor]) -> None:
    measures, kinds, answer = flowers

    def loss(x: Tensor) -> Tensor:
        scores = measures @ x[:, :4].T + x[:, 4]
        return (cross_entropy(scores, kinds, reduction="sum") + x[:, :4].square().sum() / 2) / len(kinds)

    found = minimized(name, loss, torch.zeros_like(answer), LOGISTIC[name])
    found = found - found.mean(0)  # a number added to all kinds' scores changes nothing
    torch.testing.assert_close(found, answer, rtol=0, atol=0.05)
