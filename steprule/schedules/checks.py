"""What schedules refuse: an argument of the wrong kind or out of its range, named."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from numbers import Real

__all__ = ["choice", "finite_number", "step_count", "step_counts"]


def finite_number(name: str, value: float, least: float = -math.inf, above: float = -math.inf) -> float:
    if not isinstance(value, Real) or isinstance(value, bool) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    if value <= above:
        raise ValueError(f"{name} must be above {above}, got {value!r}")
    return float(value)


def step_count(name: str, value: int, least: int = 1) -> int:
    if not finite_number(name, value).is_integer():
        raise ValueError(f"{name} must be a whole number of steps, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return int(value)


def step_counts(name: str, values: Iterable[int]) -> tuple[int, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"{name} must be a list of whole numbers of steps, got {values!r}")
    return tuple(step_count(name, value, least=0) for value in values)


def choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if not any(value == choice and type(value) is type(choice) for choice in choices):
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}")
