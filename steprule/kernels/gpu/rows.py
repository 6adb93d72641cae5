"""The passes of a Program that know rows from columns, as Triton source text."""

from __future__ import annotations

from collections.abc import Sequence

from steprule.kernels.row_tables import PLACE
from steprule.rule.expression import Level
from steprule.rule.program import PARAM, Program

from .source import (
    KERNEL,
    Text,
    accumulator,
    chunk_lines,
    condition,
    define,
    element_values,
    gather_function,
    joined,
    loop,
    numbers_before,
    stores,
    widened,
)

__all__ = ["join_source", "rows_source"]

IN_TILE = ("width", "firstcolumn", "firstpiece")
"""What a tile has to know of where its chunk lies."""


def rows_source(program: Program, index: int, operands: Sequence[str], kind: str) -> str:
    """The source of one pass over chunks of at most ROWS whole rows: a function of a tile, and the kernel that calls it
    for COLUMNS columns at a time.

    Vectors of 16 bytes are loaded and stored where all operands of the chunk are aligned to them and rows are whole
    numbers of them.

    Args:
        program: what to run.
        index: which of its passes.
        operands: the name of each operand's dtype in ``triton.language``.
        kind: the name of the arithmetic's dtype.
    """
    phase = program.phases[index]
    touched = sorted({*phase.reads, *phase.writes}) or [PARAM]  # whose memory stands for none at all
    head, given = numbers_before(program, phase, kind)
    lines = {number: o for number, o in enumerate(phase.operations) if o.op == "line"}
    rows = [f"n{number}" for number, o in lines.items() if o.level is Level.ROW]
    columns = [f"line{o.detail}" for o in lines.values() if o.level is Level.COLUMN]
    pieces = [f"sum{k}" for k, _ in phase.sums if program.sums[k].level is Level.COLUMN]
    kinds = [program.reductions[row - len(program.inputs)].kind for row, _ in phase.reductions]
    sums = {f"row{k}": (k, program.sums[k].kind) for k, _ in phase.sums if program.sums[k].level is Level.ROW}
    totals = [*(f"total{k}" for k in range(len(kinds))), *sums]
    names = [*(f"a{o}" for o in touched), *IN_TILE, "tall", "keep", "offset", *given, *rows, *columns, *pieces, *totals]
    tile = tile_function(program, index, touched, operands, kind, names, [*given, *rows], totals)
    call = f"tile{index}(at, {', '.join(names)}, ROWS, COLUMNS, ALIGNED={{aligned}})"
    call = f"{', '.join(totals)} = {call}" if totals else call
    addresses = " | ".join(f"a{o}" for o in touched)
    body = [
        *chunk_lines(program, touched, operands),
        *(f"{name} = tl.load(places + {len(PLACE)} * chunk + {PLACE.index(name)})" for name in (*IN_TILE, "firstrow")),
        "tall = (count // width).to(tl.int32)",
        "ranks = tl.arange(0, ROWS)",
        *(f"line{o.detail} = tl.load(lines + {o.detail}).to(tl.pointer_type(tl.{kind}))" for o in lines.values()),
        *(f"sum{k} = tl.load(sums + {k}).to(tl.pointer_type(tl.float64))" for k, _ in phase.sums),
        *head,
        *(
            f"n{number} = tl.load(line{o.detail} + firstrow + ranks, mask=ranks < tall)[:, None]"
            for number, o in lines.items()
            if o.level is Level.ROW
        ),
        *(f"total{k} = tl.zeros((ROWS,), tl.{accumulator(x)})" for k, x in enumerate(kinds)),
        *(f"{name} = tl.zeros((ROWS,), tl.{accumulator(x)})" for name, (_, x) in sums.items()),
        f"aligned = {condition(f'(({addresses}) & 15 == 0) & (width % 8 == 0)')}",
        "vectors = tl.where(aligned, width, 0)",
        f"for at in {loop()}(0, vectors, COLUMNS):",
        f"    {call.format(aligned=True)}",
        f"for at in {loop()}(vectors, width, COLUMNS):",
        f"    {call.format(aligned=False)}",
        *(f"tl.store(partials + {len(kinds)} * chunk + {k}, {joined(x, f'total{k}')})" for k, x in enumerate(kinds)),
        *(
            f"tl.store(sum{k} + firstrow + ranks, {number_of_total(x, name)}, mask=ranks < tall)"
            for name, (k, x) in sums.items()
        ),
    ]
    arguments = (
        "pointers, chunks, places, lines, sums, scalars, reduced, partials, found_inf, tensors, "
        "ROWS: tl.constexpr, COLUMNS: tl.constexpr"
    )
    parts = [tile, KERNEL + define(f"pass{index}", arguments, body)]
    return "\n\n\n".join([*parts, KERNEL + gather_function(program, index, kinds)] if kinds else parts)


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
    """The function of a tile of rows and columns; it stores sums over columns and returns the running totals."""
    phase = program.phases[index]
    text = Text("v")
    known = {int(name[1:]): (name, False) for name in given}
    for number, o in enumerate(phase.operations):
        if o.op == "line" and o.level is Level.COLUMN:
            loaded = f"tl.load(line{o.detail} + firstcolumn + columns, mask=columns < width)[None, :]"
            known[number] = text.let(loaded), False
    values = element_values(text, phase, known, operands, kind)

    def parts_of(reduction: str, value: int) -> str:
        wide = text.let(f"tl.where(mask, {widened(text.number(values[value], kind), kind, 'float64')}, 0.0)")
        if reduction == "max_abs":
            return text.let(f"tl.abs({wide}).to(tl.int64, bitcast=True)")
        return text.let(f"{wide} * {wide}") if reduction == "sum_of_squares" else wide

    def add(total: str, reduction: str, value: int) -> None:
        part = reduced_tile(reduction, parts_of(reduction, value), 1)
        text.lines.append(
            f"{total} = {f'tl.maximum({total}, {part})' if reduction == 'max_abs' else f'{total} + {part}'}"
        )

    for k, (row, value) in enumerate(phase.reductions):
        add(f"total{k}", program.reductions[row - len(program.inputs)].kind, value)
    for k, value in phase.sums:
        reduction = program.sums[k]
        if reduction.level is Level.ROW:
            add(f"row{k}", reduction.kind, value)
        else:
            part = number_of_total(reduction.kind, reduced_tile(reduction.kind, parts_of(reduction.kind, value), 0))
            text.lines.append(f"tl.store(sum{k} + firstpiece + columns, {part}, mask=columns < width)")
    text.lines += stores(program, phase, text, values, operands, kind)
    body = [
        "if ALIGNED:",
        "    width = width // 8 * 8",  # which says so to the compiler, here alone
        "ranks = tl.arange(0, ROWS)",
        "columns = at + tl.arange(0, COLUMNS)",
        "lanes = ranks[:, None] * width + columns[None, :]",
        "mask = (ranks < tall)[:, None] & (columns < width)[None, :]",
        "kept = mask if keep is None else mask & keep",
        *(f"o{o} = a{o}.to(tl.pointer_type(tl.{operands[o]}))" for o in touched),
        "if ALIGNED:",
        *(f"    o{o} = tl.multiple_of(o{o}, 16)" for o in touched),
        *text.lines,
        *([f"return {', '.join(totals)}"] if totals else []),
    ]
    arguments = ", ".join(["at", *names, "ROWS: tl.constexpr", "COLUMNS: tl.constexpr", "ALIGNED: tl.constexpr"])
    return "@triton.jit\n" + define(f"tile{index}", arguments, body)


def reduced_tile(reduction: str, part: str, axis: int) -> str:
    return f"tl.{'max' if reduction == 'max_abs' else 'sum'}({part}, axis={axis})"


def number_of_total(reduction: str, total: str) -> str:
    return f"{total}.to(tl.float64, bitcast=True)" if reduction == "max_abs" else total


def join_source() -> str:
    """The kernels that bring the parts of sums over columns together, in their order, COLUMNS columns at a time."""
    kernels = []
    for kind, join in (("sum", "total + part"), ("max_abs", "tl.maximum(total, part)")):
        bits = f".to(tl.{accumulator(kind)}, bitcast=True)"
        body = [
            "column = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)",
            "mask = column < columns",
            "tensor = tl.load(owner + column, mask=mask, other=0)",
            "begin = tl.load(spans + 4 * tensor, mask=mask, other=0)",
            "first = tl.load(spans + 4 * tensor + 1, mask=mask, other=0)",
            "count = tl.load(spans + 4 * tensor + 2, mask=mask, other=0)",
            "width = tl.load(spans + 4 * tensor + 3, mask=mask, other=1)",
            "place = column - first",
            "at = begin + place // width * count * width + place % width",
            "most = tl.max(count, axis=0)",
            f"total = tl.zeros((PARTS, COLUMNS), tl.{accumulator(kind)})",
            f"for first_part in {loop()}(0, most, PARTS):",
            "    number = first_part + tl.arange(0, PARTS)",
            "    present = (number[:, None] < count[None, :]) & mask[None, :]",
            "    places = at[None, :] + number[:, None] * width[None, :]",
            f"    part = tl.load(parts + places, mask=present, other=0.0){bits}",
            f"    total = {join}",
            f"tl.store(table + column, {joined(kind, 'total')}, mask=mask)",
        ]
        arguments = "parts, owner, spans, table, columns, PARTS: tl.constexpr, COLUMNS: tl.constexpr"
        kernels.append('@triton.jit(do_not_specialize=["columns"])\n' + define(f"join_{kind}", arguments, body))
    return "\n\n\n".join(kernels)
