"""A Program as a person reads it."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .expression import LINES, LONG, Expression, ordered, text, written_length
from .host import NUMBER

if TYPE_CHECKING:
    from .program import Program

__all__ = ["bounded", "show"]

ANSWERS = 20
"""How many questions that a rule was asked are shown."""


def show(program: Program) -> str:
    """A Program as readable mathematics: first what the host computes, then each pass over memory."""
    known: dict[int, str] = {}
    answers = [g for g in program.guards if g.answer is not NUMBER and g.answer not in ((), None)]
    title = ", ".join([*map(str, answers[:ANSWERS]), *(["..."] if len(answers) > ANSWERS else [])])
    lines = [program.name + (f"  [{title}]" if title else "")]
    outputs, reductions, finished = program.source
    roots = [*(e for _, e, _ in (*outputs, *reductions)), *(e for _, e in finished)]
    lengths: dict[int, int] = {}
    numbers = itertools.count()

    def operands(e: Expression) -> tuple[Expression, ...]:
        if e.op == "noisy":  # by which bits it is rounded is nothing to read
            return e.args[:1]
        return () if id(e) in known or e.op == "drawn" else e.args

    hosts = [*program.scalars, *(update for update in program.updates if update is not None)]
    every = ordered(hosts)
    short: dict[int, int] = {}
    for e in every:
        short[id(e)] = min(written_length(e, short), LONG + 1)
    host_uses = Counter(id(a) for e in every for a in e.args)

    def on_host(expression: Expression) -> str:
        return text(expression) if short[id(expression)] <= LONG else define(expression, "host", host_uses)

    def define(root: Expression, phase: str, uses: Mapping[int, int]) -> str:
        for e in ordered({"drawn": (), "noisy": root.args[:1]}.get(root.op, root.args), operands):
            lengths[id(e)] = 1 if id(e) in known else written_length(e, lengths)
            if e.args and id(e) not in known and (uses[id(e)] > 1 or lengths[id(e)] > LONG):
                shown = text(e, lambda x: known.get(id(x)))
                known[id(e)], lengths[id(e)] = f"t{next(numbers)}", 1
                lines.append(f"  {'between' if e.level in LINES else phase:8s} {known[id(e)]} = {shown}")
        return text(root, lambda x: known.get(id(x)) if x is not root else None)

    for index, expression in enumerate(program.scalars):
        if expression.args:
            name = f"c{index}"
            lines.append(f"  host     {name} = {on_host(expression)}")
            known[id(expression)] = name
    uses = Counter(map(id, (*roots, *(a for e in ordered(roots, operands) for a in operands(e)))))

    signs = [("=" if e.op == "reduce" else "←", name, e, index) for name, e, index in reductions]
    signs += [("←", name, e, index) for name, e, index in outputs]
    for sign, name, expression, index in sorted(signs, key=lambda entry: entry[3]):
        phase = f"pass {index + 1}"
        shown = define(expression, phase, uses)
        lines.append(f"  {phase:8s} {name} {sign} {known.get(id(expression), shown)}")
        if expression.op in ("reduce", "matrix"):
            known[id(expression)] = name
    for name, expression in finished:
        shown = define(expression, "after", uses)
        lines.append(f"  after    {name} ← {known.get(id(expression), shown)}")
    for slot, update in zip(program.scalar_slots, program.updates, strict=True):
        if update is not None:
            lines.append(f"  host     {slot.name} ← {on_host(update)}")
    return "\n".join(bounded(lines))


def bounded(lines: Sequence[str], most: int = 400) -> list[str]:
    """The lines of a text, or its first and its last where there are too many for a person to read."""
    left_out = len(lines) - most
    half = most // 2
    return list(lines) if left_out <= 0 else [*lines[:half], f"  ... {left_out:,} lines ...", *lines[-half:]]
