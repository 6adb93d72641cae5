"""`steprule compare`: what it finds, that it can be stopped at any step, that one crash ends one run, what it shows."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import assert_refused, invoke
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import image
from rich.console import Console
from torch.nn.functional import cross_entropy
from typer.testing import Result

from steprule.cli import compare as command
from steprule.cli import digits
from steprule.cli.compare import picture
from steprule.cli.compare import run as running
from steprule.cli.compare.curves import MARGIN, binned, bounds, curves
from steprule.cli.compare.run import Run
from steprule.cli.compare.setting import parse
from steprule.schedules import cosine, warmup

TASK = """
import random
from itertools import count

import numpy as np
import torch
from torch import nn


def noisy():
    '''Draws from every generator there is, at every step, in backward too; the data depend on the step.'''
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Tanh(), nn.Linear(8, 1))
    model[0].weight.register_hook(lambda grad: grad + 0.01 * torch.randn_like(grad))
    scale = 1 + random.random() + np.random.rand()

    def losses():
        for step in count():
            x = torch.randn(16, 4) + step % 3
            yield (model(x) - scale * x.sum(1, keepdim=True)).square().mean()

    return model, losses()


def short():
    model, losses = noisy()
    return model, (next(losses) for _ in range(7))


def leaving():
    model, losses = noisy()

    def few():
        for step in range(5):
            yield next(losses)
        raise SystemExit("gone")

    return model, few()


def flat():
    model = nn.Linear(2, 1)
    return model, (model(torch.zeros(1, 2)).sum() * 0 - 3 for _ in range(99))


def wrong():
    return nn.Linear(2, 1)


number = 3
"""


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module of tasks in the working folder."""
    (tmp_path / "own_tasks.py").write_text(TASK)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("own_tasks", None)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that are not about the picture, and make many."""
    monkeypatch.setattr(picture, "draw", lambda *_: None)


def compare(folder: Path, *arguments: str, columns: int = 80) -> Result:
    return invoke("compare", "--output", str(folder), *arguments, columns=columns)


def found(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "compare.json").read_text())
    return content


def losses(folder: Path) -> list[list[float]]:
    return [result["losses"] for result in found(folder)["results"]]


SGD, ADAM = "SGD lr=0.05 momentum=0.9", "Adam lr=0.02*cosine(60)"
OWN = ("--task", "own_tasks:noisy", "--steps", "40")


# -- what it finds -----------------------------------------------------------------------------------------------------


def test_the_demo_is_trained_as_by_hand_with_torch(tmp_path: Path) -> None:
    result = compare(tmp_path, "SGD lr=0.02 momentum=0.9", "AdamW lr=2e-3", "--steps", "50", "--seed", "3")
    assert result.exit_code == 0, result.output
    train, _ = digits.read_digits(torch.device("cpu"))
    by_hand: list[list[float]] = []
    for make in (
        lambda model: torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9),
        lambda model: torch.optim.AdamW(model.parameters(), lr=2e-3),
    ):
        model = digits.build_model(3, torch.device("cpu"))
        optimizer = make(model)
        batches = [*digits.batches(train, 3, 0), *digits.batches(train, 3, 1)]
        by_hand.append([])
        for batch in batches[:50]:
            optimizer.zero_grad()
            loss = cross_entropy(model(batch.images), batch.labels)
            loss.backward()
            optimizer.step()
            by_hand[-1].append(loss.item())
    for ours, theirs in zip(losses(tmp_path), by_hand, strict=True):
        assert len(ours) == 50
        np.testing.assert_allclose(ours[:25], theirs[:25], rtol=1e-3)
        np.testing.assert_allclose(ours[:10], theirs[:10], rtol=1e-5)


def test_the_figures_are_those_of_the_losses(tasks: Path, undrawn: None) -> None:
    compare(tasks / "out", SGD, ADAM, *OWN)
    target = float(np.median(losses(tasks / "out")[0]))
    result = compare(tasks / "out", "--resume", "--target", str(target))
    assert result.exit_code == 0, result.output
    content = found(tasks / "out")
    assert (content["task"], content["seed"], content["steps"]) == ("own_tasks:noisy", 0, 40)
    for row in content["results"]:
        values = np.asarray(row["losses"])
        assert len(values) == row["steps"] == 40
        assert row["loss"] == pytest.approx(values[-2:].mean())
        means = [values[max(0, i - 1) : i + 1].mean() for i in range(40)]
        assert row["steps_to_target"] == next(i + 1 for i, mean in enumerate(means) if mean <= target)
        assert row["seconds"] == row["seconds_to_step"][-1] > 0
        assert row["seconds_to_step"] == sorted(row["seconds_to_step"])
        assert row["failed"] is None
    model = 4 * 8 + 8 + 8 + 8 + 8 + 1
    counters = 6 * 4
    assert [row["state_bytes"] for row in content["results"]] == [4 * model, 8 * model + counters]
    lines = result.output.splitlines()
    for row in content["results"]:
        line = next(line for line in lines if row["setting"] in line)
        assert line.split()[-6:-4] == ["40", f"{row['loss']:.4g}"]
        assert line.split()[-4] == str(row["steps_to_target"])
    assert f"loss: the mean of the last 2 steps; target: {target:.4g}." in lines


def test_without_a_target_the_worst_end_is_the_target(tasks: Path, undrawn: None) -> None:
    compare(tasks / "out", SGD, ADAM, "SGD lr=1e-9", *OWN)
    results = found(tasks / "out")["results"]
    worst = max(row["loss"] for row in results)
    assert results[2]["loss"] == worst
    assert all(row["steps_to_target"] <= 40 for row in results)


def test_the_seed_decides_everything(tasks: Path, undrawn: None) -> None:
    for folder, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert compare(tasks / folder, SGD, ADAM, *OWN, "--seed", seed).exit_code == 0
    assert losses(tasks / "a") == losses(tasks / "b")
    assert losses(tasks / "a") != losses(tasks / "c")
    alone = compare(tasks / "d", ADAM, *OWN, "--seed", "1")
    assert alone.exit_code == 0
    assert losses(tasks / "d")[0] == losses(tasks / "a")[1]  # whatever was trained before it


def test_the_usual_settings_are_compared_where_none_are_given(tmp_path: Path) -> None:
    assert compare(tmp_path, "--steps", "3").exit_code == 0
    assert [row["setting"].split()[0] for row in found(tmp_path)["results"]] == ["SGD", "AdamW", "RMSprop"]


def test_settings_are_read_as_python() -> None:
    setting = parse("AdamW lr=3e-4*warmup(10).then(cosine(90)) betas='(0.9, 0.95)' amsgrad=True backend=eager")
    assert setting.algorithm.__name__ == "AdamW"
    assert setting.options == {
        "lr": 3e-4 * warmup(10).then(cosine(90)),
        "betas": (0.9, 0.95),
        "amsgrad": True,
        "backend": "eager",
    }


# -- crashes -----------------------------------------------------------------------------------------------------------


def test_a_crash_of_all_runs_draws_nothing(tasks: Path) -> None:
    result = compare(tasks / "out", "SparseAdam lr=0.1", *OWN)
    assert result.exit_code == 1
    assert "no run could be trained, so that there is nothing to draw: RuntimeError at step 1" in result.stderr
    assert not (tasks / "out" / "compare.png").exists()


def test_a_crash_of_one_run_is_reported_and_does_not_end_the_others(tasks: Path) -> None:
    result = compare(tasks / "out", "SparseAdam lr=0.1", SGD, "SGD lr=1e25", ADAM, *OWN)
    assert result.exit_code == 1
    sparse, sgd, wild, adam = found(tasks / "out")["results"]
    assert "RuntimeError at step 1: SparseAdam does not support dense gradients" in sparse["failed"]
    assert wild["failed"].startswith("the loss is ")
    assert sgd["failed"] is adam["failed"] is None
    assert len(sgd["losses"]) == len(adam["losses"]) == 40
    assert "Traceback" in (tasks / "out" / "run-1.txt").read_text()
    text = " ".join(result.output.split())
    assert "1: RuntimeError at step 1: SparseAdam does not support dense gradients" in text
    assert "run-1.txt has more" in text
    assert f"3: {wild['failed']}" in text
    assert text.count("failed") == 2
    assert image.imread(tasks / "out" / "compare.png").shape[1] > 1200


@pytest.mark.parametrize(
    ("task", "message"),
    [("short", "RuntimeError at step 8: the task has only 7 losses"), ("leaving", "SystemExit at step 6: gone")],
)
def test_a_task_that_ends_early(tasks: Path, task: str, message: str) -> None:
    result = compare(tasks / "out", SGD, ADAM, "--task", f"own_tasks:{task}", "--steps", "40")
    assert result.exit_code == 1
    assert all(message in row["failed"] for row in found(tasks / "out")["results"])


def test_a_task_that_is_none(tasks: Path) -> None:
    result = compare(tasks / "out", SGD, "--task", "own_tasks:wrong")
    assert result.exit_code == 1
    assert "must return a model and an iterator of losses" in found(tasks / "out")["results"][0]["failed"]


# -- stopped and resumed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stops", [(0,), (13,), (39, 1), (55, 3, 0, 20)])
def test_stopped_at_any_step_it_goes_on_to_the_bit(
    tasks: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch, stops: tuple[int, ...]
) -> None:
    assert compare(tasks / "whole", SGD, ADAM, *OWN).exit_code == 0
    monkeypatch.setattr(running, "PAUSE", 0.0)
    taken = running.step
    for index, stop in enumerate(stops):
        left = iter(range(stop))

        def until(*arguments: Any, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            taken(*arguments)

        monkeypatch.setattr(running, "step", until)
        result = compare(tasks / "parts", *((SGD, ADAM, *OWN) if index == 0 else ("--resume",)))
        assert result.exit_code == 130
        assert result.output.splitlines()[-1] == f"Stopped. To go on: steprule compare --resume --output {tasks}/parts"
    monkeypatch.setattr(running, "step", taken)
    assert compare(tasks / "parts", "--resume").exit_code == 0
    assert losses(tasks / "parts") == losses(tasks / "whole")


def test_more_steps_and_more_settings_go_on_from_what_is_there(
    tasks: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compare(tasks / "whole", SGD, ADAM, "Lion lr=0.01", *OWN).exit_code == 0
    assert compare(tasks / "parts", ADAM, *OWN[:2], "--steps", "25").exit_code == 0
    trained: list[str] = []
    taken = running.step
    monkeypatch.setattr(running, "step", lambda run, *rest: (trained.append(run.setting.text), taken(run, *rest)))
    assert compare(tasks / "parts", SGD, ADAM, "--resume", "--steps", "40").exit_code == 0
    assert losses(tasks / "parts") == losses(tasks / "whole")[:2]
    assert [trained.count(text) for text in (SGD, ADAM)] == [40, 15]
    trained.clear()
    assert compare(tasks / "parts", "Lion lr=0.01", "--resume").exit_code == 0
    assert losses(tasks / "parts") == losses(tasks / "whole")[2:]
    assert compare(tasks / "parts", "--resume").exit_code == 0
    assert trained == ["Lion lr=0.01"] * 40
    assert sorted(map(str, losses(tasks / "parts"))) == sorted(map(str, losses(tasks / "whole")))


def test_a_new_comparison_forgets_the_old_one_when_it_is_told_to(tasks: Path) -> None:
    (tasks / "out").mkdir()
    (tasks / "out" / "run-9.txt").write_text("precious")
    compare(tasks / "out", SGD, ADAM, *OWN)
    before = {path.name: path.read_bytes() for path in (tasks / "out").iterdir()}
    assert_refused(compare(tasks / "out", ADAM, *OWN, "--seed", "5"), "holds a comparison", "--resume", "--overwrite")
    assert_refused(compare(tasks / "out", "--resume", "--overwrite"), "give one of them")
    assert {path.name: path.read_bytes() for path in (tasks / "out").iterdir()} == before
    compare(tasks / "out", ADAM, *OWN, "--seed", "5", "--overwrite")
    assert sorted(path.name for path in (tasks / "out").iterdir()) == [
        *("compare.json", "compare.png", "run-1.safetensors", "run-9.txt")
    ]
    assert found(tasks / "out")["settings"] == [ADAM]


def test_a_task_that_fails_at_once_removes_nothing(tasks: Path) -> None:
    folder = tasks / "out"
    compare(folder, SGD, *OWN)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    broken = "def wrong():\n    raise OSError('no data here')\n\n\ndef no_pair():\n    return 3\n"
    (tasks / "broken_tasks.py").write_text(broken)
    for task, words in (("wrong", "OSError: no data here"), ("no_pair", "must return a model and an iterator")):
        result = compare(folder, SGD, "--overwrite", "--task", f"broken_tasks:{task}")
        assert_refused(result, words, "is as it was")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_contradicts_the_earlier_comparison_is_refused(tasks: Path) -> None:
    folder = tasks / "out"
    compare(folder, SGD, *OWN)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert_refused(compare(folder, "--resume", "--seed", "1"), "--seed 0")
    assert_refused(compare(folder, "--resume", "--task", "demo"), "--task own_tasks:noisy")
    assert_refused(compare(folder, "--resume", "--steps", "39"), "--steps 40")
    assert_refused(compare(folder, "--resume", "Nadir lr=1"), "Nadir")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "run-1.safetensors").write_bytes(before["run-1.safetensors"][:-7])
    assert_refused(compare(folder, "--resume"), "run-1.safetensors")
    (folder / "compare.json").write_text('{"task": "demo"}')
    assert_refused(compare(folder, "--resume"), "compare.json")


# -- what it refuses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Sgd2 lr=0.1", "there is no optimizer 'Sgd2'"),
        ("SGD 0.1", "'0.1' in 'SGD 0.1' is not a setting"),
        ("SGD lr=0.1 lr=0.2", "'lr=0.2'"),
        ("SGD lr=", "''"),
        ("SGD lr=cosine(", "'cosine('"),
        ("SGD lr=__import__('os')", "__import__"),
        ("SGD lr=-1", "Invalid learning rate: -1"),
        ("SGD lrr=1", "unexpected keyword argument 'lrr'"),
        ("SGD 'lr=1", "No closing quotation"),
    ],
)
def test_a_setting_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    assert_refused(compare(tmp_path / "out", "SGD lr=0.1", text), message)
    assert not (tmp_path / "out").exists()


def test_a_setting_that_is_given_twice(tmp_path: Path) -> None:
    assert_refused(compare(tmp_path / "out", SGD, SGD), "twice")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("own_tasks", "package.module:function"),
        ("own_tasks:", "package.module:function"),
        ("other_tasks:f", "ModuleNotFoundError"),
        ("own_tasks:f", "has no attribute 'f'"),
        ("own_tasks:number", "is not a function"),
        ("broken:f", "ZeroDivisionError"),
    ],
)
def test_a_task_that_is_not_there(tasks: Path, task: str, message: str) -> None:
    (tasks / "broken.py").write_text("1 / 0")
    assert_refused(compare(tasks / "out", SGD, "--task", task), message)
    assert not (tasks / "out").exists()


@pytest.mark.parametrize("module", ["sklearn.datasets", "matplotlib"])
def test_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert_refused(compare(tmp_path / "out"), "pip install 'steprule[demo]'")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    assert_refused(compare(tmp_path / "file", "--steps", "3"), "cannot write")
    assert (tmp_path / "file").read_text() == "precious"


# -- what it shows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_the_screen_fits_and_nothing_is_cut_off(tasks: Path, columns: int) -> None:
    long = "AdamW lr=0.002*warmup(20).then(cosine(70)) betas=(0.9,0.95) weight_decay=0.1"
    result = compare(tasks / "out", SGD, long, "SparseAdam lr=1", *OWN, columns=columns)
    *lines, last = result.output.splitlines()
    assert last == f"Picture and figures are in {tasks / 'out'}."
    assert max(map(len, lines)) <= columns
    assert "…" not in result.output
    pieces = "".join(re.sub(r"\s{2,}.*", "", line[3:]).strip() for line in lines)
    assert long.replace(" ", "") in pieces.replace(" ", "")
    assert sum(bool(set(line) & set(map(chr, range(0x2801, 0x2900)))) for line in lines) >= 5
    help_lines = invoke("compare", "--help", columns=columns).output.splitlines()
    assert max(map(len, help_lines)) <= columns


def test_the_picture_has_a_white_edge_all_around(tasks: Path) -> None:
    """So nothing is cut off: the settings below it neither."""
    many = [f"AdamW lr={rate}*warmup(5).then(cosine(35)) betas=(0.9,0.95) weight_decay=0.1" for rate in (0.1, 0.2, 0.3)]
    compare(tasks / "out", SGD, ADAM, *many, "SGD lr=1e25", *OWN)
    picture = image.imread(tasks / "out" / "compare.png")[:, :, :3]
    for edge in (picture[:4], picture[-4:], picture[:, :4], picture[:, -4:]):
        assert edge.min() == 1.0
    assert len({tuple(pixel) for pixel in picture[::3, ::3].reshape(-1, 3).tolist()}) > 50


def test_a_loss_that_does_not_move_and_is_negative_is_shown_too(tasks: Path) -> None:
    result = compare(tasks / "out", SGD, "--task", "own_tasks:flat", "--steps", "9")
    assert result.exit_code == 0
    assert "     -2.5 ┤" in result.output


def test_a_terminal_sees_it_live(tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    terminal = Console(force_terminal=True, width=80, height=24, file=stream)
    monkeypatch.setattr(command, "console", terminal)
    monkeypatch.setattr(command, "FRAME", 0.0)
    assert compare(tasks / "out", SGD, *OWN).exit_code == 0
    screens = stream.getvalue().split("\x1b[?25h")[0].split("step 40")
    assert len(screens) > 40
    assert any(f"{step}/40" in "".join(screens) for step in (10, 20, 30))


def dots(text: str, columns: int) -> set[tuple[int, int]]:
    """The places of the dots, counted from the lower left."""
    lines = text.split("\n")[:-1]
    bits = {
        (0, 0): 0x01,
        (0, 1): 0x02,
        (0, 2): 0x04,
        (1, 0): 0x08,
        (1, 1): 0x10,
        (1, 2): 0x20,
        (0, 3): 0x40,
        (1, 3): 0x80,
    }
    return {
        (2 * column + x, 4 * (len(lines) - 1 - row) + 3 - y)
        for row, line in enumerate(lines)
        for column, character in enumerate(line[MARGIN : MARGIN + columns])
        if 0x2800 <= ord(character) < 0x2900
        for (x, y), bit in bits.items()
        if (ord(character) - 0x2800) & bit
    }


def test_a_straight_line_is_straight() -> None:
    values = list(np.linspace(1, 2, 64))
    text = curves([values], 64, 32 + MARGIN + 4, 17).plain
    found_dots = dots(text, 32)
    assert {x for x, _ in found_dots} == set(range(64))
    for x, y in found_dots:
        assert abs(y - x) <= 1
    assert text.split("\n")[0].startswith("        2 ┤")
    assert text.split("\n")[15].startswith("        1 ┤")
    assert text.split("\n")[0].rstrip().endswith("1")  # the number of the run


def test_a_fall_through_powers_of_ten_is_straight_too() -> None:
    found_dots = dots(curves([[10.0**-i for i in range(33)]], 33, 33 + MARGIN + 4, 9).plain, 33)
    assert min(y for _, y in found_dots) == 0
    assert max(y for _, y in found_dots) == 31
    for x, y in found_dots:
        assert abs(y - (31 - 31 * (x / 2) / 32)) <= 1.6


series = st.lists(st.floats(-1e6, 1e6), max_size=50)


@settings(deadline=None)
@given(st.lists(series, min_size=1, max_size=4), st.integers(50, 99), st.integers(40, 120), st.integers(6, 18))
def test_any_losses_can_be_drawn(values: list[list[float]], length: int, width: int, height: int) -> None:
    lines = curves(values, length, width, height).plain.split("\n")
    assert len(lines) == height
    assert max(map(len, lines)) <= width
    low, high = bounds(values)
    assert low < high


@settings(deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=60), st.integers(1, 200))
def test_bins_hold_means(values: list[float], bins: int) -> None:
    found_bins = binned(values, 60, bins)
    assert len(found_bins) == -(-len(values) * bins // 60)
    assert min(values) - 1e-9 <= min(found_bins)
    assert max(found_bins) <= max(values) + 1e-9
    if bins == 60:
        assert found_bins == pytest.approx(values)


@settings(deadline=None)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=60), st.integers(1, 70), st.floats(0, 100))
def test_means_and_targets_are_those_of_numpy(values: list[float], window: int, target: float) -> None:
    run = Run(parse("SGD"), Path(), values)
    means = [np.mean(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))]
    assert run.mean(window) == pytest.approx(means, abs=1e-9)
    reached = run.reaches(target, window)
    assert reached is None or run.mean(window)[reached - 1] <= target
    assert all(mean > target - 1e-9 for mean in means[: (reached or len(values) + 1) - 1])
