"""A Program as a person reads it."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING

from .expression import LINES, LONG, Expression, ordered, text, written_length
from .host import NUMBER

if TYPE_CHECKING:
    from .program import Program

__all__ = ["show"]


def show(program: Program) -> str:
    """A Program as readable mathematics: first what the host computes, then each pass over memory."""
    known: dict[int, str] = {}
    answers = [str(g) for g in program.guards if g.answer is not NUMBER and g.answer not in ((), None)]
    lines = [program.name + (f"  [{', '.join(answers)}]" if answers else "")]
    for index, expression in enumerate(program.scalars):
        if expression.args:
            name = f"c{index}"
            lines.append(f"  host     {name} = {expression}")
            known[id(expression)] = name
    outputs, reductions, finished = program.source
    roots = [*(e for _, e, _ in (*outputs, *reductions)), *(e for _, e in finished)]
    lengths: dict[int, int] = {}
    numbers = itertools.count()

    def operands(e: Expression) -> tuple[Expression, ...]:
        if e.op == "noisy":  # by which bits it is rounded is nothing to read
            return e.args[:1]
        return () if id(e) in known or e.op == "drawn" else e.args

    uses = Counter(map(id, (*roots, *(a for e in ordered(roots, operands) for a in operands(e)))))

    def define(root: Expression, phase: str) -> str:
        for e in ordered({"drawn": (), "noisy": root.args[:1]}.get(root.op, root.args), operands):
            lengths[id(e)] = 1 if id(e) in known else written_length(e, lengths)
            if e.args and id(e) not in known and (uses[id(e)] > 1 or lengths[id(e)] > LONG):
                shown = text(e, lambda x: known.get(id(x)))
                known[id(e)], lengths[id(e)] = f"t{next(numbers)}", 1
                lines.append(f"  {'between' if e.level in LINES else phase:8s} {known[id(e)]} = {shown}")
        return text(root, lambda x: known.get(id(x)) if x is not root else None)

    signs = [("=" if e.op == "reduce" else "←", name, e, index) for name, e, index in reductions]
    signs += [("←", name, e, index) for name, e, index in outputs]
    for sign, name, expression, index in sorted(signs, key=lambda entry: entry[3]):
        phase = f"pass {index + 1}"
        shown = define(expression, phase)
        lines.append(f"  {phase:8s} {name} {sign} {known.get(id(expression), shown)}")
        if expression.op in ("reduce", "matrix"):
            known[id(expression)] = name
    for name, expression in finished:
        shown = define(expression, "after")
        lines.append(f"  after    {name} ← {known.get(id(expression), shown)}")
    for slot, update in zip(program.scalar_slots, program.updates, strict=True):
        if update is not None:
            lines.append(f"  host     {slot.name} ← {update}")
    return "\n".join(lines)
