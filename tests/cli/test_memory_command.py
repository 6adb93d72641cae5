"""`steprule memory`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import assert_refused, invoke
from typer.testing import Result

MODELS = """
import torch
from torch import nn

def small():
    assert torch.empty(1).is_meta
    return nn.Linear(100, 10, bias=False)

def with_optimizer():
    import steprule
    return steprule.SGD(small(), lr=0.1, momentum=0.9)

def fails():
    raise KeyError("missing")

number = 3
"""


@pytest.fixture(autouse=True)
def _models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models_of_mine.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> Result:
    return invoke("memory", *arguments)


def test_a_model() -> None:
    result = run("models_of_mine:small")
    assert result.exit_code == 0
    assert result.output.startswith("AdamW: 16 kB")
    assert "exp_avg 4 kB, exp_avg_sq 4 kB" in result.output


def test_as_json_with_options_and_ranks() -> None:
    found = json.loads(
        run(
            "models_of_mine:small", "--optimizer", "adamw", "--set", "state_dtype=bfloat16", "--ranks", "3", "--json"
        ).output
    )
    assert found["slots"] == {"step": 4, "exp_avg": 800, "exp_avg_sq": 800}
    assert found["weights"] == found["groups"][0]["weights"] == 1600


def test_an_optimizer_of_ones_own() -> None:
    found = json.loads(run("models_of_mine:with_optimizer", "--json").output)
    assert found["optimizer"] == "SGD"
    assert found["slots"] == {"momentum_buffer": 4000}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["models_of_mine"], "give the model as MODULE:FUNCTION"),
        (["models_of_mine:fails"], "made no model: KeyError: 'missing'"),
        (["models_of_mine:other"], "made no model: AttributeError"),
        (["nowhere_at_all:other"], "made no model: ModuleNotFoundError"),
        (["models_of_mine:number"], "gave a int, not a torch.nn.Module"),
        (["models_of_mine:small", "--set", "lr"], "--set takes NAME=VALUE, not 'lr'"),
        (["models_of_mine:small", "--set", "state_dtype=tiny"], "Invalid state_dtype: 'tiny'"),
        (["models_of_mine:small", "--optimizer", "AdamV"], "there is no algorithm 'AdamV'; did you mean"),
        (["models_of_mine:small", "--optimizer", "LBFGS"], "LBFGS has no update rule"),
    ],
)
def test_what_is_refused(arguments: list[str], said: str) -> None:
    assert_refused(run(*arguments), said)
