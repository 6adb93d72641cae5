"""Trainers that give bare parameters, in a list or in groups: what may be selected there, and what is refused how."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import steprule
from steprule import by_ndim


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def bare(model: nn.Module) -> list[Any]:
    return list(model.parameters())


def in_one_group(model: nn.Module) -> list[Any]:
    return [{"params": list(model.parameters())}]


def in_two_groups(model: nn.Module) -> list[Any]:
    own = list(model.parameters())
    return [{"params": own[:1], "lr": 0.5}, {"params": own[1:]}]


WAYS = [bare, in_one_group, in_two_groups]


@pytest.mark.parametrize("given", WAYS)
@pytest.mark.parametrize(
    "what",
    [by_ndim(1), ~by_ndim(2), lambda name, parameter, module: parameter.ndim < 2],
    ids=["by_ndim(1)", "~by_ndim(2)", "function"],
)
def test_selectors_that_look_at_the_parameter_alone_work(given: Any, what: Any) -> None:
    optimizer = steprule.AdamW(given(net()), weight_decay=0.25, overrides={what: dict(weight_decay=0.0)})
    decays = {p.ndim: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decays == {2: 0.25, 1: 0.0}
    assert all("param_names" not in group for group in optimizer.param_groups)


@pytest.mark.parametrize("given", WAYS)
@pytest.mark.parametrize("what", ["*.bias", steprule.biases, nn.LayerNorm, steprule.norms], ids=str)
def test_those_that_need_more_say_what_to_pass(given: Any, what: Any) -> None:
    with pytest.raises(ValueError, match=r"give the nn.Module.*where a trainer gives bare parameters, by_ndim\(...\)"):
        steprule.AdamW(given(net()), overrides={what: dict(weight_decay=0.0)})


def test_a_function_of_the_name_is_told_that_there_are_none() -> None:
    with pytest.raises(ValueError, match="matches no parameter; they have no names here"):
        steprule.AdamW(bare(net()), overrides={lambda name, p, module: "bias" in name: dict(weight_decay=0.0)})
