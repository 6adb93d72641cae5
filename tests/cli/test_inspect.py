"""`steprule inspect` and `steprule convert`: what they say about files of both kinds, and what they make."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import nn
from training import train
from typer.testing import CliRunner

import steprule
from steprule.checkpoint import CheckpointError, load, save
from steprule.cli.convert import convert
from steprule.cli.inspect import inspect
from steprule.saving.tensor_file import write_tensors
from steprule.schedules import cosine

app = typer.Typer()
app.command()(inspect)
app.command()(convert)


def output_of(*arguments: object, columns: int = 80, status: int = 0) -> str:
    environment = {"COLUMNS": str(columns), "NO_COLOR": "1"}
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)
    assert result.exit_code == status, result.output
    return result.output


def parsed(*arguments: object) -> Any:
    return json.loads(output_of("inspect", "--json", *arguments))


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))


def batches(steps: int) -> list[torch.Tensor]:
    return [torch.arange(20.0).view(5, 4) - step for step in range(steps)]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Files of the same run: ours, torch's by position, torch's with names, one with several things in it."""
    model = network()
    decay = {"*.bias": {"weight_decay": 0.0}}
    optimizer = steprule.AdamW(model, lr=0.01 * cosine(100), overrides=decay)
    train(model, optimizer, batches(3))
    paths = {name: tmp_path / name for name in ("ours", "torch", "named", "several", "two", "later")}
    save(paths["ours"], optimizer, model, epoch=3, rng=True)
    other = torch.optim.AdamW(model.parameters(), lr=0.01)
    train(network(), other, batches(0))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    other.step()
    torch.save(other.state_dict(), paths["torch"])
    torch.save(torch.optim.Adam(model.named_parameters(), lr=0.01).state_dict(), paths["named"])
    torch.save({"optimizer": optimizer.state_dict(), "model": model.state_dict(), "epoch": 3}, paths["several"])
    torch.save({"a": other.state_dict(), "b": [other.state_dict()]}, paths["two"])
    train(model, optimizer, batches(2))
    with torch.no_grad():
        optimizer.state[model[0].weight]["exp_avg"][0, :2] = torch.tensor([math.nan, math.inf])
    save(paths["later"], optimizer, model)
    return paths


class TestInspect:
    def test_what_is_in_our_file(self, files: dict[str, Path]) -> None:
        found = parsed(files["ours"])
        assert (found["algorithm"], found["guessed"], found["step"], found["version"]) == ("AdamW", False, 3, 2)
        assert (found["parameters"], found["numbers"]) == (6, 24 + 6 + 6 + 6 + 18 + 3)
        assert found["bytes"]["state"] == 63 * 8 + 6 * 4
        assert found["bytes"]["file"] == os.path.getsize(files["ours"])
        assert [len(group["parameters"]) for group in found["groups"]] == [3, 3]
        assert [group["hyperparameters"]["weight_decay"] for group in found["groups"]] == [0.01, 0.0]
        assert found["groups"][0]["schedules"]["lr"]["left"] == 0.01
        assert set(found["others"]) == {"epoch", "random state"}

    def test_norms_and_counts_are_those_of_torch(self, files: dict[str, Path]) -> None:
        model = network()
        optimizer = steprule.AdamW(model, overrides={"*.bias": {"weight_decay": 0.0}})
        load(files["later"], optimizer, model)
        for row in parsed(files["later"])["table"]:
            p = dict(model.named_parameters())[row["name"]]
            assert row["shape"] == list(p.shape)
            assert row["weight"]["norm"] == pytest.approx(p.norm().item(), rel=1e-6)
            for slot, found in row["slots"].items():
                tensor = optimizer.state[p][slot]
                assert found["nan"] == tensor.isnan().sum()
                assert found["inf"] == tensor.isinf().sum()
                if not found["nan"]:
                    assert found["norm"] == pytest.approx(tensor.double().norm().item(), rel=1e-6)
            assert row["values"]["step"] == 5
        assert [row["slots"]["exp_avg"]["nan"] for row in parsed(files["later"])["table"]].count(1) == 1

    @pytest.mark.parametrize(("name", "algorithm", "guessed"), [("torch", "AdamW", True), ("named", "Adam", True)])
    def test_what_is_in_torchs_file(self, files: dict[str, Path], name: str, algorithm: str, guessed: bool) -> None:
        found = parsed(files[name])
        assert (found["algorithm"], found["guessed"]) == (algorithm, guessed)
        assert found["parameters"] == 6
        assert found["groups"][0]["hyperparameters"]["lr"] == 0.01

    def test_values_in_torchs_file_are_read_from_where_they_lie(self, files: dict[str, Path]) -> None:
        saved = torch.load(files["torch"], weights_only=True)
        for i, row in enumerate(parsed(files["torch"])["table"]):
            for slot, found in row["slots"].items():
                assert found["norm"] == pytest.approx(saved["state"][i][slot].double().norm().item(), rel=1e-9)

    @pytest.mark.parametrize("name", [name for name in torch.optim.__all__ if name not in ("Optimizer",)])
    def test_torchs_algorithms_are_known_by_their_hyperparameters(self, tmp_path: Path, name: str) -> None:
        if not isinstance(getattr(torch.optim, name), type):
            return
        parameters = [torch.zeros(2, 3, requires_grad=True)]
        optimizer = getattr(torch.optim, name)(parameters, lr=0.1)
        torch.save(optimizer.state_dict(), tmp_path / "state")
        assert parsed(tmp_path / "state")["algorithm"] == name

    def test_the_old_format_of_torch(self, tmp_path: Path) -> None:
        p = torch.zeros(3, requires_grad=True)
        optimizer = torch.optim.SGD([p], lr=0.1, momentum=0.9)
        p.grad = torch.ones(3)
        optimizer.step()
        torch.save(optimizer.state_dict(), tmp_path / "old", _use_new_zipfile_serialization=False)
        (row,) = parsed(tmp_path / "old")["table"]
        assert row["slots"]["momentum_buffer"]["norm"] == pytest.approx(3**0.5)

    def test_a_state_among_other_things(self, files: dict[str, Path]) -> None:
        found = parsed(files["several"])
        assert (found["algorithm"], found["step"], found["others"]) == ("AdamW", 3, {"epoch": 3})
        assert found["bytes"]["model"] > 0
        assert "choose one with --key: a, b.0" in output_of("inspect", files["two"], status=2)
        assert parsed(files["two"], "--key", "b.0")["parameters"] == 6
        assert "no state of an optimizer under 'c'" in output_of("inspect", files["two"], "--key", "c", status=2)

    def test_filter_and_sort(self, files: dict[str, Path]) -> None:
        names = lambda *more: [row["name"] for row in parsed(files["later"], *more)["table"]]
        assert set(names("--filter", "*.bias")) == {"0.bias", "1.bias", "2.bias"}
        assert names("--sort", "name") == sorted(names())
        assert names("--sort", "size")[:2] == ["0.weight", "2.weight"]
        assert names("--sort", "nan")[0] == "0.weight"
        assert names("--sort", "norm")[0] == "0.weight"

    @pytest.mark.parametrize("columns", [80, 200])
    def test_the_screen_is_not_cut_off(self, files: dict[str, Path], columns: int) -> None:
        for arguments in ([files["later"]], [files["torch"]], [files["ours"], files["later"]]):
            shown = output_of("inspect", *arguments, columns=columns)
            assert "…" not in shown
            assert max(map(len, shown.splitlines())) <= columns
        shown = output_of("inspect", files["later"], columns=columns)
        for text in (
            "AdamW after 5 steps",
            "6 parameters in 2 groups",
            "exp_avg_sq",
            "0.weight",
            "all at step 5",
            "NaN",
        ):
            assert text in shown
        assert "lr follows 0.01 * cosine(100)" in shown

    def test_long_names_break_at_dots(self, tmp_path: Path) -> None:
        name = "encoder.layers.11.attention.self.output_projection.lora_adapters.default.weight"
        save(tmp_path / "run", torch.optim.Adam([(name, torch.zeros(2, 3, requires_grad=True))]))
        shown = output_of("inspect", tmp_path / "run")
        assert "…" not in shown
        assert all(f"{part}" in shown for part in name.split("."))

    def test_several_files_one_after_the_other(self, files: dict[str, Path]) -> None:
        found = parsed(files["ours"], files["torch"], files["named"])
        assert [one["algorithm"] for one in found] == ["AdamW", "AdamW", "Adam"]

    def test_two_files_that_are_the_same(self, files: dict[str, Path]) -> None:
        assert "nothing differs: 18 tensors compared" in output_of("inspect", files["ours"], files["ours"])
        assert parsed(files["ours"], files["ours"])["same"] is True

    def test_two_files_that_differ(self, files: dict[str, Path]) -> None:
        found = parsed(files["ours"], files["later"])
        assert found["facts"] == {"step": [3, 5]}
        assert set(found["changes"]) >= {"step: 3 -> 5"}
        assert len(found["tensors"]) == found["compared"] == 18
        a, b = network(), network()
        one, other = (steprule.AdamW(m, overrides={"*.bias": {"weight_decay": 0.0}}) for m in (a, b))
        load(files["ours"], one, a)
        load(files["later"], other, b)
        by_slot = {(d["name"], d["slot"]): d for d in found["tensors"]}
        apart = (a[2].weight - b[2].weight).double()
        assert by_slot["2.weight", "weight"]["largest"] == pytest.approx(apart.abs().max().item(), rel=1e-6)
        relative = (apart.norm() / a[2].weight.double().norm()).item()
        assert by_slot["2.weight", "weight"]["relative"] == pytest.approx(relative, rel=1e-6)
        assert by_slot["0.weight", "exp_avg"]["largest"] is None

    def test_two_files_with_other_parameters(self, tmp_path: Path) -> None:
        for name, shapes in {"a": {"x": (2,), "y": (3,)}, "b": {"y": (4,), "z": (1,)}}.items():
            named = [(key, torch.zeros(shape, requires_grad=True)) for key, shape in shapes.items()]
            optimizer = torch.optim.SGD(named, lr=0.1 if name == "a" else 0.2, momentum=0.9)
            for _, p in named:
                p.grad = torch.ones_like(p)
            optimizer.step()
            save(tmp_path / name, optimizer)
        found = parsed(tmp_path / "a", tmp_path / "b")
        assert found["only"] == [["x"], ["z"]]
        assert found["changes"] == {"lr: 0.1 -> 0.2": ["y"]}
        assert found["tensors"][0]["shapes"] == [[3], [4]]
        assert "only in a: x" in output_of("inspect", tmp_path / "a", tmp_path / "b")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "empty"),
            (b"hello world, this is text", "not a checkpoint of steprule"),
            (b"PK\x03\x04 but no more", "torch.load cannot read it"),
            (b"\x80\x04K\x01.", "torch.load cannot read it|no state of an optimizer"),
        ],
    )
    def test_a_wrong_file_is_one_line_and_status_2(self, tmp_path: Path, content: bytes, message: str) -> None:
        (tmp_path / "bad").write_bytes(content)
        shown = output_of("inspect", tmp_path / "bad", status=2)
        assert len(shown.splitlines()) == 1
        assert any(part in shown for part in message.split("|"))
        assert "bad" in shown

    def test_a_file_that_is_cut_short_or_missing(self, files: dict[str, Path], tmp_path: Path) -> None:
        for name in ("ours", "torch"):
            (tmp_path / "cut").write_bytes(files[name].read_bytes()[:-200])
            assert len(output_of("inspect", tmp_path / "cut", status=2).splitlines()) == 1
        assert "none: No such file" in output_of("inspect", tmp_path / "none", status=2)
        save(tmp_path / "model", None, network())
        assert "holds no optimizer" in output_of("inspect", tmp_path / "model", status=2)

    def test_no_code_of_a_pickle_runs(self, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> Any:
                return (os.mkdir, (str(tmp_path / "ran"),))

        torch.save({"state": {}, "param_groups": [], "x": Evil()}, tmp_path / "evil")
        assert "weights_only=True" in output_of("inspect", tmp_path / "evil", status=2)
        assert not (tmp_path / "ran").exists()


LARGE = """
import resource, sys, typer
from steprule.cli.inspect import inspect
app = typer.Typer()
app.command()(inspect)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
app([sys.argv[1], "--json"], standalone_mode=False)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, file=sys.stderr)
"""


def test_a_large_file_is_not_loaded_whole(tmp_path: Path) -> None:
    size = 1 << 26
    state = {
        "state": {0: {"exp_avg": torch.empty(size, device="meta")}},
        "param_groups": [{"lr": 0.1, "params": [0], "param_names": ["table"]}],
    }
    header = {"$": "tensor", "name": "optimizer.table.exp_avg"}
    plain = {**state, "state": {"$": "dict", "items": [[0, {"exp_avg": header}]]}}
    with open(tmp_path / "small", "wb") as file:
        write_tensors(file, {"optimizer": plain, "extra": {}}, {"optimizer.table.exp_avg": torch.zeros(1)})
    raw = (tmp_path / "small").read_bytes()
    text = raw[8:-4].rstrip().replace(b"[1]", b"[%d]" % size).replace(b"[0,4]", b"[0,%d]" % (4 * size))
    with open(tmp_path / "large", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + 4 * size)
    command = [sys.executable, "-c", LARGE, str(tmp_path / "large")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["table"][0]["slots"]["exp_avg"] == {"norm": 0.0, "nan": 0, "inf": 0}
    assert int(done.stderr.split()[-1]) < 130  # MB; the file has 256


class TestConvert:
    def test_to_torch_and_back(self, files: dict[str, Path], tmp_path: Path) -> None:
        for form in ("torch", "torch-by-name"):
            target = tmp_path / f"to {form}"
            shown = output_of("convert", files["ours"], target, "--to", form)
            assert "left out: model, extra, random, schedules" in shown
            saved = torch.load(target, weights_only=True)
            assert set(saved) == {"state", "param_groups"}
            assert ("param_names" in saved["param_groups"][0]) == (form == "torch-by-name")
            model = network()
            named = list(model.named_parameters())
            groups = [[pair for pair in named if pair[0].endswith("bias") == bias] for bias in (False, True)]
            torch.optim.AdamW([{"params": group} for group in groups]).load_state_dict(saved)
        output_of("convert", tmp_path / "to torch-by-name", tmp_path / "back", "--to", "checkpoint")
        optimizer = steprule.AdamW(network(), overrides={"*.bias": {"weight_decay": 0.0}})
        load(tmp_path / "back", optimizer)
        assert optimizer.state_dict()["steprule"]["step"] == 3
        found = parsed(files["ours"], tmp_path / "back")
        assert (found["tensors"], found["only"], found["compared"]) == ([], [[], []], 12)

    def test_the_whole_file(self, files: dict[str, Path], tmp_path: Path) -> None:
        output_of("convert", files["ours"], tmp_path / "all", "--to", "torch-by-name", "--whole")
        saved = torch.load(tmp_path / "all", weights_only=True)
        assert set(saved) == {"optimizer", "model", "random", "epoch"}
        output_of("convert", tmp_path / "all", tmp_path / "back", "--to", "checkpoint", "--whole")
        model = network(seed=5)
        optimizer = steprule.AdamW(model, overrides={"*.bias": {"weight_decay": 0.0}})
        extra = load(tmp_path / "back", optimizer, model)
        assert extra["epoch"] == 3
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), saved["model"].values(), strict=True))

    def test_torchs_file_by_position_gets_names(self, files: dict[str, Path], tmp_path: Path) -> None:
        names, target = tmp_path / "names", tmp_path / "target"
        names.write_text("\n".join(name for name, _ in network().named_parameters()) + "\n")
        output_of("convert", files["torch"], target, "--to", "checkpoint", "--names", names)
        model = network()
        optimizer = steprule.AdamW(reversed(list(model.named_parameters())))
        load(target, optimizer)
        saved = torch.load(files["torch"], weights_only=True)
        assert torch.equal(optimizer.state[model[0].weight]["exp_avg"], saved["state"][0]["exp_avg"])

    def test_names_must_be_there_and_as_many_as_parameters(self, files: dict[str, Path], tmp_path: Path) -> None:
        names = tmp_path / "names"
        names.write_text("a\nb\n")
        command = ("convert", files["torch"], tmp_path / "x", "--to", "torch-by-name")
        assert "must have 6 names" in output_of(*command, "--names", names, status=2)
        assert "give them with --names" in output_of(*command, status=2)
        assert not (tmp_path / "x").exists()

    def test_the_algorithm_is_said_where_the_file_does_not(self, files: dict[str, Path], tmp_path: Path) -> None:
        state = torch.load(files["torch"], weights_only=True)
        state["param_groups"][0] = {"params": state["param_groups"][0]["params"], "lr": 0.1}
        torch.save(state, tmp_path / "bare")
        assert "--algorithm" in output_of("convert", tmp_path / "bare", tmp_path / "x", "--to", "checkpoint", status=2)
        output_of("convert", tmp_path / "bare", tmp_path / "x", "--to", "checkpoint", "--algorithm", "AdamW")
        assert parsed(tmp_path / "x")["algorithm"] == "AdamW"
        other = ("convert", files["torch"], tmp_path / "y", "--to", "checkpoint", "--algorithm")
        assert "did you mean 'AdamW'" in output_of(*other, "AdmW", status=2)
        assert "has no algorithm 'Nothing'; there are" in output_of(*other, "Nothing", status=2)
        assert "is not of SGD, which has no amsgrad, betas" in output_of(*other, "SGD", status=2)
        assert not (tmp_path / "y").exists()
        command = ("convert", files["ours"], tmp_path / "y", "--to", "checkpoint", "--algorithm", "SGD")
        assert "is of AdamW, not of SGD" in output_of(*command, status=2)

    def test_nothing_is_overwritten(self, files: dict[str, Path]) -> None:
        before = files["torch"].read_bytes()
        assert "exists" in output_of("convert", files["ours"], files["torch"], "--to", "torch", status=2)
        assert files["torch"].read_bytes() == before

    def test_a_damaged_file_is_refused(self, files: dict[str, Path], tmp_path: Path) -> None:
        raw = files["ours"].read_bytes()
        (tmp_path / "bad").write_bytes(raw[:-50] + bytes([raw[-50] ^ 1]) + raw[-49:])
        assert "checksum" in output_of("convert", tmp_path / "bad", tmp_path / "x", "--to", "torch", status=2)
        assert not (tmp_path / "x").exists()


HARMFUL = "fc\x1b[2J\x1b]0;title\x07\r\nfake [red]row[/red] [/x] \u202eend\ud800"


@pytest.mark.parametrize("where", ["parameter", "slot", "key", "value", "extra", "algorithm", "not there"])
def test_nothing_in_a_file_reaches_the_terminal_as_a_command(tmp_path: Path, where: str) -> None:
    name = HARMFUL if where == "parameter" else "weight"
    weight = torch.ones(3, requires_grad=True)
    cls = type(HARMFUL[:-1], (torch.optim.SGD,), {}) if where == "algorithm" else torch.optim.SGD
    optimizer = cls([(name, weight)], lr=0.1)
    optimizer.state[weight] = {HARMFUL if where == "slot" else "momentum_buffer": torch.ones(3)}
    optimizer.param_groups[0][HARMFUL if where == "key" else "key"] = HARMFUL if where == "value" else 1
    extra: dict[str, Any] = {HARMFUL: 1} if where == "extra" else {}
    save(tmp_path / "a", optimizer, n=1, **extra)
    optimizer.state[weight] = {slot: value + 1 for slot, value in optimizer.state[weight].items()}
    optimizer.param_groups[0]["lr"] = 0.2
    save(tmp_path / "b", optimizer, n=1, **extra)
    outputs = [output_of("inspect", tmp_path / "a"), output_of("inspect", tmp_path / "a", tmp_path / "b")]
    outputs.append(output_of("convert", tmp_path / "a", tmp_path / "c", "--to", "torch", columns=2000))
    for output in outputs:
        assert all(c.isprintable() or c == "\n" for c in output)
    if where != "not there":
        assert any("[2J" in output.replace("\n", "") for output in outputs)
    assert json.loads(output_of("inspect", "--json", tmp_path / "a"))["groups"][0]["parameters"] == [name]


def test_nor_does_an_error_about_it(tmp_path: Path) -> None:
    weight = torch.ones(3, requires_grad=True)
    save(tmp_path / "run", torch.optim.SGD([(HARMFUL, weight)], lr=0.1))
    with pytest.raises(CheckpointError) as error:
        load(tmp_path / "run", torch.optim.SGD([("weight", weight)], lr=0.1))
    lines = str(error.value).split("\n")
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    output_of("inspect", tmp_path / "pipe", status=2)


def test_a_filter_that_matches_nothing_names_the_nearest(files: dict[str, Path]) -> None:
    assert "no parameter is called '0.wieght'; did you mean '0.weight'" in output_of(
        "inspect", files["ours"], "--filter", "0.wieght", status=1
    )


@pytest.mark.parametrize("form", ["ours", "torch's", "torch's old one"])
def test_codes_of_8_bits_are_read_as_the_numbers_that_they_stand_for(tmp_path: Path, form: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(60, 100).t().requires_grad_()  # which lies in memory in another order than it is read
    optimizer = steprule.AdamW([("weight", weight)], state_dtype="8bit")
    for _ in range(2):
        weight.grad = torch.randn(60, 100).t()
        optimizer.step()
    coded, source, plain = optimizer.state_dict(), tmp_path / "8bit", tmp_path / "plain"
    if form == "ours":
        save(source, optimizer)
    else:
        torch.save(coded, source, _use_new_zipfile_serialization=form == "torch's")
    numbers = optimizer.state_dict(full=True)["state"][0]
    assert coded["state"][0]["exp_avg"].dtype == torch.int8
    [row] = parsed(source)["table"]
    assert set(row["slots"]) == {"exp_avg", "exp_avg_sq"}
    assert set(row["values"]) == {"step"}
    for slot, found in row["slots"].items():
        assert found["norm"] == pytest.approx(numbers[slot].norm().item(), rel=1e-6)
    output_of("convert", source, plain, "--to", "torch")
    entry = torch.load(plain, weights_only=True)["state"][0]
    assert entry.keys() == numbers.keys() == {"step", "exp_avg", "exp_avg_sq"}
    assert all(torch.equal(entry[slot], numbers[slot]) for slot in entry)
    found = parsed(source, plain)
    assert (found["tensors"], found["compared"]) == ([], 2)


@pytest.mark.parametrize("master", ["8bit", "16bit"])
def test_corrections_are_read_as_the_weights_that_they_make(tmp_path: Path, master: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(60, 100, bias=False, dtype=torch.bfloat16)
    model.weight.data = torch.randn(60, 100, dtype=torch.bfloat16).t()
    optimizer = steprule.AdamW(model, master=master)
    for _ in range(2):
        model.weight.grad = torch.randn(60, 100, dtype=torch.bfloat16).t()
        optimizer.step()
    source, alone, plain = tmp_path / "with weights", tmp_path / "without", tmp_path / "plain"
    save(source, optimizer, model)
    save(alone, optimizer)
    whole = optimizer.state_dict(full=True)["state"][0]["master"]
    [row] = parsed(source)["table"]
    assert row["slots"]["master"]["norm"] == pytest.approx(whole.norm().item(), rel=1e-6)
    output_of("convert", source, plain, "--to", "torch")
    assert torch.equal(torch.load(plain, weights_only=True)["state"][0]["master"], whole)
    assert "the weights that master corrects" in output_of("convert", alone, tmp_path / "bare", "--to", "torch")
    assert "master" not in torch.load(tmp_path / "bare", weights_only=True)["state"][0]
