"""What a step computes between its passes, of one number for each tensor, row or column: all tensors' at once."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import torch

from steprule.rule.expression import LINES, Level
from steprule.rule.program import Operation, Program, Store

from .launch import Launch
from .operations import apply

__all__ = ["compute_between", "expanded", "reduces_before"]


def compute_between(launch: Launch, stage: int) -> None:
    """Compute what the pass ``stage`` reads of such numbers or, after the last pass, what is kept of them."""
    stores = launch.program.between[stage]
    if stores:
        with torch.set_grad_enabled(launch.differentiable):
            launch.keep([(s, expanded(launch, s.value, launch.program.level_of(s))) for s in stores])
    if stage == len(launch.program.phases):
        launch.small.clear()
        launch.matrices.commit(launch.found_inf)
        launch.drop_temporaries()


@lru_cache(maxsize=256)
def reduces_before(program: Program, stage: int) -> tuple[int, ...]:
    """The reductions of rows or columns that are made first right before a pass or, with the number of passes, after
    the last."""

    def needed(stores: Iterable[Store]) -> set[int]:
        found: set[int] = set()
        open_ones = [s.value for s in stores]
        while open_ones:
            index = open_ones.pop()
            if index not in found:
                found.add(index)
                open_ones += program.small[index].args
        return found

    before = list(map(needed, program.between[: stage + 1]))
    new = before[-1].difference(*before[:-1])
    return tuple(sorted(index for index in new if program.small[index].op == "reduce"))


def value(launch: Launch, index: int) -> Any:
    """A value of the Program's small work: a plain number, or a float64 tensor with one for each tensor or line."""
    known, under_way = launch.small, [] if index in launch.small else [index]
    while under_way:  # and no recursion: a rule may be thousands of operations deep
        at = under_way[-1]
        o = launch.program.small[at]
        if missing := [a for a in o.args if a not in known]:
            under_way += missing
            continue
        if at not in known:
            known[at] = leaf(launch, o) if not o.args else result_of(launch, o)
        under_way.pop()
    return known[index]


def leaf(launch: Launch, o: Operation) -> Any:
    if o.op == "scalar":
        return launch.column(o.detail)
    if o.op == "reduced":
        return launch.reduced(o.detail)
    if o.op == "sums":
        return launch.lines.sums[o.detail]
    if o.op == "kept":
        return launch.lines.kept[o.detail].to(torch.float64, copy=True)  # for the slot may be written before it is used
    return o.detail


def result_of(launch: Launch, o: Operation) -> Any:
    if o.op == "reduce":
        lines = launch.lines.sides[launch.program.small[o.args[0]].level]
        return lines.reduce(o.detail, value(launch, o.args[0]), o.level)
    args = [expanded(launch, index, o.level) for index in o.args]
    if o.op == "rows":
        return args[0]
    return apply(o.op, args, torch.float64)


def expanded(launch: Launch, index: int, level: Level) -> Any:
    """A value as one number for each line, where such are computed with."""
    found = value(launch, index)
    own = launch.program.small[index].level
    if level not in LINES or own is level or not isinstance(found, torch.Tensor):
        return found
    key = (index, level)
    if key not in launch.small:
        launch.small[key] = launch.lines.sides[level].expand(found, own)
    return launch.small[key]
