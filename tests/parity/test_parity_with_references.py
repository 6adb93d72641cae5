"""Every algorithm that torch lacks goes where its reference goes: 20 steps in float64, to a relative deviation."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from every_algorithm import ALGORITHMS, MATRIX
from parity_case import Case
from references import CASES, REFERENCES


@pytest.mark.filterwarnings("ignore")  # those of the packages are not ours
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_reference_goes_the_same_way(case: Case) -> None:
    if case.package and importlib.util.find_spec(REFERENCES[case.package]) is None:
        pytest.skip(f"{case.package} is not installed: make parity")
    assert case.deviation() <= case.tolerance


def test_a_reference_with_another_number_deviates() -> None:
    """What is compared can differ: the harness is not blind."""
    case = next(case for case in CASES if not case.package)
    other = Case(case.name, case.theirs, {**case.ours, "weight_decay": 0.3}, shapes=case.shapes)
    assert other.deviation() > 1e-3


def test_every_algorithm_that_torch_lacks_has_a_reference() -> None:
    in_papers = {"Lamb", "Lion"}  # of tests/algorithms/test_papers.py
    ours = {name for name in ALGORITHMS if not hasattr(torch.optim, name)}
    assert {case.name for case in CASES} == ours - MATRIX - in_papers
