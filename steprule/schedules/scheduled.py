"""Schedules in a parameter group: taken out of it, written into it at each step."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from .description import from_dict
from .schedule import Schedule, as_schedule, is_schedule, plateaus

__all__ = ["Path", "Scheduled", "report", "separate", "write"]

Path: TypeAlias = str | tuple[str, int]


class Scheduled(dict[Path, Schedule]):
    """The schedules of one parameter group by where they stand: a key or (key, index).

    Attributes:
        written: the number last written at each place.

    Example:
        >>> from steprule.schedules import cosine, linear
        >>> group = {"lr": 0.1 * cosine(4), "betas": (0.9, linear(4))}
        >>> scheduled = separate(group)
        >>> group
        {'lr': 0.1, 'betas': (0.9, 1.0)}
        >>> scheduled.write(group, 2)
        >>> group
        {'lr': 0.05, 'betas': (0.9, 0.5)}
    """

    def __init__(self, schedules: Mapping[Path, Schedule] | Iterable[tuple[Path, Schedule]] = ()) -> None:
        super().__init__(schedules)
        self.written: dict[Path, float] = {}

    def write(self, group: dict[str, Any], step: int) -> None:
        """Writes the values after ``step`` steps into the group, as plain floats, but for a rate that is held at 0."""
        for path, schedule in self.items():
            if self.held(path, group):
                continue
            value = self.written[path] = schedule.at(step)
            if isinstance(path, str):
                group[path] = value
            else:
                key, index = path
                group[key] = (*group[key][:index], value, *group[key][index + 1 :])

    def held(self, path: Path, group: Mapping[str, Any]) -> bool:
        """Whether somebody set the rate to 0, for a step that changes nothing: torch.distributed.checkpoint takes one
        to make state."""
        return path == "lr" and self.written.get("lr", 0.0) != 0.0 and bool(group["lr"] == 0.0)

    def check(self, group: Mapping[str, Any], index: int) -> None:
        """Refuses a group in which a value is not the one last written.

        Args:
            group: the parameter group.
            index: its place among the groups, for the message.

        Raises:
            RuntimeError: something else, such as a torch scheduler, has set it.
        """
        for path, expected in self.written.items():
            found = group[path] if isinstance(path, str) else group[path[0]][path[1]]
            if found is not expected and found != expected and path in self and not self.held(path, group):
                name = path_text(path)
                raise RuntimeError(
                    f"both a schedule and something else set {name} of group {index}: {self[path]} gave "
                    f"{expected}, and {found} stands there now; give up the other (a torch scheduler? to a trainer "
                    "that insists on one, hand steprule.schedules.Native(optimizer), which does nothing), "
                    f"or give a plain number for {name} instead of a schedule"
                )

    def to_dict(self) -> dict[str, Any]:
        """The schedules as plain data, under keys such as ``"lr"`` and ``"betas[1]"``."""
        return {path_text(path): schedule.to_dict() for path, schedule in self.items()}

    @classmethod
    def from_dict(cls, data: object, group: Mapping[str, Any]) -> Scheduled:
        """The schedules that :meth:`to_dict` described, for a group with a number wherever one stands.

        Raises:
            ValueError: ``data`` is malformed, has a user's function in it, or does not fit the group.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"the schedules of a group are described by a dictionary, got {data!r}")
        return cls((find_path(text, group), from_dict(schedule)) for text, schedule in data.items())


def separate(group: dict[str, Any], step: int = 0) -> Scheduled:
    """Takes the schedules out of a group's hyperparameters and leaves their present numbers in their places.

    Args:
        group: hyperparameters by name, changed in place. A function counts as a schedule; tuples and lists
            are looked into, and become tuples where a schedule stands in them. ``"params"``,
            ``"param_names"`` and ``"schedules"`` are left alone.
        step: the number of steps already taken.

    Returns:
        The schedules; empty if there are none.
    """
    scheduled = Scheduled()
    for key, value in group.items():
        if key in ("params", "param_names", "schedules"):
            continue
        if is_schedule(value):
            scheduled[key] = as_schedule(key, value)
        elif isinstance(value, (tuple, list)):
            scheduled.update({(key, i): as_schedule(key, v) for i, v in enumerate(value) if is_schedule(v)})
    scheduled.write(group, step)
    return scheduled


def write(groups: Sequence[dict[str, Any]], step: int) -> None:
    """Writes the values after ``step`` steps into every group that has schedules under ``"schedules"``.

    Raises:
        RuntimeError: something else set a number for which there is a schedule; no group has changed.
    """
    for index, group in enumerate(groups):
        if "schedules" in group:
            group["schedules"].check(group, index)
    for group in groups:
        if "schedules" in group:
            group["schedules"].write(group, step)


def report(groups: Sequence[dict[str, Any]], metric: float) -> None:
    """Tells every plateau among the schedules of groups how training goes.

    Raises:
        RuntimeError: there is none.
    """
    found = plateaus(schedule for group in groups for schedule in group.get("schedules", {}).values())
    if not found:
        raise RuntimeError("no hyperparameter follows a plateau: give one, such as lr=0.1 * schedules.plateau()")
    for tracker in found:
        tracker.report(metric)


def path_text(path: Path) -> str:
    return path if isinstance(path, str) else f"{path[0]}[{path[1]}]"


def find_path(text: object, group: Mapping[str, Any]) -> Path:
    found = re.fullmatch(r"(\w+)(?:\[(\d+)\])?", text) if isinstance(text, str) else None
    key, index = found.groups() if found else (None, None)
    if key is None or key not in group:
        raise ValueError(f"there is a schedule for {text!r}, which the group does not have")
    if index is None:
        return key
    if not isinstance(group[key], tuple) or int(index) >= len(group[key]):
        raise ValueError(f"there is a schedule for {text!r}, and {key} is {group[key]!r}")
    return key, int(index)
