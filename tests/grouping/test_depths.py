"""Falling rates where several networks stand side by side, and shapes that are not known yet."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import steprule
from steprule.grouping.layers import layer_decay
from steprule.grouping.selectors import by_ndim


class Block(nn.Module):
    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)


class Tower(nn.Module):
    def __init__(self, depth: int = 3, width: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(width, width)
        self.blocks = nn.ModuleList([Block(width) for _ in range(depth)])
        self.head = nn.Linear(width, 1)


class Other(Tower):
    """Another kind of tower."""


def rates(model: nn.Module, **options: Any) -> dict[str, float]:
    overrides = layer_decay(model, 0.5, **options)
    optimizer = steprule.SGD(model, lr=1.0, overrides=overrides)
    return {n: g["lr"] for g in optimizer.param_groups for n in g["param_names"]}


def assert_tower(found: dict[str, float], prefix: str, depth: int) -> None:
    assert found[f"{prefix}head.weight"] == 1.0
    assert [found[f"{prefix}blocks.{i}.linear.weight"] for i in range(depth)] == [
        0.5 ** (depth - i) for i in range(depth)
    ]
    assert found[f"{prefix}embed.weight"] == 0.5 ** (depth + 1)


@pytest.mark.parametrize("names", [("student", "teacher"), ("teacher", "student")])
def test_a_student_beside_a_frozen_teacher_has_a_depth_of_its_own(names: tuple[str, str]) -> None:
    model = nn.Module()
    for name in names:
        setattr(model, name, Tower())
    model.teacher.requires_grad_(False)
    found = rates(model)
    for name in names:
        assert_tower(found, f"{name}.", 3)


def test_two_towers_of_different_kinds_are_said_to_have_each_a_depth() -> None:
    model = nn.Module()
    model.image, model.text, model.scale = Tower(4), Other(2), nn.Linear(1, 1)
    with pytest.warns(
        UserWarning, match="Module holds blocks in image, text: each is taken to have a depth of its own"
    ):
        overrides = layer_decay(model, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = rates(model)
    assert overrides
    assert_tower(found, "image.", 4)
    assert_tower(found, "text.", 2)
    assert found["scale.weight"] == 1.0


def plain(depth: int = 3) -> nn.Sequential:
    return nn.Sequential(*[nn.Linear(2, 2) for _ in range(depth)])


@pytest.mark.parametrize("names", [("student", "teacher"), ("teacher", "student")])
def test_plain_layers_beside_frozen_ones_of_the_same_sizes_have_a_depth_of_their_own(names: tuple[str, str]) -> None:
    model = nn.Module()
    for name in names:
        setattr(model, name, plain())
    model.head = nn.Linear(2, 1)
    model.teacher.requires_grad_(False)
    found = rates(model)
    assert [found[f"{name}.{i}.weight"] for name in names for i in range(3)] == [0.25, 0.5, 1.0] * 2
    assert found["head.weight"] == 1.0


def test_containers_that_are_alike_follow_each_other_and_it_is_said() -> None:
    model = nn.Module()
    model.stem, model.one, model.two = nn.Linear(2, 2), plain(), plain()
    with pytest.warns(UserWarning, match=r"one and two of Module are alike: they are taken to follow each other"):
        overrides = layer_decay(model, 0.5)
    assert len(overrides) == 6


def test_stages_of_one_network_stay_one_depth() -> None:
    model = nn.Module()
    model.stage1, model.stage2 = Tower(1, 2), Tower(1, 4)
    found = rates(model)
    assert found["stage1.blocks.0.linear.weight"] < found["stage2.blocks.0.linear.weight"]


def test_heads_of_several_tasks_are_one_layer() -> None:
    model = nn.Module()
    model.trunk = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])
    model.heads = nn.ModuleList([nn.Linear(2, 1) for _ in range(2)])
    found = rates(model)
    assert [found[f"trunk.{i}.weight"] for i in range(3)] == [0.125, 0.25, 0.5]
    assert [found[f"heads.{i}.weight"] for i in range(2)] == [1.0, 1.0]


def test_a_wrapped_model_of_two_towers() -> None:
    inner, model = nn.Module(), nn.Module()
    inner.a, inner.b = Tower(2), Tower(2)
    model.module = inner
    found = rates(model)
    assert_tower(found, "module.a.", 2)
    assert_tower(found, "module.b.", 2)


def test_a_mapping_gives_several_depths() -> None:
    model = nn.ModuleDict({"trunk": nn.Linear(2, 2), "one": nn.Linear(2, 2), "two": nn.Linear(2, 2)})
    found = rates(model, order={"first": ["trunk.*", "one.*"], "second": ["two.*"]})
    assert {name: found[f"{name}.weight"] for name in model} == {"trunk": 0.5, "one": 1.0, "two": 1.0}
    with pytest.raises(ValueError, match="order leaves out two"):
        layer_decay(model, 0.5, {"first": ["trunk.*", "one.*"]})


def test_rules_by_shape_refuse_what_has_no_shape_yet() -> None:
    def lazy() -> nn.Sequential:
        return nn.Sequential(nn.Linear(2, 3), nn.LazyLinear(3))

    for make in (
        lambda: steprule.Muon(lazy()),
        lambda: steprule.SGD(lazy(), overrides={by_ndim(1): dict(lr=0.1)}),
        lambda: steprule.Muon([nn.LazyLinear(3, bias=False).weight]),
    ):
        with pytest.raises(ValueError, match=r"parameter .* has no shape yet.*let the model see one input"):
            make()
    model = lazy()
    model(torch.ones(1, 2))
    steprule.SGD(model, overrides={by_ndim(1): dict(lr=0.1)})
    assert steprule.SGD(lazy()).param_groups
