"""What freeze() froze stays frozen when it is saved and loaded, and loading says so."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training import train

import steprule


def model_and_optimizer(seed: int = 0, named: bool = True) -> tuple[nn.Module, steprule.AdamW]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    return model, steprule.AdamW(model if named else model.parameters(), lr=0.1)


def batches(count: int) -> list[torch.Tensor]:
    return [torch.arange(6.0).view(2, 3)] * count


def trains(model: nn.Module) -> list[bool]:
    return [p.requires_grad for p in model.parameters()]


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("form", ["file", "dictionary"])
def test_a_frozen_backbone_does_not_train_after_loading(tmp_path: Path, form: str, named: bool) -> None:
    model, optimizer = model_and_optimizer(named=named)
    train(model, optimizer, batches(2))
    optimizer.freeze("0.*" if named else nn_linear_of_four)
    train(model, optimizer, batches(2))
    steprule.save(tmp_path / "run", optimizer, model)
    twin, other = model_and_optimizer(seed=1, named=named)
    train(twin, other, batches(1))
    names = ["0.weight", "0.bias"] if named else ["parameter 0", "parameter 1"]
    said = pytest.warns(UserWarning, match=f"loading freezes {names[0]}, {names[1]}, as saved; unfreeze")
    if form == "file":
        with said:
            assert steprule.load(tmp_path / "run", other, twin).frozen == names
    else:
        twin.load_state_dict(model.state_dict())
        with said:
            other.load_state_dict(optimizer.state_dict())
    assert trains(twin) == [False, False, True, True]
    assert twin[0].weight.grad is None
    train(model, optimizer, batches(2))
    train(twin, other, batches(2))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert other.state_dict()["steprule"]["frozen"] == [0, 1]
    if named:
        other.unfreeze("0.*")
        assert other.state_dict()["steprule"]["frozen"] == []


def nn_linear_of_four(name: str, p: torch.Tensor, module: nn.Module | None) -> bool:
    return p.shape[0] == 4


def test_nothing_is_said_where_nothing_changes(tmp_path: Path) -> None:
    model, optimizer = model_and_optimizer()
    optimizer.freeze("0.*")
    steprule.save(tmp_path / "run", optimizer, model)
    twin, other = model_and_optimizer(1)
    other.freeze("0.*")
    assert steprule.load(tmp_path / "run", other, twin).frozen == ["0.weight", "0.bias"]


def test_what_is_frozen_here_and_trained_there_stays_frozen_and_is_said(tmp_path: Path) -> None:
    model, optimizer = model_and_optimizer()
    steprule.save(tmp_path / "run", optimizer, model)
    twin, other = model_and_optimizer(1)
    other.freeze("1.*")
    with pytest.warns(UserWarning, match=r"1\.weight, 1\.bias trained when this was saved, and stay frozen"):
        assert steprule.load(tmp_path / "run", other, twin).frozen == []
    assert trains(twin) == [True, True, False, False]


def test_only_what_freeze_froze_counts(tmp_path: Path) -> None:
    model, optimizer = model_and_optimizer()
    model[0].weight.requires_grad_(False)  # as a GAN does for a moment
    optimizer.freeze("1.*")
    model[1].weight.requires_grad_(True)  # somebody has changed his mind
    assert optimizer.state_dict()["steprule"]["frozen"] == [3]


def test_current_hyperparameters_leave_all_as_it_is() -> None:
    _, optimizer = model_and_optimizer()
    optimizer.freeze("0.*")
    twin, other = model_and_optimizer(1)
    other.load_state_dict(optimizer.state_dict(), hyperparameters="current")
    assert all(trains(twin))


def test_torch_takes_it_too_and_a_renamed_or_reordered_one(tmp_path: Path) -> None:
    _, optimizer = model_and_optimizer()
    optimizer.freeze("0.*")
    steprule.save(tmp_path / "run", optimizer)
    twin, _ = model_and_optimizer(1)
    named = [(name.replace("0.", "body."), p) for name, p in reversed(list(twin.named_parameters()))]
    other = torch.optim.AdamW(named)
    with pytest.warns(UserWarning, match=r"freezes body\.bias, body\.weight"):
        steprule.load(tmp_path / "run", other, rename={"0": "body"})
    assert trains(twin) == [False, False, True, True]
    torch.optim.AdamW(model_and_optimizer()[0].named_parameters()).load_state_dict(optimizer.state_dict())


def test_copies_and_pickles_know_it() -> None:
    _, optimizer = model_and_optimizer()
    optimizer.freeze("0.*")
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert other.state_dict()["steprule"]["frozen"] == [0, 1]
    own, twin = copy.deepcopy((optimizer, optimizer.param_groups[0]["params"][0]))
    twin.requires_grad_(True)
    assert own.state_dict()["steprule"]["frozen"] == [1]


@pytest.mark.parametrize("frozen", ["x", {0: 1}, [4], [-1], [True], [0.0], [None], 3])
def test_places_that_are_none_are_refused(frozen: Any) -> None:
    _, optimizer = model_and_optimizer()
    saved = optimizer.state_dict()
    saved["steprule"]["frozen"] = frozen
    with pytest.raises((TypeError, ValueError), match="'frozen' of the state dictionary"):
        optimizer.load_state_dict(saved)


def test_a_dictionary_that_does_not_say_it_freezes_nothing() -> None:
    _, optimizer = model_and_optimizer()
    optimizer.freeze("0.*")
    saved = optimizer.state_dict()
    del saved["steprule"]["frozen"]
    twin, other = model_and_optimizer(1)
    other.freeze("1.*")
    other.load_state_dict(saved)
    assert trains(twin) == [True, True, False, False]


def test_a_hook_that_raises_after_loading_leaves_it_training() -> None:
    _, optimizer = model_and_optimizer()
    optimizer.freeze("0.*")
    twin, other = model_and_optimizer(1)
    train(twin, other, batches(2))
    grad = twin[0].weight.grad
    other.register_load_state_dict_post_hook(lambda _: {}["x"])
    with pytest.warns(UserWarning, match="freezes"), pytest.raises(KeyError):
        other.load_state_dict(optimizer.state_dict())
    assert all(trains(twin))
    assert twin[0].weight.grad is grad
