"""How far to go along a direction, when that is worth several evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

__all__ = ["Trial", "strong_wolfe"]

ENOUGH, FLAT = 1e-4, 0.9
"""How much the loss must fall, against its slope at the start, and how much of that slope may be left."""


class Trial(NamedTuple):
    """A point on the line.

    Attributes:
        t: how far it is.
        loss: the loss there.
        gradient: its gradient, flat.
        slope: the derivative along the line, a 0-dim tensor.
    """

    t: Any
    loss: float
    gradient: torch.Tensor
    slope: Any


def cubic_minimum(a: Trial, b: Trial, low: Any, high: Any) -> Any:
    """Where the cubic through two points, with their slopes, is least; the middle of the bounds where it has none."""
    if a.t > b.t:
        a, b = b, a
    d1 = a.slope + b.slope - 3 * (a.loss - b.loss) / (a.t - b.t)
    square = d1**2 - a.slope * b.slope
    if not square >= 0:
        return (low + high) / 2.0
    d2 = square.sqrt()
    return min(max(b.t - (b.t - a.t) * ((b.slope + d2 - d1) / (b.slope - a.slope + 2 * d2)), low), high)


def strong_wolfe(
    at: Callable[[Any], Trial], start: Trial, t: Any, longest: Any, tolerance: float, limit: int
) -> tuple[Trial, int]:
    """A point where the loss has fallen enough and is flat enough (Nocedal and Wright, algorithms 3.5 and 3.6).

    Args:
        at: evaluates the point at a distance.
        start: the point at distance 0.
        t: the first distance to try.
        longest: the largest component of the direction.
        tolerance: the smallest difference between points that matters.
        limit: the number of evaluations after the first.

    Returns:
        The best point found, and the number of evaluations.
    """
    if not has_numbers(start):
        return start, 0
    bracket, done, count = bracketed(at, start, t, limit)
    if not all(map(has_numbers, bracket)):
        return backtracked(at, start, bracket, count, limit)
    low, high = (0, 1) if bracket[0].loss <= bracket[-1].loss else (1, 0)
    stuck = False
    while not done and count < limit:
        first, last = sorted((bracket[0].t, bracket[1].t))
        if abs(bracket[1].t - bracket[0].t) * longest < tolerance:
            break
        t, stuck = away_from_ends(cubic_minimum(bracket[0], bracket[1], first, last), first, last, stuck)
        trial = at(t)
        count += 1
        if not has_numbers(trial):
            return bracket[low], count + 1
        if too_high(trial, start) or trial.loss >= bracket[low].loss:
            bracket[high] = trial
            low, high = (0, 1) if bracket[0].loss <= bracket[1].loss else (1, 0)
            continue
        done = has_flattened(trial, start)
        if not done and trial.slope * (bracket[high].t - bracket[low].t) >= 0:
            bracket[high] = bracket[low]
        bracket[low] = trial
    return bracket[low], count + 1


def bracketed(at: Callable[[Any], Trial], start: Trial, t: Any, limit: int) -> tuple[list[Trial], bool, int]:
    """Two points with a good one between them, or the good one itself, and the evaluations after the first."""
    before, trial = start, at(t)
    for count in range(limit):
        if not has_numbers(trial) or too_high(trial, start) or (count > 1 and trial.loss >= before.loss):
            return [before, trial], False, count
        if has_flattened(trial, start):
            return [trial], True, count
        if trial.slope >= 0:
            return [before, trial], False, count
        nearest, farthest = trial.t + 0.01 * (trial.t - before.t), trial.t * 10
        before, trial = trial, at(cubic_minimum(before, trial, nearest, farthest))
    return [start, trial], False, limit


def has_numbers(trial: Trial) -> bool:
    """Whether a point has a loss and a slope that can be gone by."""
    return math.isfinite(trial.loss) and math.isfinite(trial.slope)


def backtracked(
    at: Callable[[Any], Trial], start: Trial, bracket: list[Trial], count: int, limit: int
) -> tuple[Trial, int]:
    """The best point short of where the loss is no longer finite: a tenth of the way there, and so on; the start, if
    there is none that has fallen."""
    known = [trial for trial in (start, *bracket) if has_numbers(trial)]
    best, t = min(known, key=lambda trial: trial.loss), bracket[-1].t
    while best.loss >= start.loss and count < limit:
        t = best.t + 0.1 * (t - best.t)
        trial = at(t)
        count += 1
        if has_numbers(trial) and trial.loss < best.loss:
            best = trial
    return best, count + 1


def too_high(trial: Trial, start: Trial) -> bool:
    return bool(trial.loss > start.loss + ENOUGH * trial.t * start.slope)


def has_flattened(trial: Trial, start: Trial) -> bool:
    return bool(abs(trial.slope) <= -FLAT * start.slope)


def away_from_ends(t: Any, first: Any, last: Any, stuck: bool) -> tuple[Any, bool]:
    """A tenth of the way in, when ``t`` is near an end for the second time, or beyond it; and whether it is near."""
    margin = 0.1 * (last - first)
    if not min(last - t, t - first) < margin:
        return t, False
    if not (stuck or t >= last or t <= first):
        return t, True
    return (last - margin if abs(t - last) < abs(t - first) else first + margin), False
