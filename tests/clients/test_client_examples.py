"""The examples that choose an optimizer by name."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import steprule

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_hydra_chooses_and_schedules(capsys: pytest.CaptureFixture[str]) -> None:
    hydra = pytest.importorskip("hydra", reason="hydra-core is not installed: make clients installs it")
    module = example("choose_with_hydra")
    with hydra.initialize_config_dir(str(EXAMPLES / "conf"), version_base=None):
        assert module.train(hydra.compose("choose")) < 0.05
        assert module.train(hydra.compose("choose", ["optimizer.name=SGD", "steps=400", "~optimizer.overrides"])) < 0.05
        with pytest.raises(ValueError, match=r"did you mean .*'AdamW'"):
            module.train(hydra.compose("choose", ["optimizer.name=AdmW"]))
    assert capsys.readouterr().out.startswith("AdamW: loss")


@pytest.mark.parametrize("kind", [steprule.SGD, steprule.Lion])
def test_lightnings_command_line_chooses(kind: Any, tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="lightning is not installed: make clients installs it")
    pytest.importorskip("jsonargparse", reason="jsonargparse is not installed: make clients installs it")
    quiet = {"logger": "false", "enable_checkpointing": "false", "enable_progress_bar": "false", "max_epochs": "1"}
    quiet |= {"accelerator": "cpu", "default_root_dir": str(tmp_path), "enable_model_summary": "false"}
    options = [f"--trainer.{key}={value}" for key, value in quiet.items()]
    module = example("choose_with_lightning_cli")
    [said] = re.findall(rf"^ *python examples/\S+ (fit .*{kind.__name__}.*)$", module.__doc__, re.M)
    cli = module.main([*shlex.split(said), *options])
    assert type(cli.trainer.optimizers[0]) is kind
    assert cli.trainer.optimizers[0].steps_taken == 8
