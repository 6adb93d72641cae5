"""Writes docs/hyperparameters.md: what every algorithm takes, with defaults, ranges and what is usual."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

from steprule.algorithms.registry import classes, names
from steprule.grouping.hyperparameters import Declared, Range
from steprule.optimizer import Optimizer
from steprule.stepping.options import OPTIONS

PAGE = Path(__file__).parent.parent / "docs" / "hyperparameters.md"

HEAD = """# Hyperparameters

What each algorithm takes besides the options of `steprule.Optimizer`, in the order of its arguments: the default, what
it may be, and what people usually give; of a pair, for one number after the other. Meanings and units stand in the
docstrings.

| algorithm | hyperparameter | default | may be | usual |
|---|---|---|---|---|
"""

TAIL = """
Written by `python scripts/hyperparameters_page.py` from the `ranges` that each algorithm declares.
"""


def hyperparameters(kind: type[Optimizer]) -> Iterator[inspect.Parameter]:
    """The arguments of an algorithm's constructor that are its own."""
    for parameter in inspect.signature(kind).parameters.values():
        if parameter.name not in {"params", "overrides", "nonfinite", *OPTIONS}:
            yield parameter


def one(declared: Range) -> str:
    """A range in words."""
    return (str(declared) or "any number") + (" or None" if declared.optional else "")


def may_be(declared: Declared | None) -> str:
    """What a hyperparameter may be, in words."""
    if isinstance(declared, tuple):
        return "; ".join(map(one, declared))
    if isinstance(declared, Range):
        return one(declared)
    return str(declared or "")


def usual(declared: Declared | None) -> str:
    """What people give."""
    if isinstance(declared, tuple):
        return "; ".join(filter(None, (each.usual for each in declared)))
    return declared.usual if declared else ""


def page() -> str:
    """The whole page."""
    lines = []
    for name in names():
        kind = classes()[name]
        for parameter in hyperparameters(kind):
            declared, default = kind.ranges.get(parameter.name), parameter.default
            taken = "a flag" if isinstance(default, bool) else may_be(declared)
            cells = (f"`{name}`", f"`{parameter.name}`", str(default), taken, usual(declared))
            lines.append(f"| {' | '.join(cells)} |\n")
    return HEAD + "".join(lines) + TAIL


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
