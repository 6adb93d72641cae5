"""Schedules from the plain data that describes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from steprule.messages.spelling import nearest

from .schedule import Schedule, arithmetic, constant, join, repeat
from .shapes import cosine, exponential, inverse_sqrt, linear, milestones, one_cycle, plateau, polynomial, warmup

__all__ = ["from_dict"]


MAKERS: dict[str, Callable[..., Schedule]] = {
    make.__name__: make
    for make in (
        arithmetic,
        constant,
        join,
        repeat,
        cosine,
        exponential,
        inverse_sqrt,
        linear,
        milestones,
        one_cycle,
        plateau,
        polynomial,
        warmup,
    )
}


def from_dict(data: object) -> Schedule:
    """The schedule that :meth:`Schedule.to_dict` described. Runs no code that ``data`` could name.

    Raises:
        ValueError: ``data`` is malformed or has a user's function in it, which can't be made from its name.

    Example:
        >>> from steprule.schedules import cosine, warmup
        >>> rate = 0.1 * warmup(10).then(cosine(90))
        >>> from_dict(rate.to_dict()) == rate
        True
    """
    if not isinstance(data, Mapping) or not isinstance(data.get("schedule"), str):
        raise ValueError(f"a schedule is described by a dictionary with its name under 'schedule', got {data!r}")
    rest = dict(data)
    name, state = rest.pop("schedule"), rest.pop("state", None)
    if name == "function":
        raise ValueError(f"the schedule function {rest.get('f')} can't be made from its name; give the schedule again")
    if name not in MAKERS:
        raise ValueError(f"unknown schedule {name!r}{nearest(name, list(MAKERS))}")
    try:
        schedule = MAKERS[name](**{key: revive(value) for key, value in rest.items()})
    except (TypeError, ArithmeticError) as error:
        raise ValueError(f"the description of a schedule is malformed: {error}") from error
    if (state is None) != (schedule.tracker is None):
        raise ValueError(f"{name} {'must' if schedule.tracker else 'can not'} have a state")
    if schedule.tracker and state is not None:
        schedule.tracker.load_state_dict(state)
    return schedule


def revive(value: Any) -> Any:
    if isinstance(value, Mapping):
        return from_dict(value)
    return [revive(part) for part in value] if isinstance(value, list) else value
