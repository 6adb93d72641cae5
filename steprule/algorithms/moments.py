"""Running means of the gradient and of its square, and Adam's step made of them."""

from __future__ import annotations

from typing import Any

from steprule.rule import lerp, maximum, sqrt

__all__ = ["adam_step", "mean_of", "mean_square_of"]


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
    # a number of the host is divided by there, once
    denominator = sqrt(square) * (1 / sqrt(1 - beta2**s.step)) + h.eps
    return rate / (1 - beta1**s.step) * s.exp_avg / denominator
