"""What the tests look at inside of an optimizer."""

from __future__ import annotations

from steprule import Optimizer
from steprule.kernels.launch import Launch


def launches(optimizer: Optimizer) -> list[Launch]:
    """What the latest step ran."""
    assert optimizer._planner.plan is not None
    return list(optimizer._planner.plan.launches)
