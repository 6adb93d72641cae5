"""Algorithms by name: for configuration files, sweeps and command lines."""

from __future__ import annotations

import json

import pytest
import torch
from every_algorithm import ALGORITHMS
from torch import nn

import steprule
from steprule.schedules import cosine, linear, warmup


def test_every_algorithm_has_a_name_and_one_sentence() -> None:
    names = steprule.algorithms.names()
    assert sorted(names) == sorted(ALGORITHMS)
    assert list(names) == sorted(names, key=str.casefold)
    for name, sentence in names.items():
        assert sentence.endswith(".")
        assert sentence.count(". ") == 0
        assert sentence[0].isupper()
        assert not sentence.startswith(f"{name}:")


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_name_makes_what_the_class_makes(name: str) -> None:
    matrix = torch.ones(3, 3, requires_grad=True)
    made = steprule.create(name, [matrix], lr=0.25)
    assert type(made) is getattr(steprule, name)
    assert made.defaults == getattr(steprule, name)([matrix], lr=0.25).defaults
    assert type(steprule.create(name.lower(), [matrix])) is type(made)


class Own(steprule.SGD):
    """A class of a person's own is no algorithm of ours."""


def test_classes_of_other_packages_are_not_among_them() -> None:
    assert "Own" not in steprule.algorithms.names()
    with pytest.raises(ValueError, match="there is no algorithm 'Own'"):
        steprule.create("Own", [torch.ones(1, requires_grad=True)])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("AdmaW", "there is no algorithm 'AdmaW'; did you mean 'AdamW'"),
        ("adaaw", "there is no algorithm 'adaaw'; did you mean 'AdamW'"),
        ("rmsprop_", "did you mean 'RMSprop'"),
        ("xyz", "there is no algorithm 'xyz'; there are AdaBelief, AdaBound, Adadelta, .*, Yogi"),
        ("steprule.AdmW", "no algorithm .steprule.AdmW.; did you mean .AdamW."),
        ("torch.optim.AdamW", "no algorithm .torch.optim.AdamW.; did you mean .AdamW."),
        ("Optimizer", "there is no algorithm 'Optimizer'"),
    ],
)
def test_a_wrong_name_says_the_nearest(wrong: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        steprule.create(wrong, [torch.ones(1, requires_grad=True)])


def test_what_is_no_name_is_refused() -> None:
    with pytest.raises(TypeError, match="name must be the name of an algorithm, such as 'AdamW', got None"):
        steprule.create(None, [torch.ones(1, requires_grad=True)])  # type: ignore[arg-type]


def test_a_hyperparameter_that_it_does_not_have_is_refused_as_by_the_class() -> None:
    with pytest.raises(TypeError, match="momentum"):
        steprule.create("AdamW", [torch.ones(1, requires_grad=True)], momentum=0.9)
    with pytest.raises(ValueError, match=r"Invalid learning rate: -1"):
        steprule.create("AdamW", [torch.ones(1, requires_grad=True)], lr=-1.0)


def test_schedules_come_out_of_a_configuration_file() -> None:
    model = nn.Linear(2, 2)
    rate = 0.5 * warmup(2).then(cosine(4))
    settings = {
        "lr": rate.to_dict(),
        "betas": [0.9, (0.5 * linear(4)).to_dict()],
        "overrides": {"bias": {"weight_decay": linear(2).to_dict(), "lr": 0.125}},
    }
    made = steprule.create("AdamW", model, **json.loads(json.dumps(settings)))
    overrides = {"bias": {"weight_decay": linear(2), "lr": 0.125}}
    same = steprule.AdamW(model, lr=rate, betas=(0.9, 0.5 * linear(4)), overrides=overrides)
    assert [g["schedules"] for g in made.param_groups] == [g["schedules"] for g in same.param_groups]
    assert [g["lr"] for g in made.param_groups] == [g["lr"] for g in same.param_groups]


def test_a_malformed_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown schedule 'cosin'; did you mean 'cosine'"):
        steprule.create("AdamW", [torch.ones(1, requires_grad=True)], lr={"schedule": "cosin", "steps": 3})
