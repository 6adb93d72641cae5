"""What the tests look at inside of an optimizer."""

from __future__ import annotations

import torch

from steprule import Optimizer
from steprule.kernels.launch import Launch


def launches(optimizer: Optimizer) -> list[Launch]:
    """What the latest step ran."""
    assert optimizer._workings.planner.plan is not None
    return list(optimizer._workings.planner.plan.launches)


def params_of(optimizer: Optimizer) -> list[torch.Tensor]:
    """The parameters of all groups."""
    return [p for group in optimizer.param_groups for p in group["params"]]
