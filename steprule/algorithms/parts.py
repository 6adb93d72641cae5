"""What several algorithms have in common: moments, weight decay, and the refusal of bad hyperparameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch import nn

from steprule.rule import lerp, maximum, sqrt
from steprule.schedules import Schedule
from steprule.stepping.options import check_number

__all__ = [
    "Number",
    "Params",
    "adam_step",
    "check_betas",
    "check_signs",
    "decayed",
    "mean_of",
    "mean_square_of",
    "penalized",
]

Number: TypeAlias = float | torch.Tensor | Schedule
Params: TypeAlias = nn.Module | Iterable[Any]


def mean_of(mean: Any, x: Any, beta: Any) -> Any:
    """The running mean ``beta * mean + (1 - beta) * x``."""
    return lerp(mean, x, 1 - beta)


def mean_square_of(mean: Any, x: Any, beta: Any) -> Any:
    """The running mean of squares ``beta * mean + (1 - beta) * x**2``."""
    return beta * mean + (1 - beta) * x * x


def adam_step(g: Any, s: Any, h: Any, rate: Any, amsgrad: bool = False) -> Any:
    """Adam's step of a rate: the corrected mean of the gradient over the corrected root of its mean square."""
    beta1, beta2 = h.betas
    s.exp_avg = mean_of(s.exp_avg, g, beta1)
    s.exp_avg_sq = square = mean_square_of(s.exp_avg_sq, g, beta2)
    if amsgrad:
        s.max_exp_avg_sq = square = maximum(s.max_exp_avg_sq, square)
    denominator = sqrt(square) / sqrt(1 - beta2**s.step) + h.eps
    return rate / (1 - beta1**s.step) * s.exp_avg / denominator


def penalized(g: Any, p: Any, h: Any) -> Any:
    """The gradient with that of the penalty ``weight_decay / 2 * |p|**2`` added."""
    return g + h.weight_decay * p if h.weight_decay else g


def decayed(p: Any, g: Any, h: Any) -> tuple[Any, Any]:
    """Parameter and gradient after weight decay, which shrinks the one (decoupled) or is added to the other."""
    if h.decoupled_weight_decay:
        return p * (1 - h.lr * h.weight_decay), g
    return p, penalized(g, p, h)


def check_signs(h: Mapping[str, Any], **called: str) -> None:
    """Refuse negative hyperparameters.

    Args:
        h: the hyperparameters.
        called: what the message calls each of those that must not be negative.

    Raises:
        ValueError: naming the first that is.
        TypeError: naming the first that is no number.
    """
    for name, words in called.items():
        check_number(name, h[name])
        if isinstance(h[name], torch.Tensor) and h[name].numel() != 1:
            raise ValueError(f"Tensor {name} must be 1-element")
        if not h[name] >= 0.0:
            raise ValueError(f"Invalid {words}: {h[name]}")


def check_betas(h: Mapping[str, Any]) -> None:
    """Refuse decay rates outside of [0, 1).

    Raises:
        ValueError: naming the first.
        TypeError: if they are not two numbers.
    """
    try:
        beta1, beta2 = h["betas"]
    except (TypeError, ValueError):
        raise TypeError(f"betas must be two numbers, got {h['betas']!r}") from None
    for index, beta in enumerate((beta1, beta2)):
        check_number(f"betas[{index}]", beta)
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"Invalid beta parameter at index {index}: {beta}")
