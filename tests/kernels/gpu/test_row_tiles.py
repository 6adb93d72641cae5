"""How matrices are cut into tiles: every element once, every sum joined, and few programs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steprule.cli.bench.tensor_shapes import SHAPES
from steprule.kernels.gpu.row_tiles import ELEMENTS, PLACE, SPAN, Joins, Tiling
from steprule.kernels.row_tables import matrix_shape

EXTENTS = st.tuples(st.integers(0, 5), st.integers(0, 40), st.integers(0, 40))


def filled(joins: Joins, parts: list[tuple[int, float]]) -> list[float]:
    """The sums that are joined of what chunks have stored: (place, value)."""
    table = np.zeros(joins.size)
    for place, value in parts:
        assert table[place] == 0.0, "two chunks store a sum in one place"
        table[place] = value
    for first, stride, count, target in joins.table.tolist():
        table[target] = sum(table[first + k * stride] for k in range(count))
    return table[: joins.total].tolist()  # type: ignore[no-any-return]


@settings(deadline=None)
@given(st.lists(EXTENTS, min_size=1, max_size=4), st.sampled_from([4, 16, 64]), st.sampled_from([1, 2, 8]))
def test_every_element_stands_in_one_chunk_and_in_the_sums_of_its_row_and_column(
    shapes: list[tuple[int, int, int]], elements: int, tiles: int
) -> None:
    tiling = Tiling(shapes, elements, tiles * elements)
    arrays = [np.arange(1.0, 1.0 + math.prod(shape)).reshape(shape) for shape in shapes]
    taken = [np.zeros(math.prod(shape), int) for shape in shapes]
    rows: list[tuple[int, float]] = []
    columns: list[tuple[int, float]] = []
    for tile, numbers in tiling.tiles.items():
        assert math.prod(tile) <= elements
        for chunk in numbers:
            tensor, offset, grad_offset, count = tiling.chunks[chunk].tolist()
            assert offset == grad_offset
            at = dict(zip(PLACE, tiling.places[chunk].tolist(), strict=True))
            assert (at["held"], at["tall"]) <= (tile.many, tile.rows)
            assert tile.many == 1 or at["stop"] - at["begin"] <= tile.columns
            place = offset + (np.arange(at["held"])[:, None, None] * at["height"] * at["width"])
            place = place + np.arange(at["tall"])[:, None] * at["width"] + np.arange(at["begin"], at["stop"])
            assert count == at["held"] * at["tall"] * at["width"]
            taken[tensor][place.ravel()] += 1
            value = arrays[tensor].ravel()[place]
            for m, r in np.ndindex(at["held"], at["tall"]):
                rows.append((at["rowpart"] + m * at["height"] + r, value[m, r].sum()))
            for m, c in np.ndindex(at["held"], at["stop"] - at["begin"]):
                columns.append((at["columnpart"] + m * at["width"] + at["begin"] + c, value[m, :, c].sum()))
    assert all((own == 1).all() for own in taken)
    assert filled(tiling.row_sums, rows) == np.concatenate([a.sum(axis=2).ravel() for a in arrays]).tolist()
    assert filled(tiling.column_sums, columns) == np.concatenate([a.sum(axis=1).ravel() for a in arrays]).tolist()
    assert sum(tiling.counts) == len(tiling.chunks)


def cut(*shapes: tuple[int, ...]) -> Tiling:
    return Tiling([matrix_shape(shape) for shape in shapes if len(shape) > 1])


@pytest.mark.parametrize(
    "shape", [(768, 50257), (50257, 768), (1, 10_000_000), (10_000_000, 1), (4096, 8), (8, 4096), (512, 512, 3, 3)]
)
def test_a_matrix_is_cut_into_enough_programs_and_not_too_many(shape: tuple[int, ...]) -> None:
    size, chunks = math.prod(shape), len(cut(shape).chunks)
    least, most = size // SPAN, size // (ELEMENTS // 4)
    assert least <= chunks <= most


def test_the_convolutions_of_resnet_are_few_programs_and_small_tables() -> None:
    shapes: Any = [shape for shape in SHAPES["resnet50"] if len(shape) > 1]
    tiling = cut(*shapes)
    elements = sum(map(math.prod, shapes))
    assert len(tiling.chunks) <= elements / 500  # one for each of 13 million matrices before
    tables = [tiling.chunks, tiling.places, *tiling.tiles.values(), tiling.row_sums.table, tiling.column_sums.table]
    assert sum(table.nbytes for table in tables) <= 0.1 * 4 * elements
    assert len(tiling.tiles) <= 4
