"""Every algorithm of matrices goes where its reference goes: 20 steps in float64, to a relative deviation."""

from __future__ import annotations

import importlib.util

import pytest
from every_algorithm import MATRIX as ALGORITHMS
from matrix_references import MATRIX
from parity_case import Case


@pytest.mark.filterwarnings("ignore")  # those of the packages are not ours
@pytest.mark.parametrize("case", MATRIX, ids=lambda case: case.id)
def test_the_reference_goes_the_same_way(case: Case) -> None:
    if case.package and importlib.util.find_spec(case.package) is None:
        pytest.skip(f"{case.package} is not installed: make parity")
    assert case.deviation() <= case.tolerance


def test_every_algorithm_of_matrices_has_a_reference() -> None:
    assert {case.name for case in MATRIX} == ALGORITHMS
