"""Running means of the gradient and of its square, and Adam's step made of them."""

from __future__ import annotations

from typing import Any

from steprule.rule import exp, lerp, log, maximum, minimum, sign, sqrt, where

__all__ = [
    "adam_step",
    "corrected_root",
    "mean_of",
    "mean_square_of",
    "observed",
    "radam_step",
    "rectification",
    "sign_of_mean",
    "slowing",
]


def mean_of(mean: Any, x: Any, beta: Any) -> Any:
    """The running mean ``beta * mean + (1 - beta) * x``."""
    return lerp(mean, x, 1 - beta)


def mean_square_of(mean: Any, x: Any, beta: Any) -> Any:
    """The running mean of squares ``beta * mean + (1 - beta) * x**2``."""
    return beta * mean + (1 - beta) * x * x


def corrected_root(square: Any, beta: Any, s: Any, h: Any) -> Any:
    """The root of a mean square that began with zero, corrected for that, and epsilon."""
    # a number of the host is divided by there, once
    return sqrt(square) * (1 / sqrt(1 - beta**s.step)) + h.eps


def slowing(start: Any, end: Any, part: Any) -> Any:
    """A beta whose half-life has grown in a straight line, by a part of the way from that of one to that of another."""
    done = minimum(part, 1.0)
    return exp(1 / ((1 - done) / log(start) + done / log(end)))


def adam_step(g: Any, s: Any, h: Any, rate: Any, amsgrad: bool = False) -> Any:
    """Adam's step of a rate: the corrected mean of the gradient over the corrected root of its mean square."""
    beta1, beta2 = h.betas
    s.exp_avg = mean_of(s.exp_avg, g, beta1)
    s.exp_avg_sq = square = mean_square_of(s.exp_avg_sq, g, beta2)
    if amsgrad:
        s.max_exp_avg_sq = square = maximum(s.max_exp_avg_sq, square)
    return rate / (1 - beta1**s.step) * s.exp_avg / corrected_root(square, beta2, s, h)


def observed(s: Any, beta2: Any) -> Any:
    """How many gradients the mean square has seen, by RAdam's measure."""
    return 2 / (1 - beta2) - 1 - 2 * s.step * beta2**s.step / (1 - beta2**s.step)


def rectification(s: Any, beta2: Any) -> Any:
    """RAdam's factor of the rate for a mean square that has seen few gradients; a number where it has seen four."""
    longest, length = 2 / (1 - beta2) - 1, observed(s, beta2)
    return sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))


def radam_step(g: Any, s: Any, h: Any) -> Any:
    """RAdam's step: Adam's, rectified, or the mean of the gradient alone as long as its size is not known."""
    beta1, beta2 = h.betas
    s.exp_avg = mean_of(s.exp_avg, g, beta1)
    s.exp_avg_sq = mean_square_of(s.exp_avg_sq, g, beta2)
    adapted = rectification(s, beta2) * sqrt(1 - beta2**s.step) / (sqrt(s.exp_avg_sq) + h.eps)
    return h.lr / (1 - beta1**s.step) * s.exp_avg * where(observed(s, beta2) > 5, adapted, 1.0)


def sign_of_mean(g: Any, s: Any, beta: Any) -> Any:
    """The sign of the gradient's running mean, or of the gradient itself where nothing is kept."""
    if not beta:
        return sign(g)
    s.momentum_buffer = mean_of(s.momentum_buffer, g, beta)
    return sign(s.momentum_buffer)
