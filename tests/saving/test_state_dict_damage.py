"""A state dictionary that was changed loads as it says, or is refused whole with what torch would raise."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import pytest
import torch
from comparing import same
from hypothesis import given, settings
from hypothesis import strategies as st
from saving.mutations import HOW, JUNK, changed, places
from torch import nn
from training import train

import steprule
from steprule.schedules import cosine

TENSORS = [
    torch.zeros(()),
    torch.tensor(math.nan),
    torch.tensor(-1.0),
    torch.zeros(2, 2),
    torch.zeros(3, 4).to_sparse(),
]
REFUSALS = (ValueError, KeyError, TypeError)


class Run:
    """An optimizer with two groups and a schedule, and what it saved in the form of steprule or of torch."""

    def __init__(self, algorithm: str, form: str) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 4))
        self.optimizer = self.made(algorithm, lr=0.01 * cosine(50))
        self.step()
        self.step()
        self.saved = copy.deepcopy(self.optimizer.state_dict())
        if form == "torch":
            del self.saved["steprule"]
            for group in self.saved["param_groups"]:
                group.pop("schedules")
                group.pop("param_names")
        self.optimizer = self.made(algorithm, lr=0.5)
        self.step()
        self.before = copy.deepcopy((self.optimizer.state_dict(), list(self.model.parameters())))

    def made(self, algorithm: str, lr: Any) -> steprule.Optimizer:
        cls = getattr(steprule, algorithm)
        decay = {"*.bias": {"weight_decay": 0.0}}
        return cls(self.model, lr=lr, overrides=decay, **({"momentum": 0.9} if algorithm == "SGD" else {}))

    def step(self) -> None:
        train(self.model, self.optimizer, [torch.arange(8.0).view(2, 4)])

    def unchanged(self) -> bool:
        return same(self.before, (self.optimizer.state_dict(), list(self.model.parameters())))


def loaded_as_it_says(run: Run, saved: dict[str, Any]) -> bool:
    """Every number that was taken is one that stands in the dictionary at its place."""
    now = run.optimizer.state_dict()
    for group, there in zip(now["param_groups"], saved["param_groups"], strict=True):
        keys = group.keys() & there.keys() - {"params", "schedules", "param_names", "decoupled_weight_decay"}
        if not all(same(group[key], there[key]) for key in keys - {"modifiers", "state_dtype", "rounding", "master"}):
            return False
        if tuple(group.get("modifiers") or ()) != tuple(there.get("modifiers") or ()):
            return False
    ids = [key for group in saved["param_groups"] for key in group["params"]]
    for i, key in enumerate(ids):
        there = {slot: value for slot, value in saved["state"].get(key, {}).items() if value is not None}
        here = now["state"].get(i, {})
        if here.keys() != there.keys() or not all(torch.equal(here[k], torch.as_tensor(there[k])) for k in here):
            return False
    return True


@pytest.mark.parametrize("form", ["steprule", "torch"])
@pytest.mark.parametrize("algorithm", ["AdamW", "SGD"])
def test_unchanged_it_loads(algorithm: str, form: str) -> None:
    run = Run(algorithm, form)
    run.optimizer.load_state_dict(run.saved)
    assert loaded_as_it_says(run, run.saved)
    assert not run.unchanged()


@pytest.mark.parametrize("form", ["steprule", "torch"])
@pytest.mark.parametrize("algorithm", ["AdamW", "SGD"])
def test_changed_it_loads_as_it_says_or_is_refused_whole(algorithm: str, form: str) -> None:
    run = Run(algorithm, form)
    paths = places(run.saved)
    refused = 0

    @settings(max_examples=200, deadline=None)
    @given(
        where=st.integers(0, len(paths) - 1),
        how=st.sampled_from(HOW),
        junk=st.sampled_from([*JUNK, *TENSORS]),
        other=st.integers(0, len(paths) - 1),
    )
    def attempt(where: int, how: str, junk: object, other: int) -> None:
        nonlocal run, refused
        saved = changed(run.saved, paths[where], how, junk, paths[other])
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "loading freezes")
                warnings.filterwarnings("ignore", ".* never reads")
                run.optimizer.load_state_dict(saved)
        except REFUSALS:
            refused += 1
            assert run.unchanged()
            return
        fresh, run_ = Run(algorithm, form), run
        run = fresh
        assert loaded_as_it_says(run_, saved)
        if not any(group["capturable"] or group["differentiable"] for group in run_.optimizer.param_groups):
            run_.step()

    attempt()
    assert refused > 50


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda saved: "x", TypeError, "the state dictionary must be a mapping, not str"),
        (lambda saved: saved.pop("state") and saved, KeyError, "no 'state'"),
        (lambda saved: saved.pop("param_groups") and saved, KeyError, "no 'param_groups'"),
        (lambda saved: saved | {"param_groups": {}}, TypeError, "'param_groups' must be a list or tuple, not dict"),
        (
            lambda saved: saved["param_groups"][0].pop("params") and saved,
            KeyError,
            r"param_groups\[0\] has no 'params'",
        ),
        (lambda saved: saved["param_groups"][0]["params"].append(0) or saved, ValueError, "twice: 0"),
        (lambda saved: saved["state"].update({77: {}}) or saved, ValueError, r"entries \[77\] that no parameter group"),
        (
            lambda saved: saved["param_groups"][0]["param_names"].pop() and saved,
            ValueError,
            "one string for each",
        ),
        (
            lambda saved: saved["param_groups"][1].pop("param_names") and saved,
            ValueError,
            "although other groups",
        ),
        (lambda saved: saved["steprule"].update(step=-1) or saved, ValueError, "'step' of the state dictionary is -1"),
        (lambda saved: saved["steprule"].update(step=1.5) or saved, ValueError, "a whole number from 0 on"),
        (lambda saved: saved["steprule"].update(step=math.nan) or saved, ValueError, "is nan"),
        (
            lambda saved: saved["steprule"]["parameters"].pop() and saved,
            ValueError,
            "describes 3 parameters, its groups list 4",
        ),
        (
            lambda saved: saved["steprule"]["parameters"][0].update(shape=[-3, 4]) or saved,
            ValueError,
            r"has the shape \[-3, 4\]; sizes are whole numbers from 0 on",
        ),
        (
            lambda saved: saved["steprule"]["parameters"][0].update(dtype="float33") or saved,
            ValueError,
            "dtype 'float33', which torch does not have",
        ),
        (
            lambda saved: saved["state"][0].update(step=torch.tensor(math.nan)) or saved,
            ValueError,
            "0.weight: step was saved as nan, where a whole number from 0 on is needed",
        ),
        (
            lambda saved: saved["state"][0].update(exp_avg="x") or saved,
            ValueError,
            r"0.weight: exp_avg was saved as str, where \(3, 4\) float32 is needed",
        ),
        (
            lambda saved: saved["state"][0].update(more=torch.zeros(3, 4)) or saved,
            ValueError,
            "unexpected: 0.weight: more",
        ),
        (lambda saved: saved["state"].pop(0) and saved, ValueError, "missing: 0.weight: exp_avg"),
    ],
)
def test_what_is_wrong_is_said(change: Any, kind: type[Exception], message: str) -> None:
    run = Run("AdamW", "steprule")
    with pytest.raises(kind, match=message):
        run.optimizer.load_state_dict(change(run.saved))
    assert run.unchanged()
