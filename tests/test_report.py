"""What a person sees of an optimizer: the table that it prints as, pictures, and the log."""

from __future__ import annotations

import io
import json
import math
import os
import re
import runpy
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from tensors import grad_of
from torch import nn

import steprule
from steprule import biases, layer_decay, norms, report, scale
from steprule.display.table import short_count, wrapped
from steprule.schedules import cosine, exponential, plateau, warmup

EXAMPLES = Path(__file__).parents[1] / "examples"
RATE = 3e-4 * warmup(100).then(cosine(900))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.attention = nn.ModuleDict({part: nn.Linear(4, 4) for part in ("query", "key", "value", "out")})
        self.mlp = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))


class Deep(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.head = nn.Linear(4, 10)


def printed(optimizer: steprule.Optimizer, width: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    text = str(optimizer)
    assert "\x1b" not in text
    lines = text.split("\n")
    assert max(map(len, lines)) <= width
    assert all(line == line.rstrip() for line in lines)
    assert not any("…" in line for line in lines if "▁" not in line)  # nothing is cut off
    return lines


def deep(depth: int = 100, **options: Any) -> steprule.AdamW:
    overrides = {norms | biases: {"weight_decay": 0.0}, "embedding.*": {"lr": scale(10)}}
    return steprule.AdamW(Deep(depth), lr=RATE, weight_decay=0.1, overrides=overrides, **options)


# -- print(optimizer) --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 120, 200])
def test_a_hundred_layers_fit_a_screen(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed(deep(), width, monkeypatch)
    assert len(lines) <= 24
    assert lines[0] == "AdamW: 16,490 parameters in 1,403 tensors, 3 groups; 0 steps taken"
    text = " ".join(" ".join(lines).split())
    assert "embedding.weight 1 40" in text
    assert "in all groups: betas=(0.9, 0.999), eps=1e-08, amsgrad=False, " in text
    assert "kernel=llvm" in text
    spark = (10 * RATE).sparkline(width=24 if width >= 120 else 8)
    assert f"0 {spark} 0…0.003" in text
    assert "foreach" not in text


def test_wide_terminals_have_a_column_for_each_hyperparameter(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed(deep(), 200, monkeypatch)
    assert lines[1].split() == ["parameters", "tensors", "size", "lr", "weight_decay"]
    row = next(line for line in lines if line.startswith("2"))
    assert row.split()[1:4] == ["blocks.{0..99}.attention.*.weight", "601", "12.8k"]
    assert row.split()[-1] == "0.1"


def test_narrow_terminals_stack_them(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed(deep(), 80, monkeypatch)
    assert lines[1].split() == ["parameters", "tensors", "size", "hyperparameters"]
    assert sum("weight_decay 0" in line for line in lines) == 3


def test_long_names_break_after_dots(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.ModuleDict({"transformer": nn.ModuleDict({"decoder": Deep(5)})})
    lines = printed(steprule.AdamW(model, lr=RATE, overrides={norms: {"weight_decay": 0.0}}), 80, monkeypatch)
    names = [line[3 : lines[1].index("tensors")].rstrip() for line in lines[3:-2]]
    breaks = [before for before, after in pairwise(names) if after.startswith("  ")]
    assert breaks
    assert all(before.endswith((".", ",")) for before in breaks)
    assert "transformer.decoder.blocks.{0..4}.mlp.{0,2}.{weight,bias}" in "".join(name.strip() for name in names)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_table_says_what_is_so(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every group's numbers, against the groups themselves; a row is found by its number."""
    optimizer = deep(3, backend="auto")
    optimizer._workings.count.taken = 550
    steprule.schedules.write(optimizer.param_groups, 550)
    lines = printed(optimizer, width, monkeypatch)
    assert "550 steps taken" in " ".join(lines[:2])
    for index, group in enumerate(optimizer.param_groups):
        (row,) = (line for line in lines[3:] if line.startswith(f"{index}  "))
        start = lines.index(row)
        block = " ".join([row, *(line for line in lines[start + 1 : start + 5] if line.startswith("   "))])
        assert str(len(group["params"])) in block
        assert short_count(sum(p.numel() for p in group["params"])) in block
        assert f"{group['lr']:.6g}" in block


def test_differences_in_kernels_frozen_parameters_and_functions_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Deep(2)
    overrides = {norms: {"backend": "eager"}, "head.*": {"lr": lambda step: [0.5, 0.25][step]}}
    optimizer = steprule.SGD(model, lr=0.1 * exponential(0.99), momentum=0.9, overrides=overrides)
    optimizer.freeze("embedding.*")
    optimizer.freeze("head.*")
    lines = printed(optimizer, 200, monkeypatch)
    assert lines[1].split() == ["parameters", "tensors", "size", "lr", "backend", "kernel"]
    body = [line.split() for line in lines[3:]]
    assert any(row[-2:] == ["eager", "eager"] and row[0] == "1" for row in body)
    assert any(row[-2:] == ["auto", "llvm"] and "(1" in row and "frozen)" in row for row in body)
    assert any("(a function)" in line and "0.5" in line and "2 (frozen)" in line for line in lines)
    assert any("4.3e-06…0.1" in line for line in lines)  # drawn for a thousand steps, for it never ends


def test_many_groups_leave_out_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Deep(30)
    optimizer = steprule.AdamW(model, lr=0.1, overrides={**layer_decay(model, 0.9), biases: {"weight_decay": 0.0}})
    lines = printed(optimizer, 100, monkeypatch)
    count = len(optimizer.param_groups)
    numbers = [line.split()[0] for line in lines[3:-2] if line[:2].strip()]
    assert numbers == [*map(str, range(6)), "⋮", *map(str, range(count - 6, count))]
    assert any(f"{count - 12} more groups" in line for line in lines)


def test_what_has_no_names_is_shown_by_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = steprule.SGD([torch.zeros(2, 3), torch.zeros(()), torch.zeros(2, 3)], lr=0.1)
    lines = printed(optimizer, 80, monkeypatch)
    assert lines[3:5] == ["0  (2, 3)      3 (frozen)    13", "   ()"]


def test_it_prints_whatever_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    class Misspelt(steprule.Optimizer):
        def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            return p - h.rl * g

    lines = printed(Misspelt([torch.zeros(2)], dict(lr=0.1)), 80, monkeypatch)
    assert lines[-1] == "in all groups: lr=0.1, kernel=none (explain() says why)"
    assert "kernel=torch" in str(steprule.Optimizer([torch.zeros(2)], dict(lr=0.1)))
    assert "kernel=none" in str(steprule.SGD([torch.zeros(2)], backend="llvm", differentiable=True))


def test_printing_changes_nothing() -> None:
    torch.manual_seed(0)
    twins = [nn.Linear(3, 2) for _ in range(2)]
    twins[1].load_state_dict(twins[0].state_dict())
    optimizers = [steprule.AdamW(model, lr=RATE) for model in twins]
    for _ in range(3):
        for model, optimizer in zip(twins, optimizers, strict=True):
            optimizer.zero_grad()
            model(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()
        str(optimizers[1])
    assert all(map(torch.equal, twins[0].parameters(), twins[1].parameters()))
    assert optimizers[1].steps_taken == 3


def test_it_is_80_columns_wide_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(sys, "__stdout__", io.StringIO())
    assert 70 < max(map(len, str(deep()).split("\n"))) <= 80
    monkeypatch.setattr(sys, "__stdout__", sys.stdin)
    monkeypatch.setattr(sys.stdin, "fileno", lambda: 0)
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((200, 50)))
    assert 80 < max(map(len, str(deep()).split("\n"))) <= 200


@settings(deadline=None)
@given(st.lists(st.text("ab.,", min_size=1, max_size=60), min_size=1, max_size=4), st.integers(4, 40))
def test_wrapping_keeps_every_character(names: list[str], width: int) -> None:
    text = "\n".join(names)
    lines = wrapped(text, width).split("\n")
    assert "".join(line.removeprefix("  ") for line in lines) == "".join(names)
    for line in lines:
        assert len(line) <= width or not any(c in line.strip()[:-1] for c in ".,")


# -- pictures ----------------------------------------------------------------------------------------------------------


def drawn(figure: Figure) -> list[dict[str, tuple[list[float], list[float]]]]:
    """The labelled lines of each panel."""
    return [
        {
            str(line.get_label()): (np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist())
            for line in axes.get_lines()
            if not str(line.get_label()).startswith("_")
        }
        for axes in figure.axes
    ]


def texts(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def assert_nothing_is_cut_off(figure: Figure) -> None:
    figure.savefig(io.BytesIO())
    width, height = figure.bbox.width, figure.bbox.height
    renderer = figure._get_renderer()
    for axes in figure.axes:
        box = axes.get_tightbbox(renderer)
        assert box is not None
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= width + 1
        assert box.y1 <= height + 1


def test_schedules_are_drawn_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    overrides = {norms: {"lr": scale(0.5)}, "0.bias": {"weight_decay": 0.1}}
    optimizer = steprule.AdamW(model, lr=RATE, betas=(0.9, 1 - 0.1 * cosine(50)), overrides=overrides)
    figure = report.plot_schedules(optimizer)
    assert texts(figure) == ["lr", "betas[1]"]
    rates, betas = drawn(figure)
    assert list(rates) == ["0: 0.weight\n1: 0.bias", "2: 1.{weight,bias}"]
    at, values = rates["2: 1.{weight,bias}"]
    assert at[0] == 0
    assert at[-1] == 1000
    assert values == pytest.approx([0.5 * RATE(int(step)) for step in at])
    assert len(betas) == 1
    assert drawn(report.plot_schedules(optimizer, steps=10))[0]["2: 1.{weight,bias}"][0] == list(range(11))
    assert_nothing_is_cut_off(figure)


def test_the_present_step_is_marked() -> None:
    optimizer = steprule.SGD([torch.zeros(2)], lr=RATE)
    assert len(report.plot_schedules(optimizer).axes[0].get_lines()) == 1
    optimizer._workings.count.taken = 400
    lines = report.plot_schedules(optimizer).axes[0].get_lines()
    assert list(np.asarray(lines[1].get_xdata())) == [400, 400]


def test_fifty_groups_are_a_fan() -> None:
    model = Deep(50)
    optimizer = steprule.AdamW(model, lr=RATE, overrides=layer_decay(model, 0.9))
    figure = report.plot_schedules(optimizer)
    assert len(figure.axes[0].get_lines()) == 52
    assert list(drawn(figure)[0]) == ["0: embedding.weight", "51: head.{weight,bias}"]
    assert_nothing_is_cut_off(figure)


def test_what_can_not_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="no hyperparameter follows a schedule"):
        report.plot_schedules(steprule.SGD([torch.zeros(2)]))
    endless = steprule.SGD([torch.zeros(2)], lr=0.1 * plateau())
    with pytest.raises(ValueError, match="steps must be positive, and given where no schedule has an end"):
        report.plot_schedules(endless)
    with pytest.raises(ValueError, match="steps must be positive"):
        report.plot_schedules(endless, steps=-3)
    assert drawn(report.plot_schedules(endless, steps=3))
    with pytest.raises(ValueError, match="there is no record in this history of 0"):
        report.plot_history([])
    with pytest.raises(ValueError, match="there is no accuracy in this history of 1"):
        report.plot_history([{"step": 1, "loss": 2.0}], ["accuracy"])
    with pytest.raises(ValueError, match="window must be at least 1"):
        report.plot_history([{"step": 1, "loss": 2.0}], window=0)


def test_history_has_a_panel_for_each_kind() -> None:
    records = [{"step": s, "loss": 100.0 * 0.5**s, "norm/a": 1.0, "norm/b": float(s) or math.nan} for s in range(20)]
    figure = report.plot_history(records, window=3)
    assert texts(figure) == ["loss", "norm"]
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear"]
    faint, bold = figure.axes[0].get_lines()
    assert list(np.asarray(faint.get_ydata())) == [100.0 * 0.5**s for s in range(20)]
    assert list(np.asarray(bold.get_xdata())) == pytest.approx(range(1, 19))
    assert bold.get_ydata()[0] == pytest.approx(175 / 3)
    assert list(drawn(figure)[1]) == ["a", "b"]
    assert texts(report.plot_history(records, ["norm"])) == ["norm"]
    assert_nothing_is_cut_off(figure)


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)
    for draw in (
        lambda: report.plot_schedules(steprule.SGD([torch.zeros(2)], lr=RATE)),
        lambda: report.plot_history([{"step": 1, "loss": 2.0}]),
    ):
        with pytest.raises(ImportError, match=r"pip install 'steprule\[demo\]'"):
            draw()


# -- the log -----------------------------------------------------------------------------------------------------------

numbers = st.floats() | st.integers(-(2**53), 2**53)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.dictionaries(st.text().filter(lambda name: name != "step"), numbers, max_size=4), max_size=6))
def test_the_log_gives_back_what_was_written(tmp_path_factory: pytest.TempPathFactory, records: list[Any]) -> None:
    path = tmp_path_factory.mktemp("log") / "run.jsonl"
    with report.JSONLines(path) as log:
        for step, values in enumerate(records):
            log.write(values, step=step)
    for line in path.read_text(encoding="utf-8").splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    read = report.read_json_lines(path)
    assert [record.pop("step") for record in read] == list(range(len(records)))
    for found, values in zip(read, records, strict=True):
        assert found == pytest.approx(values, rel=0, abs=0, nan_ok=True)


def test_a_resumed_run_replaces_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with report.JSONLines(path) as log:
        for step in range(5):
            log.write({"loss": torch.tensor(float(step))}, step=step)
    with open(path, "a") as file:
        file.write('{"step": 5, "lo')  # killed here
    assert [r["step"] for r in report.read_json_lines(path)] == [0, 1, 2, 3, 4]
    with report.JSONLines(path) as log:
        for step in (3, 4, 5):
            log.write({"loss": 10.0}, step=step)
    assert [(r["step"], r["loss"]) for r in report.read_json_lines(path)] == [
        *((0, 0.0), (1, 1.0), (2, 2.0)),
        *((3, 10.0), (4, 10.0), (5, 10.0)),
    ]


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with report.JSONLines(path) as log:
        for bad in ("high", torch.zeros(2), None):
            with pytest.raises(TypeError, match="loss must be a number"):
                log.write({"loss": bad}, step=0)
        log.write({"loss": 1.0}, step=0)
    for line in ("loss 3", "[1]", '{"loss": 3}', '{"step": 1, "loss": "high"}', '{"step": null}'):
        path.write_text(f'{{"step": 0, "loss": 1.0}}\n{line}\n')
        with pytest.raises(ValueError, match=r"line 2 of .*run.jsonl is not a record"):
            report.read_json_lines(path)


def test_tracked_norms_go_through_the_log_into_the_picture(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = steprule.SGD(model, lr=0.1)
    optimizer.track("grad_norm")
    with report.JSONLines(tmp_path / "run.jsonl") as log:
        for step in range(4):
            optimizer.zero_grad()
            loss = model(torch.ones(1, 3)).square().sum()
            loss.backward()
            optimizer.step()
            log.write({"loss": loss, **optimizer.tracked()}, step=step)
    (_, norms_drawn) = drawn(report.plot_history(tmp_path / "run.jsonl"))
    assert list(norms_drawn) == ["weight", "bias"]
    assert norms_drawn["bias"][1][-1] == pytest.approx(grad_of(model.bias).norm().item())


@pytest.mark.parametrize(("example", "package"), [("tensorboard", "tensorboard"), ("wandb", "wandb")])
def test_the_examples_run(example: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    runpy.run_path(str(EXAMPLES / f"log_to_{example}.py"), run_name="__main__")
    assert any(tmp_path.iterdir())


def test_the_code_of_the_page_on_groups_runs_and_prints_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (EXAMPLES.parent / "docs" / "groups.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(code, names)
    assert capsys.readouterr().out == "".join(re.findall(r"```text\n(.*?)```", page, re.S))
    assert drawn(names["figure"])
    for picture in re.findall(r"!\[[^]]+\]\(([^)]+)\)", page):
        assert (EXAMPLES.parent / "docs" / picture).is_file()
