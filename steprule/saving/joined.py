"""Several state dictionaries, of optimizers that each had a part of the parameters, as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .saved import as_number

__all__ = ["joined"]

Saved = Mapping[str, Any]


def joined(parts: Sequence[Saved], groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One state dictionary with the groups and the state of all.

    Where names say nothing, parameters are matched by position: so the saved groups stand in the order of those here
    that have the same hyperparameters.

    Args:
        parts: state dictionaries of ``torch.optim`` or of steprule.
        groups: the parameter groups that they are loaded into.

    Raises:
        TypeError, KeyError: one of them is no state dictionary.

    Example:
        >>> one = {"state": {0: {"step": 1.0}}, "param_groups": [{"lr": 0.1, "momentum": 0.9, "params": [0]}]}
        >>> two = {"state": {}, "param_groups": [{"lr": 0.2, "betas": (0.9, 0.99), "params": [0]}]}
        >>> groups = [{"lr": 1.0, "betas": (0.9, 0.999)}, {"lr": 1.0, "momentum": 0.0}]
        >>> whole = joined([one, two], groups)
        >>> [group["params"] for group in whole["param_groups"]], whole["state"]
        ([[1], [0]], {0: {'step': 1.0}})
    """
    state: dict[Any, Any] = {}
    waiting: list[list[dict[str, Any]]] = []
    first = 0
    for index, part in enumerate(parts):
        if not isinstance(part, Mapping):
            raise TypeError(f"state dictionary {index} must be a dict, not {type(part).__name__}")
        for key in ("state", "param_groups"):
            if key not in part:
                raise KeyError(f"state dictionary {index} has no {key!r}")
        algorithm = (part.get("steprule") or {}).get("algorithm")
        own = {} if algorithm is None else {"algorithm": algorithm}
        places = {key: first + i for i, key in enumerate(k for group in part["param_groups"] for k in group["params"])}
        waiting.append([{**own, **g, "params": [places[k] for k in g["params"]]} for g in part["param_groups"]])
        state |= {places.get(key, key): entry for key, entry in part["state"].items()}
        first += len(places)
    return {"state": state, "param_groups": grouped_as_here(waiting, groups)}


def grouped_as_here(
    waiting: Sequence[list[dict[str, Any]]], groups: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The saved groups as those here stand; what is left over at the end."""
    found = []
    for group in groups:
        left = [own for own in waiting if own]
        if left:
            found.append(max(left, key=lambda own: likeness(own[0], group)).pop(0))
    return found + [group for own in waiting for group in own]


def likeness(saved: Mapping[str, Any], group: Mapping[str, Any]) -> tuple[bool, float]:
    """How much of a saved group's hyperparameters a group here has: of the same kinds, under the same names."""
    keys = [key for key in saved if key not in ("params", "param_names", "schedules", "initial_lr")]
    shared = [
        key for key in keys if key in group and (as_number(saved[key]) is None) == (as_number(group[key]) is None)
    ]
    said = "algorithm" in saved and saved["algorithm"] == group.get("algorithm")
    return said, len(shared) / max(len(keys), 1)
