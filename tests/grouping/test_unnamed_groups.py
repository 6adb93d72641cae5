"""Trainers that give bare parameters, in a list or in groups: what may be selected there, and what is refused how."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from typing import Any

import pytest
from torch import nn

import steprule
from steprule import by_ndim
from steprule.grouping.selectors import select


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


NEITHER = r"where a trainer gives bare parameters, by_ndim\(...\) and functions of the parameter"


@pytest.mark.parametrize("given", WAYS)
@pytest.mark.parametrize(
    "test",
    [
        lambda name, p, module: "bias" in name,
        lambda name, p, module: not name.endswith("bias"),
        lambda name, p, module: p.ndim == 1 and name[-4:] == "bias",
        lambda name, p, module: name in {"0.bias"},
        lambda name, p, module: fnmatch(name, "*.bias"),
        lambda name, p, module: name == "0.bias",
        lambda name, p, module: re.search("bias$", name),
        lambda name, p, module: f"{name}!" == "0.bias!",
        lambda name, p, module: name > "0",
        lambda name, p, module: name.split(".")[-1] == "bias",
    ],
)
def test_a_function_of_the_name_says_what_to_pass(given: Any, test: Any) -> None:
    message = rf"<lambda> .*without names were given: give the nn.Module or model.named_parameters\(\); {NEITHER}"
    with pytest.raises(ValueError, match=message):
        steprule.AdamW(given(net()), overrides={test: dict(weight_decay=0.0)})
    steprule.AdamW(net(), overrides={test: dict(weight_decay=0.0)})


def test_a_function_may_ask_whether_there_is_a_name() -> None:
    for test in (lambda name, p, m: not name and p.ndim < 2, lambda name, p, m: name == "" and p.ndim < 2):
        assert len(steprule.AdamW(bare(net()), overrides={test: dict(weight_decay=0.0)}).param_groups) == 2


@pytest.mark.parametrize(
    "test",
    [lambda name, p, module: isinstance(module, nn.LayerNorm), lambda name, p, module: module.weight.ndim == 1],
)
@pytest.mark.parametrize("given", [*WAYS, lambda model: list(model.named_parameters())])
def test_a_function_of_the_module_says_what_to_pass(given: Any, test: Any) -> None:
    with pytest.raises(ValueError, match=rf"<lambda> .*give the nn.Module.*; {NEITHER}"):
        steprule.AdamW(given(net()), overrides={test: dict(weight_decay=0.0)})
    with pytest.raises(ValueError, match=rf"give the nn.Module.*; {NEITHER}"):
        steprule.AdamW(given(net()), overrides={by_ndim(1) & test: dict(weight_decay=0.0)})


def test_what_somebody_got_wrong_himself_is_not_put_down_to_bare_parameters() -> None:
    with pytest.raises(AttributeError, match="'dimensions'"):
        steprule.AdamW(bare(net()), overrides={lambda name, p, module: p.dimensions > 1: dict(weight_decay=0.0)})
    with pytest.raises(ValueError, match=r"^by_ndim\(9\) matches no parameter$"):
        steprule.AdamW(bare(net()), overrides={by_ndim(9): dict(weight_decay=0.0)})


class Narrow:
    def __call__(self, *, parameter: Any) -> bool:
        return bool(parameter.ndim < 2)


@pytest.mark.parametrize(
    ("test", "said"),
    [
        (lambda p: p.ndim < 2, r"<lambda>\(p\) cannot select \(too many positional arguments\)"),
        (lambda name, p: p.ndim < 2, r"<lambda>\(name, p\) cannot select"),
        (lambda name, p, module, depth: True, r"cannot select \(missing a required argument: 'depth'\)"),
        (Narrow(), r"Narrow object .* cannot select"),
    ],
)
def test_a_function_that_does_not_take_three_says_how_it_is_called(test: Any, said: str) -> None:
    for ask in (lambda: steprule.AdamW(net(), overrides={test: dict(weight_decay=0.0)}), lambda: by_ndim(1) & test):
        with pytest.raises(TypeError, match=rf"{said}.*lambda name, parameter, module: parameter.ndim < 2"):
            ask()


@pytest.mark.parametrize("test", [lambda *entry: entry[1].ndim < 2, lambda name, p, module=None, more=1: p.ndim < 2])
def test_a_function_that_can_take_three_selects(test: Any) -> None:
    assert [p.ndim for _, p in select(net(), test)] == [1, 1, 1, 1]
