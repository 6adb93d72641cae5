"""What algorithms share that keep the moments of a projected gradient: the slots, and AdamW beside and around them."""

from __future__ import annotations

from typing import Any

import torch

from steprule.algorithms.arguments import Slots
from steprule.algorithms.moments import mean_of, mean_square_of
from steprule.rule import rank, sqrt, table

__all__ = ["PROJECTED", "moments", "moved_parameter", "tall", "unprojected"]

PROJECTED: Slots = {
    "projection": table("shorter", rank("rank")),
    "projected_exp_avg": table("longer", rank("rank")),
    "projected_exp_avg_sq": table("longer", rank("rank")),
}


def unprojected(g: Any, s: Any, h: Any) -> Any:
    """AdamW's direction, without correction, of what is not projected."""
    beta1, beta2 = h.betas
    s.exp_avg = mean_of(s.exp_avg, g, beta1)
    s.exp_avg_sq = mean_square_of(s.exp_avg_sq, g, beta2)
    return s.exp_avg / (sqrt(s.exp_avg_sq) + h.eps)


def moved_parameter(p: Any, u: Any, s: Any, h: Any) -> Any:
    """The parameter's new value along a direction whose moments began with zero."""
    beta1, beta2 = h.betas
    rate = h.lr * sqrt(1 - beta2**s.step) / (1 - beta1**s.step)
    return (p - rate * u) * (1 - h.lr * h.weight_decay)


def tall(g: torch.Tensor) -> torch.Tensor:
    """Matrices, or their transposes, that have at least as many rows as columns."""
    return g if g.shape[-2] >= g.shape[-1] else g.mT


def moments(low: torch.Tensor, m: torch.Tensor, v: torch.Tensor, beta1: float, beta2: float, eps: float) -> Any:
    """Adam's direction of a projected gradient, without correction; the running means are updated in place."""
    m.lerp_(low, 1 - beta1)
    v.mul_(beta2).addcmul_(low, low, value=1 - beta2)
    return m / (v.sqrt() + eps)
