"""torch's schedulers on steprule.SGD: rate for rate and weight for weight what they do on torch's SGD."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler, swa_utils
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiplicativeLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from torch.optim.swa_utils import SWALR

import steprule

STEPS = 50

BUILDERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda optimizer: LambdaLR(optimizer, [lambda epoch: 0.95**epoch, lambda epoch: 1 / (1 + epoch)]),
    "MultiplicativeLR": lambda optimizer: MultiplicativeLR(optimizer, lambda epoch: 0.97),
    "StepLR": lambda optimizer: StepLR(optimizer, step_size=7, gamma=0.5),
    "MultiStepLR": lambda optimizer: MultiStepLR(optimizer, milestones=[5, 20, 21], gamma=0.3),
    "ConstantLR": lambda optimizer: ConstantLR(optimizer, factor=0.25, total_iters=11),
    "LinearLR": lambda optimizer: LinearLR(optimizer, start_factor=0.1, total_iters=15),
    "ExponentialLR": lambda optimizer: ExponentialLR(optimizer, gamma=0.93),
    "SequentialLR": lambda optimizer: SequentialLR(
        optimizer,
        [
            LinearLR(optimizer, 0.2, total_iters=8),
            CosineAnnealingLR(optimizer, 20),
            ExponentialLR(optimizer, 0.9),
        ],
        milestones=[8, 28],
    ),
    "CosineAnnealingLR": lambda optimizer: CosineAnnealingLR(optimizer, T_max=17, eta_min=1e-3),
    "ChainedScheduler": lambda optimizer: ChainedScheduler(
        [ConstantLR(optimizer, 0.1, total_iters=10), ExponentialLR(optimizer, 0.95)], optimizer
    ),
    "ReduceLROnPlateau": lambda optimizer: ReduceLROnPlateau(optimizer, factor=0.5, patience=3, cooldown=1),
    "CyclicLR": lambda optimizer: CyclicLR(optimizer, [1e-3, 1e-2], 0.1, step_size_up=6, mode="triangular2"),
    "CosineAnnealingWarmRestarts": lambda optimizer: CosineAnnealingWarmRestarts(optimizer, T_0=6, T_mult=2),
    "OneCycleLR": lambda optimizer: OneCycleLR(optimizer, max_lr=[0.1, 0.05], total_steps=STEPS + 1),
    "PolynomialLR": lambda optimizer: PolynomialLR(optimizer, total_iters=30, power=2.0),
    "SWALR": lambda optimizer: SWALR(optimizer, swa_lr=[0.02, 0.001], anneal_epochs=12),  # type: ignore[arg-type]
}
CYCLES_MOMENTUM = {"CyclicLR", "OneCycleLR"}


def test_no_scheduler_of_torch_is_forgotten() -> None:
    schedulers = {
        name
        for module in (lr_scheduler, swa_utils)
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, LRScheduler) and not name.startswith("_")
    }

    assert schedulers - {"LRScheduler"} == BUILDERS.keys()
    assert set(lr_scheduler.__all__) <= schedulers


class Run:
    """A small float64 problem with two groups, its optimizer and its scheduler."""

    def __init__(self, library: ModuleType, build: Callable[[Any], Any], tensor_lr: bool = False) -> None:
        first = torch.linspace(-1, 1, 24, dtype=torch.float64).view(4, 6)
        second = torch.linspace(2, 3, 5, dtype=torch.float64)
        self.weights = [first.clone().requires_grad_(), second.clone().requires_grad_()]
        rates = [torch.tensor(lr, dtype=torch.float64) if tensor_lr else lr for lr in (0.05, 0.01)]
        groups = [{"params": [weight], "lr": lr} for weight, lr in zip(self.weights, rates, strict=True)]
        self.optimizer = library.SGD(groups, momentum=0.9, weight_decay=0.01)
        self.scheduler = build(self.optimizer)

    def step(self, step: int) -> tuple[list[float], list[float]]:
        """One step; the rates and the momenta that it was taken with."""
        self.optimizer.zero_grad()
        first, second = self.weights
        # It stops getting better after half of the steps, so that a plateau is seen.
        loss = (first - 0.5).pow(2).sum() + second.cos().sum() + 10 * max(step - STEPS // 2, 0)
        loss.backward()
        groups = self.optimizer.param_groups
        used = [float(group["lr"]) for group in groups], [float(group["momentum"]) for group in groups]
        self.optimizer.step()
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(loss.item())
        else:
            self.scheduler.step()
        return used


def assert_same_weights(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("tensor_lr", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("name", BUILDERS)
def test_a_scheduler_does_what_it_does_with_torch(name: str, tensor_lr: bool) -> None:
    ours, theirs = (Run(library, BUILDERS[name], tensor_lr) for library in (steprule, torch.optim))
    rates, momenta = set(), set()
    for step in range(STEPS):
        used = ours.step(step)
        assert used == theirs.step(step)
        rates.add(used[0][0])
        momenta.add(used[1][0])

    assert_same_weights(ours.weights, theirs.weights)
    assert len(rates) > 1  # the scheduler did something
    assert (len(momenta) > 1) == (name in CYCLES_MOMENTUM)
    assert all(isinstance(group["lr"], Tensor) == tensor_lr for group in ours.optimizer.param_groups)


@pytest.mark.parametrize("name", BUILDERS)
def test_saved_and_resumed_under_a_scheduler_is_the_uninterrupted_run(name: str) -> None:
    uninterrupted, run, resumed = (Run(steprule, BUILDERS[name]) for _ in range(3))
    for step in range(STEPS):
        uninterrupted.step(step)
    for step in range(20):
        run.step(step)

    with torch.no_grad():
        for new, old in zip(resumed.weights, run.weights, strict=True):
            new.copy_(old)
    resumed.scheduler.load_state_dict(run.scheduler.state_dict())
    resumed.optimizer.load_state_dict(run.optimizer.state_dict())
    for step in range(20, STEPS):
        resumed.step(step)

    assert all(torch.equal(*pair) for pair in zip(resumed.weights, uninterrupted.weights, strict=True))


def test_a_group_added_under_a_scheduler_is_scheduled_by_the_next_one() -> None:
    runs = [Run(library, BUILDERS["ExponentialLR"]) for library in (steprule, torch.optim)]
    for run in runs:
        run.step(0)
        added = torch.linspace(0, 1, 3, dtype=torch.float64, requires_grad=True)
        run.optimizer.add_param_group({"params": [added], "lr": 0.3})
        run.scheduler = StepLR(run.optimizer, step_size=1, gamma=0.5)
        for step in range(1, 5):
            added.grad = torch.ones_like(added)
            run.step(step)
        run.weights.append(added)

    assert_same_weights(runs[0].weights, runs[1].weights)
    assert runs[0].optimizer.param_groups[2]["lr"] == 0.3 / 16


def test_averaged_weights_and_batch_norm_with_swalr() -> None:
    def train(library: ModuleType) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 1)).double()
        optimizer = library.SGD(model.parameters(), lr=0.1, momentum=0.9)
        averaged = swa_utils.AveragedModel(model)
        scheduler, swa_scheduler = CosineAnnealingLR(optimizer, T_max=30), SWALR(optimizer, swa_lr=0.05)
        batches = [torch.randn(8, 4, dtype=torch.float64) for _ in range(STEPS)]
        for step, batch in enumerate(batches):
            optimizer.zero_grad()
            (model(batch) - batch.sum(1, keepdim=True)).pow(2).mean().backward()
            optimizer.step()
            if step < 30:
                scheduler.step()
            else:
                averaged.update_parameters(model)
                swa_scheduler.step()
        swa_utils.update_bn(batches, averaged)
        return averaged.state_dict()

    ours, theirs = train(steprule), train(torch.optim)

    assert ours.keys() == theirs.keys()
    assert ours["n_averaged"] == STEPS - 30
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
