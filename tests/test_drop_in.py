"""``import steprule as optim`` in place of ``from torch import optim``: what code written for torch finds."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

import steprule as optim


def test_every_name_of_torch_optim_is_here() -> None:
    # this one puts fake tensors in an optimizer's place to trace its step, which is not torch's operations here
    elsewhere = {"swap_in_optimizer_params_and_state"}
    assert set(torch.optim.__all__) - set(dir(optim)) <= elsewhere


def test_schedulers_and_averages_are_found_through_the_module() -> None:
    model = nn.Linear(2, 1)
    optimizer = optim.SGD(model.parameters(), lr=0.5)
    scheduler = optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    average = optim.swa_utils.AveragedModel(model)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    scheduler.step()
    average.update_parameters(model)
    assert optimizer.param_groups[0]["lr"] == 0.25


@pytest.mark.parametrize("name", ["SGD", "Adam", "Adagrad", "Adadelta", "NAdam", "RMSprop", "Adafactor", "LBFGS"])
def test_another_one_is_made_from_the_defaults(name: str) -> None:
    kind = getattr(optim, name)
    optimizer = kind([torch.ones(2, 2, requires_grad=True)], lr=0.5)
    other = kind([torch.ones(2, 2, requires_grad=True)], **optimizer.defaults)
    assert other.defaults == optimizer.defaults


@pytest.mark.parametrize("given", [lambda module: module, lambda module: module.parameters()])
def test_lazy_modules_may_be_given_before_they_know_their_sizes(given: Any) -> None:
    module = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 1))
    optimizer = optim.AdamW(given(module), lr=0.5)
    assert "4 tensors" in repr(optimizer)
    optimizer.step()
    assert optimizer.state_dict()["state"] == {}

    loss = module(torch.ones(2, 5)).sum()
    weight = module.get_parameter("0.weight").detach().clone()
    loss.backward()
    optimizer.step()
    assert (module.get_parameter("0.weight") != weight).all()
    assert "22 parameters" in repr(optimizer)


def test_a_pickle_of_before_an_option_was_there_goes_on() -> None:
    weight = torch.ones(2, requires_grad=True)
    weight.grad = torch.ones(2)
    optimizer = optim.AdamW([weight], lr=0.5)
    optimizer.step()
    later = {"l1", "clip_norm", "seed", "backend"}
    old = {
        "state": optimizer.state,
        "defaults": {name: value for name, value in optimizer.defaults.items() if name not in later},
        "param_groups": [{k: v for k, v in group.items() if k not in later} for group in optimizer.param_groups],
    }
    restored = optim.AdamW.__new__(optim.AdamW)
    restored.__setstate__(old)
    restored.step()
    assert restored.state[weight]["step"] == 2
    assert restored.param_groups[0]["clip_norm"] is None


@pytest.mark.parametrize("kind", [optim.SGD, optim.AdamW])
def test_whole_numbers_are_refused_by_name_as_torch_refuses_them(kind: Any) -> None:
    weight = torch.ones(2, dtype=torch.int32)
    weight.grad = torch.ones(2, dtype=torch.int32)
    with pytest.raises(RuntimeError, match=r"parameter 'w' is torch.int32: only floating point and complex ones"):
        kind([("w", weight)], lr=0.5).step()
    assert weight.tolist() == [1, 1]


@pytest.mark.parametrize("name", sorted({"SGD", "Adam", "AdamW", "RMSprop", "Muon", "LBFGS"}))
def test_signatures_have_every_argument_of_torch(name: str) -> None:
    ours, theirs = (inspect.signature(getattr(library, name)).parameters for library in (optim, torch.optim))
    assert set(theirs) <= set(ours)
    assert ("fused" in ours) == ("fused" in theirs)
    assert {"overrides", "clip_norm"} <= set(ours)


def test_arguments_chosen_by_the_signature_take_effect() -> None:
    wanted: dict[str, Any] = {"lr": 0.5, "maximize": True, "unknown": 1}
    known = inspect.signature(optim.SGD.__init__).parameters
    weight = torch.ones(2, requires_grad=True)
    weight.grad = torch.ones(2)
    optim.SGD([weight], **{name: value for name, value in wanted.items() if name in known}).step()
    assert weight.tolist() == [1.5, 1.5]


def test_what_takes_a_while_to_load_is_not_loaded_before_it_is_used() -> None:
    late = ("llvmlite", "rich", "triton", "matplotlib", "typer", "pandas", "tensorboard")
    code = f"import torch, sys, steprule; print(*sorted(set({late}) & (sys.modules.keys() - before)))"
    found = subprocess.run(
        [sys.executable, "-c", f"import torch, sys; before = set(sys.modules); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == []
