"""The example that chooses an optimizer on the command line."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import steprule

PATH = Path(__file__).parents[1] / "examples" / "choose_by_argument.py"


def test_an_argument_chooses(capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("choose_by_argument", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    assert module.main(["--optimizer", "Adagrad", "--lr", "0.5", "--set", "weight_decay=0.0"]) < 1e-3
    assert capsys.readouterr().out.startswith("Adagrad")
    with pytest.raises(SystemExit):
        module.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert all(sentence in said for sentence in steprule.algorithms.names().values())
