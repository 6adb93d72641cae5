"""What algorithms declare of their hyperparameters: torch's refusals, the docstrings and the page follow from it."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from algorithm_cases import OPTIONS, arguments
from every_algorithm import ALGORITHMS, CLASSES
from hypothesis import given, settings
from hypothesis import strategies as st

import steprule
from steprule.grouping.hyperparameters import Range

ROOT = Path(__file__).parents[2]
EVERY = pytest.mark.parametrize("name", ALGORITHMS)

NUMBERS = [-1.0, -1e-3, 0.0, 0, 0.5, 1.0, 1, 1.5, math.inf, -math.inf, math.nan]
TENSORS = [torch.tensor(value) for value in (-0.5, 0.0, 0.5, 2.0)]
LATER = {"ns_steps", "ns_coefficients"}
"""What torch refuses in the step, and we in the constructor."""


def outcome(make: Callable[[], Any]) -> tuple[type, str] | None:
    try:
        make()
    except Exception as error:
        return type(error), str(error)
    return None


@st.composite
def chosen(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """Some arguments of a constructor of torch's, good and bad."""
    numbers: st.SearchStrategy[Any] = st.sampled_from([*NUMBERS, *TENSORS])
    given: dict[str, Any] = {}
    for key, argument in arguments(name).items():
        if key in LATER or isinstance(argument.default, bool) or not draw(st.booleans()):
            continue
        if isinstance(argument.default, tuple):
            given[key] = tuple(
                draw(st.one_of(st.just(value), numbers, *[st.none()] * (value is None))) for value in argument.default
            )
        elif isinstance(argument.default, (int, float)):
            given[key] = draw(numbers)
    return given


def refused(library: Any, name: str, **options: Any) -> tuple[type, str] | None:
    return outcome(lambda: getattr(library, name)([torch.ones(2, 2, requires_grad=True)], **options))


@pytest.mark.parametrize("name", OPTIONS)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_what_torch_refuses_is_refused_and_what_it_takes_is_taken(name: str, data: st.DataObject) -> None:
    options = data.draw(chosen(name))
    if name == "SGD":  # which asks "lr < 0" in torch, and takes NaN
        options = {key: value for key, value in options.items() if isinstance(value, torch.Tensor) or value == value}
    assert refused(steprule, name, **options) == refused(torch.optim, name, **options)


@pytest.mark.parametrize("name", OPTIONS)
def test_of_two_that_are_wrong_the_one_is_named_that_torch_names(name: str) -> None:
    wrong = {
        key: value
        for key in arguments(name)
        for value in (-1.0, 2.0, (-1.0, 2.0))
        if key not in LATER and (error := refused(torch.optim, name, **{key: value})) and error[0] is ValueError
    }
    assert "lr" in wrong
    for pair in itertools.combinations(wrong, 2):
        options = {key: wrong[key] for key in pair}
        assert refused(steprule, name, **options) == refused(torch.optim, name, **options)


def declared(name: str) -> dict[str, list[Range]]:
    """The ranges of numbers; those of a tuple together."""
    ranges = CLASSES[name].ranges
    found = {key: list(value) if isinstance(value, tuple) else [value] for key, value in ranges.items()}
    return {key: value for key, value in found.items() if isinstance(value[0], Range)}


@EVERY
def test_every_number_is_declared(name: str) -> None:
    for key, argument in inspect.signature(CLASSES[name]).parameters.items():
        values = argument.default if isinstance(argument.default, tuple) else (argument.default,)
        numbers = bool(values) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
        assert not numbers or key in {*declared(name), "l1", "seed", "ns_coefficients"}


@EVERY
def test_what_is_usual_is_not_refused(name: str) -> None:
    for key, ranges in declared(name).items():
        for one in ranges:
            for number in re.findall(r"-?\d[\d.]*(?:e-?\d+)?", one.usual):
                one.check(key, float(number))


def documented(name: str) -> dict[str, str]:
    """What the docstring says is usual: the last words of an argument's description."""
    text = inspect.cleandoc(CLASSES[name].__doc__ or "").split("Args:")[1].split("\n\n")[0]
    entries = re.findall(r"^    (\w+) \(.*?\): (.*?)(?=\n    \w|\Z)", text, re.S | re.M)
    last = {key: " ".join(words.split()).removesuffix(".").split("; ")[-1] for key, words in entries}
    return {
        key: words.removeprefix("usually ")
        for key, words in last.items()
        if re.match(r"usually |-?\d|None", words) and not words.endswith("slot")
    }


@EVERY
def test_docstrings_say_what_is_declared(name: str) -> None:
    arguments = inspect.signature(CLASSES[name]).parameters
    expected = {key: [one.usual for one in ranges] for key, ranges in declared(name).items() if key in arguments}
    assert documented(name) == {key: " and ".join(usual) for key, usual in expected.items() if any(usual)}


def test_the_page_is_made_of_what_is_declared() -> None:
    file = ROOT / "scripts" / "hyperparameters_page.py"
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = script.PAGE.read_text(encoding="utf-8")
    assert page == script.page(), "run python scripts/hyperparameters_page.py"
    assert set(re.findall(r"^\| `(\w+)`", page, re.M)) == set(ALGORITHMS)
