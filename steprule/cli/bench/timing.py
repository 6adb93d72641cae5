"""Contenders that take turns on one machine, and what their times say about each other."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

__all__ = ["CLOCKS", "Clock", "Pace", "Spread", "Step", "Times", "alternate", "ratio", "spread"]

Step = Callable[[], object]
Clock = Callable[[Step, int], float]
"""Seconds that some steps take, from the first to the last one's end."""


def on_cpu(step: Step, steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return time.perf_counter() - start


def seconds_on_gpu(step: Step, steps: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    for _ in range(steps):
        step()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


CLOCKS: Mapping[str, Clock] = {"cpu": on_cpu, "cuda": seconds_on_gpu}
"""The clock of each kind of device."""


@dataclass(frozen=True)
class Pace:
    """How long to measure.

    Attributes:
        rounds: turns of each contender.
        block: seconds that a turn takes at least.
        settle: seconds of steps that are not timed before each turn, at least one step: the threads of the contender
            before go to sleep, and caches fill.
    """

    rounds: int = 11
    block: float = 0.1
    settle: float = 0.02


@dataclass(frozen=True)
class Times:
    """Seconds a step of one contender.

    Attributes:
        first: its first step, in which a compiler may compile.
        rounds: the mean of each turn.
    """

    first: float
    rounds: tuple[float, ...]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of some values."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles.

    >>> spread([3.0, 1.0, 2.0])
    Spread(median=2.0, low=1.5, high=2.5)
    """
    return Spread(*np.quantile(values, (0.5, 0.25, 0.75)).tolist())


def ratio(ours: Sequence[float], theirs: Sequence[float], scale: float = 1.0) -> Spread:
    """Median and quartiles of ours / (scale * theirs), value by value.

    What slows the machine down for a while slows both of a round, and leaves their ratio alone.
    """
    return spread([a / (scale * b) for a, b in zip(ours, theirs, strict=True)])


def alternate(contenders: Mapping[str, Step], pace: Pace, clock: Clock) -> dict[str, Times]:
    """Let contenders take turns: each takes a block of steps, then the next, and so on for some rounds.

    Args:
        contenders: a step of each, by name.
        pace: how long to measure.
        clock: measures steps.

    Returns:
        The times of each contender, by name.
    """
    first = {name: clock(step, 1) for name, step in contenders.items()}
    seconds = {name: settled(step, clock) for name, step in contenders.items()}
    rounds: dict[str, list[float]] = {name: [] for name in contenders}
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(pace.rounds):
            for name, step in contenders.items():
                clock(step, math.ceil(pace.settle / seconds[name]))
                steps = math.ceil(pace.block / seconds[name])
                rounds[name].append(clock(step, steps) / steps)
    finally:
        if collecting:
            gc.enable()
    return {name: Times(first[name], tuple(rounds[name])) for name in contenders}


def settled(step: Step, clock: Clock, least: float = 0.005) -> float:
    """About how many seconds a step takes after the first ones."""
    steps = 2
    while (seconds := clock(step, steps)) < least:
        steps *= 4
    return seconds / steps
