"""The example of an optimizer of one's own, against a plain loop."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

EXAMPLE = Path(__file__).parents[1] / "examples" / "elastic_sgd.py"


def load_example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("elastic_sgd", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


elastic_sgd = load_example()

matrices = arrays.arrays(
    np.float64,
    arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=7),
    elements=st.floats(-3, 3, allow_subnormal=False),
)
penalties = st.sampled_from([0.0, 0.01, 0.3])


@settings(deadline=None)  # the first example compiles
@given(start=matrices, lr=st.sampled_from([0.01, 0.2]), l1=penalties, l2=penalties)
def test_elastic_sgd_is_the_plain_loop(start: np.ndarray, lr: float, l1: float, l2: float) -> None:
    weight = torch.from_numpy(start.copy()).requires_grad_()
    optimizer = elastic_sgd.ElasticSGD([weight], lr=lr, l1=l1, l2=l2)
    expected = start
    for step in range(12):
        weight.grad = weight.detach().sin() - step / 12
        optimizer.step()
        expected = expected - lr * (np.sin(expected) - step / 12 + l1 * np.sign(expected) + l2 * expected)

    np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=1e-10, atol=1e-12)


def test_penalties_of_groups_and_penalties_that_change() -> None:
    weights = [torch.tensor([2.0, -2.0, 0.0], requires_grad=True) for _ in range(2)]
    optimizer = elastic_sgd.ElasticSGD([{"params": weights[0], "l1": 0.5}, {"params": weights[1], "l2": 0.5}], lr=0.1)
    for weight in weights:
        weight.grad = torch.zeros(3)
    optimizer.step()
    torch.testing.assert_close(weights[0].detach(), torch.tensor([1.95, -1.95, 0.0]))
    torch.testing.assert_close(weights[1].detach(), torch.tensor([1.9, -1.9, 0.0]))

    optimizer.param_groups[0]["l1"], optimizer.param_groups[1]["l1"] = 0.0, 1.0
    optimizer.step()
    torch.testing.assert_close(weights[0].detach(), torch.tensor([1.95, -1.95, 0.0]))
    torch.testing.assert_close(weights[1].detach(), torch.tensor([1.705, -1.705, 0.0]))


def test_the_example_finds_the_sparse_signal(capsys: pytest.CaptureFixture[str]) -> None:
    elastic_sgd.main()

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["true", "plain", "elastic"]
    rows = np.array([[float(number) for number in line.split()] for line in lines[1:]])
    true, plain, elastic = rows.T
    assert len(rows) == 20
    off = true == 0
    assert np.abs(elastic[off]).max() < 0.05 < np.abs(plain[off]).max()
    assert np.all(np.sign(elastic[~off]) == np.sign(true[~off]))
