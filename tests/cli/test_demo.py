"""`steprule demo`: what it learns and shows, that it can be stopped at any moment, what it refuses."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import assert_refused, invoke
from every_algorithm import ALGORITHMS
from matplotlib import image
from typer.testing import Result

import steprule
from steprule.checkpoint import load, save
from steprule.cli import demo as demo_command
from steprule.cli import demo_run, digits
from steprule.cli.demo_run import DemoSettings, new_run, resumed_run, train_step

CPU = torch.device("cpu")


def demo(folder: Path, *options: str) -> Result:
    return invoke("demo", "--output", str(folder), *options, columns=80)


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    """The same in a process of its own, which can be killed."""
    command = [sys.executable, "-c", "from steprule.cli import main; main()", "demo", "--output", str(folder)]
    return subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def checkpoint(folder: Path) -> Path:
    return folder / "checkpoint.safetensors"


def epochs_done(folder: Path) -> int:
    if not checkpoint(folder).exists():
        return 0
    return len(load(checkpoint(folder), None)["history"]["right"])


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


EPOCHS = ("--epochs", "3", "--seed", "5")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert demo(folder, *EPOCHS).exit_code == 0
    return folder


def assert_same_end(folder: Path, uninterrupted: Path) -> None:
    """The same weights, state and history to the bit, and the same picture."""
    ours, theirs = (resumed_run(checkpoint(at), {}, CPU) for at in (folder, uninterrupted))
    assert (ours.settings, ours.history) == (theirs.settings, theirs.history)
    for our, their in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(our, their)
        our_state, their_state = ours.optimizer.state[our], theirs.optimizer.state[their]
        assert our_state.keys() == their_state.keys() == {"momentum_buffer"}
        assert torch.equal(our_state["momentum_buffer"], their_state["momentum_buffer"])
    assert (folder / "demo.png").read_bytes() == (uninterrupted / "demo.png").read_bytes()


# What it does.


def test_97_percent_of_the_held_out_digits_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    result = invoke("demo", columns=80)

    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    model = digits.LeNet()
    load(checkpoint(tmp_path / "demo-output"), None, model)
    held_out = digits.read_digits(CPU)[1]
    right = digits.count_right(model, held_out)
    assert len(held_out.labels) == 360
    assert right / 360 >= 0.97
    assert lines[-1] == f"{right / 360:.1%} of the held-out digits are right ({right} of 360)."
    for group in ("features.{0,3}.{weight,bias}", "classifier.{0,2,4}.weight", "classifier.{0,2,4}.bias"):
        assert any(group in line for line in lines)
    picture = image.imread(tmp_path / "demo-output" / "demo.png")
    assert picture.shape[0] > 600
    assert picture.shape[1] > 1200
    assert len({tuple(pixel) for pixel in picture[::3, ::3, :3].reshape(-1, 3).tolist()}) > 50


def test_the_held_out_fifth_is_fixed_and_has_every_class() -> None:
    train, held_out = digits.read_digits(CPU)

    assert train.images.shape == (1437, 3, 32, 32)
    assert held_out.images.shape == (360, 3, 32, 32)
    assert held_out.labels.bincount(minlength=10).min() >= 30
    assert torch.equal(held_out.images, digits.read_digits(CPU)[1].images)
    together = torch.cat([train.images, held_out.images])
    assert together.mean().item() == pytest.approx(0, abs=1e-5)
    assert together.std().item() == pytest.approx(1, abs=1e-5)


def test_data_order_follows_from_seed_and_epoch() -> None:
    train, _ = digits.read_digits(CPU)
    first = list(digits.batches(train, seed=1, epoch=2))
    torch.rand(3)
    again = list(digits.batches(train, seed=1, epoch=2))

    assert all(torch.equal(*pair) for a, b in zip(first, again, strict=True) for pair in zip(a, b, strict=True))
    assert not torch.equal(first[0].labels, next(digits.batches(train, seed=1, epoch=3)).labels)
    assert not torch.equal(first[0].labels, next(digits.batches(train, seed=2, epoch=2)).labels)
    labels = torch.cat([batch.labels for batch in first])
    assert torch.equal(labels.bincount(), train.labels.bincount())  # every digit once
    assert len(first) == digits.STEPS


def test_groups_rates_and_decay() -> None:
    run = new_run(DemoSettings("SGD", 0, 1), CPU)

    names = [group["param_names"] for group in run.optimizer.param_groups]
    features, weights, biases = run.optimizer.param_groups
    assert all(name.startswith("features.") for name in names[0])
    assert all(name.startswith("classifier.") and name.endswith(".weight") for name in names[1])
    assert all(name.startswith("classifier.") and name.endswith(".bias") for name in names[2])
    assert sum(map(len, names)) == 10
    assert features["lr"] < weights["lr"] == biases["lr"]
    assert features["weight_decay"] == biases["weight_decay"] == 0 < weights["weight_decay"]
    assert all(group["momentum"] == 0.9 for group in run.optimizer.param_groups)


def test_rates_fall_while_training(uninterrupted: Path) -> None:
    history = load(checkpoint(uninterrupted), None)["history"]

    assert len(history["loss"]) == 3 * digits.STEPS
    assert len(history["right"]) == 3
    assert len(history["rates"]) == 3
    for rates in history["rates"]:
        assert len(rates) == len(history["loss"])
        assert rates == sorted(rates, reverse=True)
        assert rates[90] == pytest.approx(rates[0] * 0.8**2)
    assert sum(history["loss"][-45:]) < sum(history["loss"][:45]) / 2


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_trains_or_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    train, held_out = digits.read_digits(CPU)
    few = digits.Digits(train.images[:40], train.labels[:40])
    monkeypatch.setattr(demo_command, "read_digits", lambda device: (few, held_out))
    monkeypatch.setattr(demo_command, "draw", lambda *_: None)

    epochs = 6 if name == "ScheduleFreeRAdam" else 1  # it keeps still in its first five steps
    result = demo(tmp_path, "--epochs", str(epochs), "--optimizer", name.lower())

    if name in {"LBFGS", "SparseAdam"}:
        assert_refused(result, f"{name} does not fit this model: ")
        assert content(tmp_path) == {}
    else:
        assert result.exit_code == 0
        run = resumed_run(checkpoint(tmp_path), {}, CPU)
        assert type(run.optimizer).__name__ == name
        first_weights = digits.build_model(0, CPU).parameters()
        assert all(not torch.equal(*pair) for pair in zip(run.model.parameters(), first_weights, strict=True))


# Stopped and resumed.


def test_killed_and_resumed_is_the_uninterrupted_run(tmp_path: Path, uninterrupted: Path) -> None:
    process = start(tmp_path, *EPOCHS)
    while epochs_done(tmp_path) < 1 and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 1 <= epochs_done(tmp_path) < 3

    assert demo(tmp_path, "--resume").exit_code == 0

    assert_same_end(tmp_path, uninterrupted)


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, uninterrupted: Path) -> None:
    process = start(tmp_path, *EPOCHS)
    while epochs_done(tmp_path) < 1 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert process.returncode == 130
    assert errors == ""
    assert output.splitlines()[-1] == f"Stopped. To go on: steprule demo --resume --output {tmp_path}"
    assert not (tmp_path / "demo.png").exists()

    assert demo(tmp_path, "--resume").exit_code == 0

    assert_same_end(tmp_path, uninterrupted)


@pytest.mark.parametrize("steps", [(0, 20), (45, 44), (134,)])
def test_stopped_at_any_step(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch, steps: tuple[int, ...]
) -> None:
    for stop in steps:
        left = iter(range(stop))

        def step_until(run: Any, batch: Any, left: Any = left) -> float:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return train_step(run, batch)

        monkeypatch.setattr(demo_command, "train_step", step_until)
        resume = ["--resume"] if checkpoint(tmp_path).exists() else []
        assert demo(tmp_path, *EPOCHS, *resume).exit_code == 130
    monkeypatch.undo()

    assert demo(tmp_path, "--resume").exit_code == 0

    assert_same_end(tmp_path, uninterrupted)


def test_resuming_where_no_run_is_names_the_nearest_and_starts_none(tmp_path: Path, uninterrupted: Path) -> None:
    checkpoint(tmp_path / "digits").parent.mkdir()
    checkpoint(tmp_path / "digits").write_bytes(checkpoint(uninterrupted).read_bytes())

    result = demo(tmp_path / "digts", "--resume")

    assert result.exit_code == 1
    assert "digts holds no run to go on with; did you mean 'digits'?" in result.stderr
    assert not (tmp_path / "digts").exists()


def test_a_run_that_has_ended_is_only_drawn_again(tmp_path: Path, uninterrupted: Path) -> None:
    checkpoint(tmp_path).write_bytes(checkpoint(uninterrupted).read_bytes())

    result = demo(tmp_path, "--resume", "--seed", "5")

    assert result.exit_code == 0
    assert_same_end(tmp_path, uninterrupted)


def test_more_epochs_on_resuming_are_the_longer_run(tmp_path: Path, uninterrupted: Path) -> None:
    assert demo(tmp_path, "--epochs", "1", "--seed", "5").exit_code == 0

    assert demo(tmp_path, "--epochs", "3", "--resume").exit_code == 0

    assert_same_end(tmp_path, uninterrupted)


def test_a_run_does_not_go_back(tmp_path: Path, uninterrupted: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    before = content(tmp_path / "run")
    assert_refused(demo(tmp_path / "run", "--resume", "--epochs", "2"), "after 3 epochs", "--epochs 3 or more")
    assert content(tmp_path / "run") == before


def test_a_new_run_is_what_resume_means_from_its_start(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(tmp_path).write_bytes(checkpoint(uninterrupted).read_bytes())

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_command, "train_model", stop)
    assert demo(tmp_path, "--seed", "7").exit_code == 130

    saved = load(checkpoint(tmp_path), None)
    assert saved["settings"]["seed"] == 7
    assert saved["history"]["loss"] == []


# What it refuses, in one line, with exit status 2 and nothing overwritten.


@pytest.mark.parametrize("part", ["file", "file/below"])
def test_a_folder_that_cannot_be_written(tmp_path: Path, part: str) -> None:
    (tmp_path / "file").write_text("precious")

    result = demo(tmp_path / part)

    assert_refused(result, "cannot write", part)
    assert content(tmp_path) == {"file": b"precious"}


def test_a_disk_that_is_full(tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert demo(tmp_path, "--epochs", "1", "--seed", "5").exit_code == 0
    before = content(tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(demo_run, "save", full)
    result = demo(tmp_path, "--epochs", "3", "--resume")

    assert_refused(result, "cannot write", os.strerror(errno.ENOSPC))
    assert content(tmp_path) == before


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_a_checkpoint_that_is_cut_short(tmp_path: Path, uninterrupted: Path, kept: float) -> None:
    whole = checkpoint(uninterrupted).read_bytes()
    checkpoint(tmp_path).write_bytes(whole[: int(kept * len(whole))])
    before = content(tmp_path)

    assert_refused(demo(tmp_path, "--resume"), str(checkpoint(tmp_path)))

    assert content(tmp_path) == before


def test_a_checkpoint_that_is_a_folder(tmp_path: Path) -> None:
    checkpoint(tmp_path).mkdir()

    assert_refused(demo(tmp_path, "--resume"), str(checkpoint(tmp_path)))
    assert_refused(demo(tmp_path), str(checkpoint(tmp_path)))

    assert list(checkpoint(tmp_path).iterdir()) == []


def test_a_checkpoint_of_another_model(tmp_path: Path, uninterrupted: Path) -> None:
    model = torch.nn.Linear(2, 3)
    optimizer = steprule.SGD(model.named_parameters(), lr=0.1)
    extra = load(checkpoint(uninterrupted), None)

    save(checkpoint(tmp_path), optimizer, model)
    before = content(tmp_path)
    assert_refused(demo(tmp_path, "--resume"), "not a checkpoint of the demo")
    assert content(tmp_path) == before

    save(checkpoint(tmp_path), optimizer, model, **extra)
    before = content(tmp_path)
    assert_refused(demo(tmp_path, "--resume"), str(checkpoint(tmp_path)))
    assert content(tmp_path) == before


@pytest.mark.parametrize(("option", "value", "saved"), [("--seed", "6", "5"), ("--optimizer", "AdamW", "SGD")])
def test_options_that_contradict_the_checkpoint(
    tmp_path: Path, uninterrupted: Path, option: str, value: str, saved: str
) -> None:
    checkpoint(tmp_path).write_bytes(checkpoint(uninterrupted).read_bytes())
    before = content(tmp_path)

    assert_refused(demo(tmp_path, "--resume", option, value), f"{option} {saved}")
    assert content(tmp_path) == before
    assert demo(tmp_path, "--resume", option, saved.lower()).exit_code == 0


def test_an_optimizer_or_a_device_that_does_not_exist(tmp_path: Path) -> None:
    assert_refused(demo(tmp_path, "--optimizer", "Adamant"), "'Adamant'", "AdamW", "SGD")
    assert_refused(demo(tmp_path, "--device", "abacus"), "'abacus'")
    assert_refused(demo(tmp_path, "--device", "meta"), "'meta'")

    assert content(tmp_path) == {}


@pytest.mark.parametrize("module", ["sklearn.datasets", "matplotlib"])
def test_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)

    assert_refused(demo(tmp_path), "pip install 'steprule[demo]'")

    assert content(tmp_path) == {}


def test_help_fits_a_narrow_terminal() -> None:
    for arguments in (["--help"], ["demo", "--help"]):
        result = invoke(*arguments, columns=80)
        assert result.exit_code == 0
        assert max(map(len, result.output.splitlines())) <= 80
