"""param_groups changed by hand: steps go on as with torch, and names stay with their parameters."""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import steprule


def network(layers: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(layers)))


def take(model: nn.Module, optimizer: torch.optim.Optimizer, times: int = 2) -> None:
    for index in range(times):
        for k, p in enumerate(model.parameters()):
            p.grad = torch.full_like(p, float(index + k + 1))
        optimizer.step()


def append(model: nn.Sequential, groups: list[dict[str, Any]]) -> None:
    torch.manual_seed(1)
    model.append(nn.Linear(2, 2, bias=False))
    groups[0]["params"].append(model[3].weight)


def drop(model: nn.Sequential, groups: list[dict[str, Any]]) -> None:
    del groups[0]["params"][0]


def reverse(model: nn.Sequential, groups: list[dict[str, Any]]) -> None:
    groups[0]["params"] = groups[0]["params"][::-1]


def move(model: nn.Sequential, groups: list[dict[str, Any]]) -> None:
    p = groups[0]["params"].pop(1)
    groups.append({**groups[0], "params": [p], "lr": 0.01})


def replace(model: nn.Sequential, groups: list[dict[str, Any]]) -> None:
    new = nn.Parameter(torch.ones(2, 2))
    groups[0]["params"][1] = model[1].weight = new


def swap_out(model: nn.Sequential, groups: list[dict[str, Any]]) -> None:
    groups[0]["params"][1] = nn.Parameter(torch.ones(2, 2))


def add_stranger(model: nn.Sequential, groups: list[dict[str, Any]]) -> None:
    groups[0]["params"].insert(0, nn.Parameter(torch.ones(2)))


def rename(model: nn.Sequential, groups: list[dict[str, Any]]) -> None:
    groups[0]["param_names"] = ["a", "b", "c"]


def drop_both(model: nn.Sequential, groups: list[dict[str, Any]]) -> None:
    del groups[0]["params"][1], groups[0]["param_names"][1]


Edit = Callable[[nn.Sequential, list[dict[str, Any]]], None]

EDITS: list[tuple[Edit, list[list[str]]]] = [
    (append, [["0.weight", "1.weight", "2.weight", "3.weight"]]),
    (drop, [["1.weight", "2.weight"]]),
    (reverse, [["2.weight", "1.weight", "0.weight"]]),
    (move, [["0.weight", "2.weight"], ["1.weight"]]),
    (replace, [["0.weight", "1.weight", "2.weight"]]),
    (swap_out, [["0.weight", "1.weight", "2.weight"]]),
    (add_stranger, [["group_0.0", "0.weight", "1.weight", "2.weight"]]),
    (rename, [["a", "b", "c"]]),
    (drop_both, [["0.weight", "2.weight"]]),
]


@pytest.mark.parametrize(("edit", "names"), EDITS, ids=[edit.__name__ for edit, _ in EDITS])
def test_steps_go_on_as_with_torch_and_names_stay_with_their_parameters(edit: Edit, names: list[list[str]]) -> None:
    models = network(), network()
    ours, theirs = steprule.AdamW(models[0], lr=0.1), torch.optim.AdamW(models[1].parameters(), lr=0.1)
    for model, optimizer in zip(models, (ours, theirs), strict=True):
        take(model, optimizer)
        if not (optimizer is theirs and edit in (rename, drop_both)):
            edit(model, optimizer.param_groups)
        elif edit is drop_both:
            del optimizer.param_groups[0]["params"][1]
        take(model, optimizer)

    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0.0, atol=1e-5)
    assert [group["param_names"] for group in ours.state_dict()["param_groups"]] == names
    assert names[0][0].split(".")[0] in repr(ours)
    ours.load_state_dict(copy.deepcopy(ours.state_dict()))
    take(models[0], ours)


def test_state_saved_after_an_edit_reaches_the_right_parameters() -> None:
    model, fresh = network(), network()
    optimizer = steprule.AdamW(model, lr=0.1)
    take(model, optimizer)
    reverse(model, optimizer.param_groups)
    other = steprule.AdamW(fresh, lr=0.1)
    other.load_state_dict(optimizer.state_dict())
    for p, q in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(optimizer.state[p]["exp_avg"], other.state[q]["exp_avg"])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_follows_its_own_parameters(duplicate: Any) -> None:
    model, optimizer = duplicate((pair := network(), steprule.AdamW(pair, lr=0.1)))
    drop(model, optimizer.param_groups)
    take(model, optimizer)
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["1.weight", "2.weight"]


def test_dropped_parameters_are_not_kept_alive_after_the_next_step() -> None:
    model = network()
    optimizer = steprule.AdamW(model, lr=0.1)
    gone = weakref.ref(model[0].weight)
    drop(model, optimizer.param_groups)
    del model[0]
    optimizer.step()
    assert gone() is None


@pytest.mark.parametrize("option", [{"backend": "eager"}, {"differentiable": True}], ids=str)
def test_another_kernel_asked_for_by_hand_serves_from_the_next_step_on(option: dict[str, Any]) -> None:
    model = network()
    optimizer = steprule.SGD(model, lr=0.1)
    take(model, optimizer)
    assert "llvm: " in optimizer.explain()
    optimizer.param_groups[0] |= option
    if "differentiable" in option:
        for p in model.parameters():
            p.requires_grad_(False)
    take(model, optimizer)
    assert "llvm: " not in optimizer.explain()
    assert "eager: " in optimizer.explain()


@pytest.mark.parametrize("library", [steprule, torch.optim], ids=["steprule", "torch"])
def test_without_any_group_a_step_does_nothing(library: Any) -> None:
    model = network()
    optimizer = library.SGD(model.parameters(), lr=0.1)
    take(model, optimizer)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.param_groups.clear()
    take(model, optimizer)
    assert all(map(torch.equal, before, model.parameters()))
