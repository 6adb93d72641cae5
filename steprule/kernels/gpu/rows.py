"""The passes of a Program that know rows from columns, as Triton source text."""

from __future__ import annotations

from collections.abc import Sequence

from steprule.rule.expression import Level
from steprule.rule.program import PARAM, Program

from .row_tiles import PLACE
from .source import (
    KERNEL,
    Text,
    accumulator,
    chunk_lines,
    combined,
    condition,
    define,
    element_values,
    gather_function,
    loop,
    numbers_before,
    plain,
    scalar_arguments,
    stores,
    widened,
)

__all__ = ["join_source", "rows_source"]

IN_TILE = ("width", "height", "tall", "held", "stop", "firstrow", "firstcolumn", "columnpart")
"""What a tile has to know of where its chunk lies."""


def rows_source(program: Program, index: int, operands: Sequence[str], kind: str, rows: int = 0) -> str:
    """The source of one pass over chunks of matrices: a function of a tile, and the kernel that calls it for each of a
    chunk.

    Vectors of 16 bytes are loaded and stored where all operands of the chunk are aligned to them and rows are whole
    numbers of them, and elsewhere single elements beside each other.

    Args:
        program: what to run.
        index: which of its passes.
        operands: the name of each operand's dtype in ``triton.language``.
        kind: the name of the arithmetic's dtype.
        rows: how many rows of scalars are given by value; 0 for a table of any number.
    """
    phase = program.phases[index]
    touched = sorted({*phase.reads, *phase.writes}) or [PARAM]  # whose memory stands for none at all
    head, given = numbers_before(program, phase, kind, rows)
    lines = dict.fromkeys(f"line{o.detail}" for o in phase.operations if o.op == "line")
    pieces = [f"sum{k}" for k, _ in phase.sums if program.sums[k].level is Level.COLUMN]
    kinds = [program.reductions[row - len(program.inputs)].kind for row, _ in phase.reductions]
    sums = {f"row{k}": (k, program.sums[k].kind) for k, _ in phase.sums if program.sums[k].level is Level.ROW}
    totals = [*(f"total{k}" for k in range(len(kinds))), *sums]
    names = [*(f"a{o}" for o in touched), *IN_TILE, "keep", "offset", *given, *lines, *pieces, *totals]
    tile = tile_function(program, index, touched, operands, kind, names, given, totals)
    call = f"tile{index}(at, {', '.join(names)}, MANY, ROWS, COLUMNS, ALIGNED={{aligned}})"
    call = f"{', '.join(totals)} = {call}" if totals else call
    addresses = " | ".join(f"a{o}" for o in touched)
    zeros = [*kinds, *(x for _, x in sums.values())]
    body = [
        *chunk_lines(program, touched, operands, "tl.load(numbers + tl.program_id(0))"),
        *(f"{name} = tl.load(places + {len(PLACE)} * chunk + {PLACE.index(name)})" for name in PLACE),
        *(f"{line} = tl.load(lines + {line[4:]}).to(tl.pointer_type(tl.{kind}))" for line in lines),
        *(f"sum{k} = tl.load(sums + {k}).to(tl.pointer_type(tl.float64))" for k, _ in phase.sums),
        *head,
        *(f"{total} = tl.zeros((MANY * ROWS,), tl.{accumulator(x)})" for total, x in zip(totals, zeros, strict=True)),
        "vectors = begin",
        "if MANY == 1 and COLUMNS >= 8:",
        f"    aligned = {condition(f'(({addresses}) & 15 == 0) & (width % 8 == 0)')}",
        "    vectors = tl.where(aligned, stop, begin)",
        f"    for at in {loop()}(begin, vectors, COLUMNS):",
        f"        {call.format(aligned=True)}",
        f"for at in {loop()}(vectors, stop, COLUMNS):",
        f"    {call.format(aligned=False)}",
        *(f"tl.store(partials + {len(kinds)} * chunk + {k}, {combined(x, f'total{k}')})" for k, x in enumerate(kinds)),
    ]
    if sums:
        body += [
            "number = tl.arange(0, MANY * ROWS)",
            "matrix, rank = number // ROWS, number % ROWS",
            "present = (matrix < held) & (rank < tall)",
            *(
                f"tl.store(sum{k} + rowpart + matrix * height + rank, {number_of_total(x, name)}, mask=present)"
                for name, (k, x) in sums.items()
            ),
        ]
    arguments = (
        "pointers, chunks, numbers, places, lines, sums, "
        f"{scalar_arguments(program, rows)}reduced, partials, found_inf, tensors, "
        "MANY: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr"
    )
    parts = [tile, KERNEL + define(f"pass{index}", arguments, body)]
    return "\n\n\n".join([*parts, KERNEL + gather_function(program, index, kinds)] if kinds else parts)


TILE = (
    "if ALIGNED:",
    "    width, at, stop = width // 8 * 8, at // 8 * 8, stop // 8 * 8",  # which says so to the compiler, here alone
    "    places = at + tl.arange(0, COLUMNS)",
    "    placed = places < stop",
    "    rows, columns = tl.arange(0, ROWS)[:, None], places[None, :]",
    "    lanes, across = rows * width + columns, columns",
    "    inside, within = rows < tall, placed[None, :]",
    # Triton lays out blocks of one shape for the widest vectors among them, which scatters single elements
    "else:",
    "    matrix = tl.arange(0, MANY)",
    "    column = at + tl.arange(0, COLUMNS)",
    "    places = matrix[:, None] * width + column[None, :]",
    "    placed = (matrix < held)[:, None] & (column < stop)[None, :]",
    "    rank = tl.arange(0, ROWS)[None, :, None]",
    "    rows = matrix[:, None, None] * height + rank",
    "    across = matrix[:, None, None] * width + column[None, None, :]",
    "    lanes = rows * width + column[None, None, :]",
    "    inside = (matrix < held)[:, None, None] & (rank < tall)",
    "    within = (column < stop)[None, None, :]",
    "mask = inside & within",
    "kept = mask if keep is None else mask & keep",
)
"""Where a tile's elements are, ROWS x COLUMNS or MANY x ROWS x COLUMNS: ``lanes`` in memory, in ``rows`` and ``across``
among the chunk's rows and columns; sums over columns go to ``places``."""


def tile_function(
    program: Program,
    index: int,
    touched: Sequence[int],
    operands: Sequence[str],
    kind: str,
    names: Sequence[str],
    given: Sequence[str],
    totals: Sequence[str],
) -> str:
    """The function of a tile; it stores sums over columns and returns the running totals, each for every row."""
    phase = program.phases[index]
    text = Text("v")
    known = {int(name[1:]): (name, False) for name in given}
    for number, o in enumerate(phase.operations):
        if o.op == "line":
            at, there = ("firstrow + rows", "inside") if o.level is Level.ROW else ("firstcolumn + across", "mask")
            known[number] = text.let(f"tl.load(line{o.detail} + {at}, mask={there})"), False
    values = element_values(text, phase, known, operands, kind)

    def parts_of(reduction: str, value: int) -> str:
        wide = text.let(f"tl.where(mask, {widened(text.number(values[value], kind), kind, 'float64')}, 0.0)")
        if reduction == "max_abs":
            return text.let(f"tl.abs({wide}).to(tl.int64, bitcast=True)")
        return text.let(f"{wide} * {wide}") if reduction == "sum_of_squares" else wide

    def add(total: str, reduction: str, value: int) -> None:
        part = parts_of(reduction, value)
        text.lines += [
            "if ALIGNED:",
            f"    part = {reduced_tile(reduction, part, 1)}",
            "else:",
            f"    part = {reduced_tile(reduction, part, 2)}.reshape(MANY * ROWS)",
            f"{total} = {f'tl.maximum({total}, part)' if reduction == 'max_abs' else f'{total} + part'}",
        ]

    for k, (row, value) in enumerate(phase.reductions):
        add(f"total{k}", program.reductions[row - len(program.inputs)].kind, value)
    for k, value in phase.sums:
        reduction = program.sums[k]
        if reduction.level is Level.ROW:
            add(f"row{k}", reduction.kind, value)
        else:
            part = number_of_total(
                reduction.kind, reduced_tile(reduction.kind, parts_of(reduction.kind, value), "0 if ALIGNED else 1")
            )
            text.lines.append(f"tl.store(sum{k} + columnpart + places, {part}, mask=placed)")
    text.lines += stores(program, phase, text, values, operands, kind)
    body = [
        *TILE,
        *(f"o{o} = a{o}.to(tl.pointer_type(tl.{plain(operands[o])}))" for o in touched),
        "if ALIGNED:",
        *(f"    o{o} = tl.multiple_of(o{o}, 16)" for o in touched),
        *text.lines,
        *([f"return {', '.join(totals)}"] if totals else []),
    ]
    sizes = ["MANY: tl.constexpr", "ROWS: tl.constexpr", "COLUMNS: tl.constexpr", "ALIGNED: tl.constexpr"]
    return "@triton.jit\n" + define(f"tile{index}", ", ".join(["at", *names, *sizes]), body)


def reduced_tile(reduction: str, part: str, axis: int | str) -> str:
    return f"tl.{'max' if reduction == 'max_abs' else 'sum'}({part}, axis={axis})"


def number_of_total(reduction: str, total: str) -> str:
    return f"{total}.to(tl.float64, bitcast=True)" if reduction == "max_abs" else total


def join_source() -> str:
    """The kernels that bring the parts of sums together, in their order, LINES rows or columns at a time."""
    kernels = []
    for kind, join in (("sum", "total + part"), ("max_abs", "tl.maximum(total, part)")):
        bits = f".to(tl.{accumulator(kind)}, bitcast=True)"
        body = [
            "line = tl.program_id(0).to(tl.int64) * LINES + tl.arange(0, LINES)",
            "mask = line < joined",
            "first = tl.load(joins + 4 * line, mask=mask, other=0)",
            "stride = tl.load(joins + 4 * line + 1, mask=mask, other=0)",
            "count = tl.load(joins + 4 * line + 2, mask=mask, other=0)",
            "target = tl.load(joins + 4 * line + 3, mask=mask, other=0)",
            f"total = tl.zeros((PARTS, LINES), tl.{accumulator(kind)})",
            f"for begin in {loop()}(0, tl.max(count, axis=0), PARTS):",
            "    number = begin + tl.arange(0, PARTS)",
            "    places = first[None, :] + number[:, None] * stride[None, :]",
            f"    part = tl.load(table + places, mask=number[:, None] < count[None, :], other=0.0){bits}",
            f"    total = {join}",
            f"tl.store(table + target, {combined(kind, 'total')}, mask=mask)",
        ]
        arguments = "table, joins, joined, PARTS: tl.constexpr, LINES: tl.constexpr"
        kernels.append('@triton.jit(do_not_specialize=["joined"])\n' + define(f"join_{kind}", arguments, body))
    return "\n\n\n".join(kernels)
