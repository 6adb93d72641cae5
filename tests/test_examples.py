"""The example that chooses an optimizer on the command line."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

import steprule

PATH = Path(__file__).parents[1] / "examples" / "choose_by_argument.py"


@pytest.fixture
def module() -> Any:
    spec = importlib.util.spec_from_file_location("choose_by_argument", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_argument_chooses(module: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert module.main(["--optimizer", "Adagrad", "--lr", "0.5", "--set", "weight_decay=0.0"]) < 1e-3
    assert capsys.readouterr().out.startswith("Adagrad")
    with pytest.raises(SystemExit):
        module.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert all(sentence in said for sentence in steprule.algorithms.names().values())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--optimizer", "AdmaW"], "there is no algorithm 'AdmaW'; did you mean 'AdamW'"),
        (["--set", "weigth_decay=0.1"], "'weigth_decay'; did you mean 'weight_decay'"),
        (["--lr", "-1"], "Invalid learning rate: -1.0"),
    ],
)
def test_a_wrong_word_says_the_nearest(module: Any, given: list[str], said: str) -> None:
    with pytest.raises(SystemExit, match=f"^choose_by_argument: .*{re.escape(said)}"):
        module.main(given)


def test_capitals_do_not_count(module: Any) -> None:
    assert module.main(["--optimizer", "adagrad", "--lr", "0.5"]) < 1e-3
