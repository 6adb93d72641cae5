"""An Optimizer in words: its groups as a table, and which kernels serve them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from steprule.kernels.explain import explain, first_names

from .applying import asked_now, made_plan
from .idle import known_idle
from .options import OPTIONS
from .workings import workings

if TYPE_CHECKING:
    from steprule.optimizer import Optimizer

__all__ = ["explained", "shown", "shown_as_html"]

NOTEBOOK = 160
"""The width of a table in a notebook, in characters: a browser breaks its cells where it has less room."""


def shown(optimizer: Optimizer) -> str:
    """The groups as a table that fits the terminal, as plain text."""
    from steprule.display.table import plain_text, terminal_width  # rich takes a while to load

    width = terminal_width()
    return "\n".join([plain_text(table_of(optimizer, width), width), *workings(optimizer).guesses])


def shown_as_html(optimizer: Optimizer) -> str:
    """The groups as a table for a notebook."""
    from steprule.display.notebook import html_of

    return html_of([*table_of(optimizer, NOTEBOOK).renderables, *workings(optimizer).guesses])


def table_of(optimizer: Optimizer, width: int) -> Any:
    """The groups as rich can print them."""
    from steprule.display.table import group_table

    groups = optimizer.param_groups
    workings(optimizer).members.keep_names(groups)
    kernels = [kernels_of(optimizer, group) for group in groups]
    return group_table(type(optimizer).__name__, groups, kernels, OPTIONS, optimizer.steps_taken, width)


def kernels_of(optimizer: Optimizer, group: dict[str, Any]) -> str:
    """What serves a group's parameters, in words."""
    works = workings(optimizer)
    if not works.has_rule:
        return "torch"
    algorithm = works.roles.algorithm
    try:
        found = works.planner.kernels(algorithm(group, optimizer), group, optimizer.state, asked_now(optimizer))
    except (RuntimeError, ValueError, TypeError):
        return "none (explain() says why)"
    return ", ".join(found) or "not known yet"


def explained(optimizer: Optimizer, source: bool) -> str:
    """A paragraph for each launch of the plan."""
    from steprule.display.notebook import Shown
    from steprule.display.table import encodable

    planner = workings(optimizer).planner
    launches = planner.beside or (planner.plan or made_plan(optimizer, asked_now(optimizer))).launches
    text = "\n".join([explain(launches, source), *(left_out(optimizer) if launches else ())])
    return Shown(encodable(text))


def left_out(optimizer: Optimizer) -> list[str]:
    """A paragraph for parameters that do not train, by what is known without a look at their numbers."""
    reasons: dict[str, list[str]] = {}
    for name, reason in known_idle(optimizer).items():
        reasons.setdefault(reason, []).append(name)
    if not reasons:
        return []
    lines = [f"    {reason}\n    {first_names(list(map(repr, names)))}" for reason, names in reasons.items()]
    return ["not trained (untrained() looks at the numbers too):", *lines]
