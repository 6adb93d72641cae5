"""The parameter groups of an optimizer after it has loaded: whose hyperparameters each of them gets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, Literal, NamedTuple, TypeAlias

import torch

from steprule.schedules import Schedule, Scheduled
from steprule.schedules.schedule import is_schedule

from .saved import Saved, as_number

__all__ = ["Group", "Hyperparameters", "Merged", "merge", "params_of", "refuse_choice"]

Group: TypeAlias = dict[str, Any]
Hyperparameters: TypeAlias = Literal["saved", "current"]

_CAST = ("algorithm", "modifiers")  # which decide what the state is
_HELD = ("state_dtype", "rounding", "master")  # how numbers are held is for whoever loads it to say
_SWITCHES = ("foreach", "fused")  # of torch, which are True, False or None
_NO_NUMBERS = (*_SWITCHES, "params", "param_names", "schedules")


def params_of(groups: Iterable[Group]) -> Iterator[torch.Tensor]:
    """The parameters of all groups, in order."""
    return (param for group in groups for param in group["params"])


def refuse_choice(hyperparameters: object) -> None:
    """Refuses what is not one of the two choices.

    Raises:
        ValueError: naming them.
    """
    if hyperparameters not in ("saved", "current"):
        raise ValueError(f"hyperparameters must be 'saved' or 'current', got {hyperparameters!r}")


class Merged(NamedTuple):
    """New groups.

    Attributes:
        groups: the groups; the present ones are left as they are.
        schedules: the schedules that stay, each with what its plateaus saw in the saved run.
        replaced: one line for each schedule here that is not the saved one.
    """

    groups: list[Group]
    schedules: list[tuple[Schedule, Mapping[str, Any]]]
    replaced: list[str]


class _Absent:
    """Stands where a saved group lacks a key."""

    def __repr__(self) -> str:
        return "not there"


_ABSENT = _Absent()


def merge(
    groups: Sequence[Group],
    places: Sequence[int | None],
    saved: Saved,
    hyperparameters: Hyperparameters,
    checked: bool,
) -> Merged:
    """The groups with the hyperparameters they get.

    A group gets each value from the saved groups that its parameters were in, which must agree on it. A key
    that was not saved stays as it is, and a schedule that is here goes before a saved one. Saved names are taken
    over where there are none.

    Args:
        groups: ``optimizer.param_groups``.
        places: for each parameter, in order, the index of the saved one.
        saved: what was saved.
        hyperparameters: ``"current"`` leaves everything as it is.
        checked: the optimizer checks the values itself, so that None may stand for a number.

    Raises:
        ValueError: the saved groups of one group here do not agree, or a saved value cannot be here.
        TypeError: a saved value is of another kind than the one here.
    """
    merged = Merged([_copy(group) for group in groups], [], [])
    if hyperparameters == "current":
        return merged
    unnamed = saved.names is not None and not any("param_names" in group for group in groups)
    start, conflicts = 0, []
    for i, group in enumerate(merged.groups):
        own = places[start : start + len(group["params"])]
        start += len(own)
        sources = sorted({saved.parameters[place].group for place in own if place is not None})
        if unnamed:  # then each parameter has its place
            group["param_names"] = [saved.parameters[place].label for place in own if place is not None]
        values, differing = _agreed([saved.groups[j] for j in sources])
        conflicts += [f"{key} of group {i} is {_listed(sources, found)}" for key, found in differing.items()]
        if differing:
            continue
        schedules = values.pop("schedules", None)
        for key in _CAST:
            _refuse_other(key, group, values.pop(key, None), i)
        for key, value in values.items():
            if key in _HELD and key in group:
                continue
            now = group.get(key)
            optional = key in _SWITCHES or (checked and not isinstance(now, bool))
            now = False if key in _SWITCHES and now is None else now
            group[key] = _taken(now, value, f"{key!r} of group {i}", optional)
        if sources:
            _merge_schedules(i, {} if schedules is None else schedules, merged)
    if conflicts:
        raise ValueError(
            "the groups here are made of parts of saved groups that differ: " + "; ".join(conflicts) + ". Make "
            "the groups as they were saved, or keep the present numbers with hyperparameters='current'"
        )
    return merged


def _refuse_other(key: str, group: Group, saved: Any, i: int) -> None:
    """Refuse a state of another algorithm, or of other modifiers, which keep other state."""
    now = group.get(key)
    if saved is None or now is None or _same(now, saved):
        return
    here, there = (value if isinstance(value, str) else ", ".join(value) or "none" for value in (now, saved))
    raise ValueError(
        f"the {key} of group {i} is {here} here and was {there} when it was saved; make the optimizer as it was, or "
        "keep what is here with hyperparameters='current'"
    )


def _copy(group: Group) -> Group:
    return {key: Scheduled(value) if isinstance(value, Scheduled) else value for key, value in group.items()}


def _agreed(groups: Sequence[Group]) -> tuple[Group, dict[str, list[Any]]]:
    """The values that all groups have, and the values by key where they differ."""
    keys = dict.fromkeys(key for group in groups for key in group if key not in ("params", "param_names"))
    found = {key: [group.get(key, _ABSENT) for group in groups] for key in keys}
    differing = {
        k: values for k, values in found.items() if k not in _HELD and not all(_same(values[0], v) for v in values[1:])
    }
    return {key: values[0] for key, values in found.items() if key not in differing}, differing


def _listed(sources: Sequence[int], values: Sequence[Any]) -> str:
    return " and ".join(f"{value!r} in saved group {j}" for j, value in zip(sources, values, strict=True))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    if as_number(a) is not None:
        return as_number(a) == as_number(b)
    return type(a) is type(b) and not isinstance(a, torch.Tensor) and bool(a == b)


def _taken(now: Any, then: Any, what: str, optional: bool) -> Any:
    """A copy of the saved value, which must be of the kind of the present one, or None where that is possible."""
    if isinstance(now, (list, tuple)) and isinstance(then, (list, tuple)):
        if len(now) != len(then):
            raise ValueError(f"{what} was saved as {then!r} and is {now!r} here")
        return type(now)(_taken(a, b, what, optional) for a, b in zip(now, then, strict=True))
    if not (optional or now is None if then is None else _of_one_kind(now, then)):
        raise TypeError(f"{what} was saved as {then!r} and is {now!r} here")
    found = as_number(then)
    if found is not None and math.isnan(found):
        raise ValueError(f"{what} was saved as {then!r}")
    return then.detach().clone() if isinstance(then, torch.Tensor) else deepcopy(then)


def _of_one_kind(now: Any, then: Any) -> bool:
    if is_schedule(then):  # schedules are saved apart from the numbers, as plain data
        return False
    if isinstance(then, bool):
        return now is None or isinstance(now, bool)
    if isinstance(then, (int, torch.Tensor)) or as_number(now) is not None:
        return as_number(then) is not None and (now is None or as_number(now) is not None)
    return now is None or isinstance(then, type(now))


def _merge_schedules(i: int, saved: Any, merged: Merged) -> None:
    """Gives a group its schedules: its own where it has them, otherwise the saved ones."""
    group = merged.groups[i]
    own: Scheduled = group.get("schedules") or Scheduled()
    if not isinstance(saved, Mapping):
        raise TypeError(f"the schedules of group {i} were saved as {type(saved).__name__}, not as a dictionary")
    texts = dict(zip(own.to_dict(), own.values(), strict=True))
    for text, schedule in texts.items():
        if not schedule.matches(saved.get(text)):
            merged.replaced.append(f"{text} of group {i} is {schedule} now, which is not what was saved")
            continue
        _check_state(schedule, saved[text], f"{text} of group {i}")
        merged.schedules.append((schedule, saved[text]))
    others = {text: schedules for text, schedules in saved.items() if text not in texts}
    try:
        together = Scheduled([*Scheduled.from_dict(others, group).items(), *own.items()])
    except ValueError as error:
        raise ValueError(f"the saved schedules of group {i}: {error}") from error
    for path in together:
        value = group[path] if isinstance(path, str) else group[path[0]][path[1]]
        if isinstance(value, bool) or path in _NO_NUMBERS or not (value is None or as_number(value) is not None):
            raise ValueError(
                f"the saved schedules of group {i} have one for {path!r}, which is no number but {value!r}"
            )
    if together:
        group["schedules"] = together


def _check_state(schedule: Schedule, saved: Mapping[str, Any], what: str) -> None:
    try:
        deepcopy(schedule).load_state(saved)
    except ValueError as error:
        raise ValueError(f"the saved state of the schedule {what}: {error}") from error
