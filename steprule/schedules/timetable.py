"""The schedules of all groups together: each is evaluated once a step, however many groups follow it."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import chain
from typing import Any

from .schedule import At, Schedule
from .scheduled import Path, Scheduled, write

__all__ = ["Timetable"]


class Timetable:
    """Writes schedules into groups as :func:`steprule.schedules.write` does; it remembers who follows which.

    Example:
        >>> from steprule.schedules import linear, separate
        >>> groups = [{"lr": 0.1 * linear(4)}, {"lr": 0.1 * linear(4)}]
        >>> for group in groups:
        ...     group["schedules"] = separate(group)
        >>> table = Timetable()
        >>> for step in range(3):
        ...     table.write(groups, step)
        >>> [group["lr"] for group in groups]
        [0.05, 0.05]
    """

    def __init__(self) -> None:
        self.groups: list[dict[str, Any]] = []
        self.own: list[Scheduled | None] = []
        """The schedules of each group."""

    def write(self, groups: Sequence[dict[str, Any]], step: int) -> None:
        """Writes the values after ``step`` steps into every group that has schedules under ``"schedules"``.

        Raises:
            RuntimeError: something else set a number for which there is a schedule; no group has changed.
        """
        if not (self.fits(groups) and self.stands()):
            write(groups, step)  # which says what is wrong, and knows when a rate is held
            self.settle(groups)
            return
        values = [at(step) for at in self.formulas]
        for group, name, written, k in self.numbers:
            group[name] = written[name] = values[k]
        for group, key, written, parts in self.tuples:
            whole = list(group[key])
            for path, index, k in parts:
                whole[index] = written[path] = values[k]
            group[key] = tuple(whole)
        self.standing = [values[k] for *_, k in self.numbers]
        self.standing += [group[key] for group, key, *_ in self.tuples]

    def fits(self, groups: Sequence[dict[str, Any]]) -> bool:
        """Whether groups and schedules are those that were noted."""
        own = [group.get("schedules") for group in groups]
        return (
            len(groups) == len(self.groups)
            and all(map(operator.is_, groups, self.groups))
            and all(map(operator.is_, own, self.own))
            and list(chain.from_iterable(self.present)) == self.paths
            and all(map(operator.is_, chain.from_iterable(map(Scheduled.values, self.present)), self.schedules))
        )

    def stands(self) -> bool:
        """Whether every number is the very one last written."""
        return all(map(operator.is_, map(operator.getitem, self.holders, self.keys), self.standing))

    def settle(self, groups: Sequence[dict[str, Any]]) -> None:
        """Note who follows which schedule; all values have just been written."""
        self.groups = list(groups)
        self.own = [group.get("schedules") for group in groups]
        self.present = [own for own in self.own if own is not None]
        self.paths: list[Path] = list(chain.from_iterable(self.present))
        self.schedules: list[Schedule] = list(chain.from_iterable(map(Scheduled.values, self.present)))
        places: dict[Any, int] = {}
        self.formulas: list[At] = []
        self.numbers: list[tuple[dict[str, Any], str, dict[Path, float], int]] = []
        self.tuples: list[tuple[dict[str, Any], str, dict[Path, float], list[tuple[Path, int, int]]]] = []
        standing: list[Any] = []
        for group in groups:
            parts: dict[str, list[tuple[Path, int, int]]] = {}
            own: Scheduled = group.get("schedules") or Scheduled()
            for path, schedule in own.items():
                k = places.setdefault(identity(schedule), len(places))
                if k == len(self.formulas):
                    self.formulas.append(schedule.at)
                if isinstance(path, str):
                    self.numbers.append((group, path, own.written, k))
                    standing.append(own.written[path])
                else:
                    parts.setdefault(path[0], []).append((path, path[1], k))
            self.tuples += [(group, key, own.written, found) for key, found in parts.items()]
        self.standing = standing + [group[key] for group, key, *_ in self.tuples]
        self.holders = [group for group, *_ in (*self.numbers, *self.tuples)]
        self.keys = [key for _, key, *_ in (*self.numbers, *self.tuples)]


def identity(schedule: Schedule) -> Any:
    """What schedules have in common whose values always have the same bits."""
    try:
        hash(schedule)
    except TypeError:  # a person's function that has no hash
        return id(schedule)
    return str(schedule), schedule
