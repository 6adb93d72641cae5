"""The declaration of hyperparameters, in a rule of one's own."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.optim.optimizer import required

import steprule
from steprule import Choice, Range, schedules


class Mine(steprule.Optimizer):
    ranges: ClassVar = {
        "lr": Range(above=0, called="rate"),
        "mix": (Range(least=0), Range(most=1, message="{called} should be {range} but is: {value} of {whole}")),
        "cap": Range(least=0, optional=True),
        "form": Choice(choices=("sign", "plain")),
    }

    def __init__(
        self, params: Any, lr: Any = required, mix: Any = (0, 1), cap: Any = None, form: Any = "plain", **options: Any
    ) -> None:
        super().__init__(params, dict(lr=lr, mix=mix, cap=cap, form=form), **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        return p - h.lr * g


def ones() -> Tensor:
    return torch.ones(2, requires_grad=True)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"lr": 0}, ValueError, "Invalid rate: 0"),
    ({"lr": math.nan}, ValueError, "Invalid rate: nan"),
    ({"lr": None}, TypeError, "lr must be a number, a tensor that holds one or a schedule, got None"),
    ({"lr": torch.ones(2)}, ValueError, "Tensor lr must be 1-element"),
    ({"lr": schedules.constant(-1.0)}, ValueError, "Invalid rate: -1.0"),
    ({"mix": 1}, TypeError, "mix must be two numbers, got 1"),
    ({"mix": torch.tensor(1.0)}, TypeError, "mix must be two numbers, got tensor(1.)"),
    ({"mix": (0, 1, 1)}, TypeError, "mix must be two numbers, got (0, 1, 1)"),
    ({"mix": (-1, 0)}, ValueError, "Invalid mix[0] value: -1"),
    ({"mix": [0, 2]}, ValueError, "mix[1] value should be <= 1 but is: 2 of (0, 2)"),
    ({"mix": (0, "1")}, TypeError, "mix[1] must be a number, a tensor that holds one or a schedule, got '1'"),
    ({"cap": -0.5}, ValueError, "Invalid cap value: -0.5"),
    ({"cap": "1"}, TypeError, "cap must be a number, a tensor that holds one or a schedule, got '1'"),
    ({"form": "sing"}, ValueError, "Invalid form: 'sing'; it is one of sign, plain"),
]


@pytest.mark.parametrize(("given", "kind", "message"), BAD, ids=[str(given) for given, _, _ in BAD])
def test_defaults_groups_and_overrides_are_refused_alike(
    given: dict[str, Any], kind: type[Exception], message: str
) -> None:
    optimizer = Mine([ones()], lr=0.1)
    for make in (
        lambda: Mine([ones()], **{"lr": 0.1, **given}),
        lambda: Mine([{"params": [ones()], **given}], lr=0.1),
        lambda: Mine(torch.nn.Linear(1, 1), lr=0.1, overrides={"bias": given}),
        lambda: optimizer.add_param_group({"params": [ones()], **given}),
    ):
        with pytest.raises(kind) as raised:
            make()
        assert str(raised.value) == message
    assert len(optimizer.param_groups) == 1


def test_a_rate_that_is_required_may_come_with_every_group() -> None:
    assert Mine([{"params": [ones()], "lr": 0.5}]).param_groups[0]["lr"] == 0.5
    with pytest.raises(ValueError, match="required optimization parameter lr"):
        Mine([ones()])


def test_what_is_in_range_is_taken() -> None:
    group = Mine([ones()], lr=torch.tensor(0.5), mix=[math.inf, -math.inf], cap=0, form="sign").param_groups[0]
    assert [group["mix"], group["cap"], group["form"]] == [[math.inf, -math.inf], 0, "sign"]


def test_a_range_for_nothing_is_refused() -> None:
    class Misspelt(Mine):
        ranges: ClassVar = {"lr": Range(), "fom": Choice(choices=("sign",))}

    with pytest.raises(
        TypeError, match="a range is declared for 'fom', which is no hyperparameter; did you mean 'form'"
    ):
        Misspelt([ones()], lr=0.1)


BOUNDS = st.none() | st.integers(-3, 3)


@given(least=BOUNDS, most=BOUNDS, above=BOUNDS, below=BOUNDS, value=st.integers(-4, 4) | st.just(math.nan))
def test_a_range_holds_what_its_text_says(
    least: int | None, most: int | None, above: int | None, below: int | None, value: float
) -> None:
    tried = Range(least=least, most=most, above=above, below=below)
    says = all(eval(f"value {bound}", {"value": value}) for bound in str(tried).split(" and ") if bound)
    assert tried.holds(value) == says
