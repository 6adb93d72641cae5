"""check_rule finds what is wrong with a rule, and nothing where nothing is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import steprule
from steprule import Optimizer
from steprule.rule import norm, sqrt
from steprule.testing import check_rule

FEW: dict[str, Any] = dict(shapes=[(7,), (3, 5)], dtypes=[torch.float32, torch.bfloat16])


class Plain(Optimizer):
    def __init__(self, params: Any, lr: float = 0.1, **options: Any) -> None:
        super().__init__(params, dict(lr=lr), **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        s.velocity = 0.9 * s.velocity + g
        return p - h.lr * s.velocity


@pytest.mark.parametrize("kind", [Plain, steprule.AdamW, steprule.Lamb, steprule.Adafactor], ids=lambda k: k.__name__)
def test_nothing_is_found_where_nothing_is_wrong(kind: Any) -> None:
    check_rule(kind, lr=0.01, **FEW)


def failures(kind: Any, **options: Any) -> list[str]:
    with pytest.raises(AssertionError) as error:
        check_rule(kind, **{**FEW, **options})
    first, *lines = str(error.value).splitlines()
    assert first == f"{kind.__name__}: {len(lines)} check{'s' * (len(lines) > 1)} failed"
    return lines


def test_a_division_by_zero() -> None:
    class Normalized(Plain):
        def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            return p - h.lr * g / sqrt(norm(g))

    assert failures(Normalized, dtypes=[torch.float32]) == [
        f"zero gradients leave {shape} of torch.float32 not finite" for shape in ("(7,)", "(3, 5)")
    ]


def test_what_is_refused_for_one_reason_is_one_line() -> None:
    class Product(Plain):
        def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            return p - g @ g

    [line] = failures(Product)
    assert line.startswith("(7,) of torch.float32, (3, 5) of torch.float32, (3, 5) transposed in memory")
    assert " and 5 others are refused: RuleError: @ does not apply to (g)" in line


def test_code_that_differs_by_backend() -> None:
    class Differs(Plain):
        def __init__(self, params: Any, lr: float = 0.1, backend: str = "auto") -> None:
            super().__init__(params, lr=lr * (1.0 if backend == "eager" else 1.01), backend=backend)

    found = failures(Differs)
    assert all("compiled code and torch operations differ by" in line for line in found)
    assert {line.split(":")[0] for line in found} >= {
        "(7,) of torch.float32",
        "(3, 5) transposed in memory of torch.float32",
        "(3, 5) with gaps in memory of torch.bfloat16",
    }


def test_a_state_that_is_not_saved() -> None:
    class Forgets(Plain):
        def step(self, closure: Any = None) -> Any:
            self.count = getattr(self, "count", 0) + 1
            self.param_groups[0]["lr"] = 0.1 / self.count
            return super().step(closure)

        def load_state_dict(self, state_dict: Any) -> Any:  # type: ignore[override]
            self.count = 0
            return super().load_state_dict(state_dict)

    assert failures(Forgets) == [
        f"parameters of {dtype} have other bits when the run is saved and resumed"
        for dtype in ("torch.float32", "torch.bfloat16")
    ]


def test_parameters_that_change_without_a_gradient() -> None:
    class Restless(Plain):
        def step(self, closure: Any = None) -> Any:
            with torch.no_grad():
                for p in self.param_groups[0]["params"]:
                    p += 1.0
            return super().step(closure)

    found = failures(Restless, dtypes=[torch.float32])
    assert found == [
        f"parameter {i} of torch.float32, {shape}, changes in a step in which it has no gradient"
        for i, shape in enumerate(("(7,)", "(3, 5)"))
    ]


def test_what_is_refused_is_said_once() -> None:
    class Refuses(Plain):
        def step(self, closure: Any = None) -> Any:
            raise ValueError("only on Sundays")

    found = failures(Refuses, shapes=[(7,)], dtypes=[torch.float32])
    assert found == ["(7,) of torch.float32 is refused: ValueError: only on Sundays"]
