"""What is measured in the step: which norms there are, and how they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any

import torch

from steprule.messages.spelling import nearest

from .operations import root
from .plan import Plan

__all__ = ["TRACKED", "check_tracked", "parts", "read_tracked", "total_norm"]

TRACKED = ("grad_norm", "param_norm", "update_norm", "update_to_param")
"""What :meth:`Optimizer.track` can compute in the step."""


def check_tracked(names: Sequence[str], by: str = "parameter") -> None:
    """Refuse what can't be measured, or told apart.

    Raises:
        ValueError: naming it.
    """
    for name in names:
        if name not in TRACKED:
            raise ValueError(f"can't track {name!r}{nearest(name, TRACKED)}; there are {', '.join(TRACKED)}")
    if by not in ("parameter", "group"):
        raise ValueError(f"tracked by 'parameter' or 'group', not by {by!r}")


def parts(names: Sequence[str]) -> tuple[str, ...]:
    """The norms that have to be computed, each once.

    >>> parts(["grad_norm", "update_to_param", "param_norm"])
    ('grad_norm', 'update_norm', 'param_norm')
    """
    computed = {"update_to_param": ("update_norm", "param_norm")}
    return tuple(dict.fromkeys(part for name in names for part in computed.get(name, (name,))))


def read_tracked(
    plan: Plan | None, groups: Sequence[Mapping[str, Any]], names: Sequence[str], by: str
) -> dict[str, float]:
    """``"grad_norm/NAME"`` to number, for each parameter or group that had a gradient in the plan's last step."""
    keys = keys_by(groups, by)
    found = {part: norms(plan, part, keys) for part in parts(names)}
    if "update_to_param" in names:
        updates, sizes = found["update_norm"], found["param_norm"]
        found["update_to_param"] = {key: ratio_or_inf(update, sizes[key]) for key, update in updates.items()}
    return {f"{name}/{key}": value for name in names for key, value in found[name].items()}


def total_norm(plan: Plan | None) -> torch.Tensor:
    """The norm of all gradients together in the plan's last step: a 0-dim float64 tensor.

    Raises:
        RuntimeError: it was not computed.
    """
    found = plan.tracked("total_norm") if plan is not None else []
    if not found:
        raise RuntimeError(
            "grad_norm is computed where clip_norm is set, in a step; neither is so yet. clip_norm=float('inf') clips "
            "nothing and computes it; track('grad_norm') computes the norm of each parameter's gradient"
        )
    _, squares = found[0]
    return root(squares[0])


def keys_by(groups: Sequence[Mapping[str, Any]], by: str) -> dict[int, str]:
    """What each parameter counts to, by its identity."""
    return {
        id(p): f"group_{index}" if by == "group" else name or f"group_{index}.{position}"
        for index, group in enumerate(groups)
        for position, (p, name) in enumerate(zip(group["params"], group.get("param_names") or repeat(""), strict=False))
    }


def norms(plan: Plan | None, name: str, keys: Mapping[int, str]) -> dict[str, float]:
    squares: dict[str, float] = {}
    for launch, values in plan.tracked(name) if plan is not None and not plan.valueless else []:
        for entry, value in zip(launch.entries, values.tolist(), strict=True):
            key = keys.get(id(entry.owner))  # none, once somebody has taken it out of its group
            if key is not None:
                squares[key] = squares.get(key, 0.0) + value
    return {key: value**0.5 for key, value in squares.items()}


def ratio_or_inf(a: float, b: float) -> float:
    return a / b if b else float("inf") if a else 0.0
