"""`steprule bench`: its arithmetic, its contenders and what it writes. No test here depends on a time."""

from __future__ import annotations

import gc
import importlib.metadata
import json
import math
import pickle
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import invoke
from every_algorithm import ALGORITHMS
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import Result as Outcome

import steprule
from steprule.cli import bench as command
from steprule.cli.bench import contenders, growth
from steprule.cli.bench.cases import (
    MEMORY,
    OURS,
    FirstStep,
    Result,
    Settings,
    Sizes,
    Steps,
    Target,
    cases,
    time_first_step,
)
from steprule.cli.bench.contenders import (
    HandwrittenLion,
    clipped,
    in_a_bucket,
    in_place,
    parameters,
    torch_peers,
    traffic,
    with_zero_gradients,
)
from steprule.cli.bench.gpu_cases import gpu_cases
from steprule.cli.bench.table import PEERS, Grid, figures, targets
from steprule.cli.bench.tensor_shapes import SHAPES, total_elements
from steprule.cli.bench.timing import CLOCKS, Pace, Spread, Times, alternate, ratio, spread
from steprule.cli.digits import LeNet
from steprule.kernels.cpu import machine
from steprule.kernels.cpu.kept_code import CACHE

SHORT = Settings(Pace(2, block=1e-4, settle=1e-4))


class FakeTime:
    """Steps that take the time they are said to take, and a clock that knows it."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self.turns: list[tuple[str, int]] = []
        self.slow = 1.0  # what everything takes longer
        self.ran = ""

    def step(self, name: str) -> Callable[[], None]:
        def run() -> None:
            self.ran = name

        return run

    def clock(self, step: Callable[[], object], steps: int) -> float:
        step()
        self.turns.append((self.ran, steps))
        return self.slow * steps * self.seconds[self.ran]


def contend(seconds: dict[str, float], pace: Pace) -> tuple[FakeTime, dict[str, Times]]:
    fake = FakeTime(seconds)
    return fake, alternate({name: fake.step(name) for name in seconds}, pace, fake.clock)


# -- shapes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tensors", "parameters"),
    [
        ("lenet", 10, 62_006),
        ("resnet50", 161, 25_557_032),
        ("gpt2", 146, 124_439_808 - 2 * 768),  # without the norm behind the blocks
        ("gpt2-hidden", 48, 12 * 12 * 768**2),
        ("narrow", 16, 4 * 12 * 256**2),
        ("gpt-1.3b", 2 + 24 * 12, (50257 + 2048) * 2048 + 24 * (12 * 2048**2 + 13 * 2048)),
        ("small", 10_000, 1_000_000),
    ],
)
def test_the_models_have_their_published_sizes(name: str, tensors: int, parameters: int) -> None:
    assert (len(SHAPES[name]), total_elements(SHAPES[name])) == (tensors, parameters)


def test_lenet_is_the_module_of_the_demo() -> None:
    assert SHAPES["lenet"] == [tuple(p.shape) for p in LeNet().parameters()]


# -- taking turns ----------------------------------------------------------------------------------------------------


def test_contenders_take_turns_and_settle_before_each() -> None:
    fake, times = contend({"a": 0.25, "b": 0.0625}, Pace(3, block=0.5, settle=0.25))
    turns = [("a", 1), ("a", 2), ("b", 4), ("b", 8)]  # one settling and one timed block each, as long for both
    assert fake.turns[-12:] == 3 * turns
    assert times == {"a": Times(0.25, (0.25,) * 3), "b": Times(0.0625, (0.0625,) * 3)}


def test_a_long_step_is_a_block_of_its_own() -> None:
    fake, _ = contend({"a": 7.0}, Pace(1, block=0.5, settle=0.25))
    assert fake.turns[-2:] == [("a", 1), ("a", 1)]


def test_the_first_step_is_kept_apart() -> None:
    fake = FakeTime({"a": 1.0})
    fake.slow = 100.0

    def clock(step: Callable[[], object], steps: int) -> float:
        seconds = fake.clock(step, steps)
        fake.slow = 1.0
        return seconds

    assert alternate({"a": fake.step("a")}, Pace(2), clock)["a"] == Times(100.0, (1.0, 1.0))


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_left_as_it_was(enabled: bool) -> None:
    seen = []
    (gc.enable if enabled else gc.disable)()
    try:
        alternate({"a": lambda: seen.append(gc.isenabled())}, Pace(1, 1e-5, 1e-5), lambda step, n: (step(), 1.0)[1])
        assert gc.isenabled() is enabled
    finally:
        gc.enable()
    assert seen[-1] is False


@settings(max_examples=50, deadline=None)
@given(
    st.floats(1e-5, 10),
    st.floats(1e-5, 10),
    st.lists(st.floats(0.5, 20), min_size=1, max_size=30),
)
def test_a_machine_that_drifts_leaves_the_ratio_alone(ours: float, theirs: float, drift: list[float]) -> None:
    found = ratio([ours * d for d in drift], [theirs * d for d in drift], scale=2.0)
    assert [found.low, found.median, found.high] == pytest.approx(3 * [ours / theirs / 2.0])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1e3), min_size=2, max_size=30))
def test_spread_is_median_and_quartiles(values: list[float]) -> None:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    assert vars(spread(values)) == pytest.approx(dict(median=median, low=low, high=high), abs=1e-9)


# -- contenders ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "dtype", "per_parameter", "passes"),
    [
        (steprule.SGD, {}, torch.float32, 12, 1),
        (steprule.SGD, {"momentum": 0.9}, torch.float32, 20, 1),
        (steprule.AdamW, {}, torch.float32, 28, 1),
        (steprule.AdamW, {}, torch.bfloat16, 14, 1),
        (steprule.AdamW, {}, torch.float64, 56, 1),
        (steprule.AdamW, {"clip_norm": 1.0}, torch.float32, 32, 2),
        (HandwrittenLion, {}, torch.float32, 20, 1),
    ],
)
def test_traffic_is_what_the_rule_reads_and_writes(
    kind: Any, options: dict[str, Any], dtype: torch.dtype, per_parameter: int, passes: int
) -> None:
    optimizer = kind(parameters(SHAPES["lenet"], dtype, "cpu"), **options)
    assert traffic(optimizer) is None
    optimizer.step()
    found = traffic(optimizer)
    assert found is not None
    assert (found.bytes, found.passes) == (per_parameter * total_elements(SHAPES["lenet"]), passes)


def test_sparse_gradients_have_no_traffic_of_the_whole() -> None:
    params = parameters([(50, 4)], torch.float32, "cpu", tokens=20)
    assert params[0].grad is not None
    assert params[0].grad.is_sparse
    optimizer = steprule.SparseAdam(params)
    optimizer.step()
    assert traffic(optimizer) is None


def test_parameters_are_the_same_for_every_contender() -> None:
    ours, theirs = (parameters(SHAPES["lenet"], torch.float32, "cpu") for _ in range(2))
    for p, q in zip(ours, theirs, strict=True):
        assert p.is_leaf
        torch.testing.assert_close((p, p.grad), (q, q.grad), rtol=0, atol=0)


@pytest.mark.parametrize("way", ["fused", "foreach", "default"])
def test_a_peer_is_torchs_own(way: str) -> None:
    step: Any = torch_peers(torch.optim.AdamW, lr=0.5)[way](parameters([(3,)], torch.float32, "cpu"))
    assert type(step.__self__) is torch.optim.AdamW
    group = step.__self__.param_groups[0]
    assert {name: group[name] for name in ("lr", "fused", "foreach")} == {
        "lr": 0.5,
        "fused": True if way == "fused" else None,
        "foreach": True if way == "foreach" else None,
    }


def test_peers_are_the_implementations_that_torch_has() -> None:
    assert list(torch_peers(torch.optim.AdamW)) == ["fused", "foreach", "default", "compile"]
    assert list(torch_peers(torch.optim.NAdam)) == ["foreach", "default", "compile"]
    assert list(torch_peers(torch.optim.SparseAdam)) == ["default", "compile"]


def test_clipped_is_clip_grad_norm_and_then_the_step() -> None:
    params, expected = (parameters(SHAPES["lenet"], torch.float32, "cpu") for _ in range(2))
    clipped(torch_peers(torch.optim.SGD)["default"], 0.25)(params)()
    scale = 0.25 / math.sqrt(sum(float(p.grad.square().sum()) for p in expected if p.grad is not None))
    with torch.no_grad():
        for p, q in zip(params, expected, strict=True):
            assert q.grad is not None
            torch.testing.assert_close(p, q - 1e-3 * scale * q.grad)


@pytest.mark.parametrize(
    ("dtype", "count"), [(torch.float32, 18), (torch.float64, 36), (torch.bfloat16, 9), (torch.float16, 9)]
)
def test_in_place_reads_and_writes_as_many_bytes(dtype: torch.dtype, count: int) -> None:
    step = in_place(parameters([(3, 4), (6,)], dtype, "cpu"))
    x: Any = step()
    assert (x.shape, x.dtype) == ((count,), torch.float32)
    pointer = x.data_ptr()
    again: Any = step()
    assert again.data_ptr() == pointer
    assert again.tolist() == [1.0] * count  # never on the way to denormal numbers


def test_the_users_rule_is_lion() -> None:
    torch.manual_seed(0)
    p = torch.randn(7, dtype=torch.float64, requires_grad=True)
    x, m = p.detach().clone(), torch.zeros(7, dtype=torch.float64)
    optimizer = HandwrittenLion([p], lr=0.01, betas=(0.8, 0.95), weight_decay=0.1)
    for _ in range(5):
        g = torch.randn(7, dtype=torch.float64)
        p.grad = g
        optimizer.step()
        x = x - 0.01 * (torch.sign(0.8 * m + 0.2 * g) + 0.1 * x)
        m = 0.95 * m + 0.05 * g
    torch.testing.assert_close(p.detach(), x, rtol=1e-12, atol=1e-12)


# -- cases -----------------------------------------------------------------------------------------------------------


def test_every_algorithm_is_measured() -> None:
    names = [case.name for case in cases()]
    assert len(names) == len(set(names))
    for name in contenders.algorithms():
        assert {n.partition("/")[2] for n in names if n.startswith(f"{name.lower()}/")} > {"first"}, name


def test_every_target_is_against_something_that_is_measured() -> None:
    for case in [*cases(), *gpu_cases()]:
        if isinstance(case, Steps):
            assert {t.against for t in case.targets} <= {*case.peers, "fastest", MEMORY}, case.name
            assert set(case.peers) <= {*PEERS, "one group", "float32"}, (
                case.name
            )  # the last two stand among the targets alone
            assert "fastest" not in [t.against for t in case.targets] or case.peers, case.name


def test_first_steps_can_be_sent_to_another_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CACHE, "")
    for case in cases():
        if isinstance(case, FirstStep):
            assert pickle.loads(pickle.dumps(case.ours)) is case.ours
    machine.forget()
    first = time_first_step(steprule.AdamW, "lenet", None, "cpu", str(tmp_path / "code"))
    assert first.seconds > 0.0
    assert first.peak is None
    assert len(list((tmp_path / "code").iterdir())) == 1


def test_a_case_is_judged_by_its_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[Steps.__module__], "CACHES", 0)
    case = Steps(
        "adamw", "lenet", steprule.AdamW, torch_peers(torch.optim.AdamW), [Target("fastest", 1e9), Target(MEMORY, 0.0)]
    )
    (result,) = case.run(SHORT)
    assert list(result.times) == [OURS, MEMORY, "fused", "foreach", "default"]
    ours = result.times[OURS].rounds
    for name in ("fused", "foreach", "default"):
        assert result.ratios[name] == ratio(ours, result.times[name].rounds)
    assert result.bytes == 28 * result.parameters
    assert result.bandwidth_bytes == 8 * result.parameters
    assert result.ratios[MEMORY] == ratio(ours, result.times[MEMORY].rounds, 28 / 8)
    (_, reached), (_, memory) = result.targets
    assert reached.median == max(result.ratios[name].median for name in ("fused", "foreach", "default"))
    assert memory == result.ratios[MEMORY]
    assert [row[-1] for row in targets([result]).rows] == ["met", "missed"]


def test_an_implementation_that_torch_does_not_have_for_a_device_is_left_out() -> None:
    def nowhere(params: list[Any]) -> Callable[[], object]:
        raise RuntimeError("only on other devices")

    targets_of_all = [Target("fused", 0.0), Target("default", 1e9)]
    case = Steps("sgd", "lenet", steprule.SGD, torch_peers(torch.optim.SGD) | {"fused": nowhere}, targets_of_all)
    (result,) = case.run(SHORT)
    assert list(result.times) == [OURS, MEMORY, "foreach", "default"]
    assert [target.against for target, _ in result.targets] == ["default"]


def test_a_copy_moves_as_many_numbers() -> None:
    copied = contenders.copying(parameters([(3, 4), (6,)], torch.bfloat16, "cpu"))()
    assert (copied.shape, copied.dtype) == ((9,), torch.float32)
    assert copied.tolist() == [1.0] * 9


def test_a_gpu_copies_other_bytes_in_each_turn_so_that_no_cache_holds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "COLD", 1000)
    step = contenders.copying(parameters([(100,)], torch.float32, "cpu"))
    written = [step() for _ in range(6)]
    assert [a is b for a, b in zip(written, written[3:], strict=False)] == [True] * 3
    assert len({y.data_ptr() for y in written}) == 3


def test_the_cases_on_a_gpu_have_names_of_their_own() -> None:
    names = [case.name for case in gpu_cases()]
    assert len(names) == len(set(names))
    assert {
        f"{rule}/{shapes}" for rule in ("adamw", "adamw-bf16", "sgd-momentum") for shapes in ("gpt2", "gpt-1.3b")
    } < {*names}
    assert run("--list", "--device", "cuda").output.split() == names


def test_what_is_made_of_parameters_before_they_are_measured() -> None:
    params = parameters([(3, 5), (7,), (2, 2)], torch.float32, "cpu")
    before = [p.detach().clone() for p in params], [p.grad.clone() for p in params if p.grad is not None]
    bucket = in_a_bucket(params)
    assert all(map(torch.equal, before[0], bucket))
    assert all(torch.equal(g, p.grad) for g, p in zip(before[1], bucket, strict=True) if p.grad is not None)
    assert len({p.untyped_storage().data_ptr() for p in bucket}) == 1
    assert {p.data_ptr() % 16 for p in bucket} - {0}
    assert not any(p.grad.any() for p in with_zero_gradients(bucket) if p.grad is not None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_where_there_is_no_gpu_nothing_is_measured_on_it() -> None:
    outcome = run("--device", "cuda")
    assert outcome.exit_code == 2
    assert "there is no GPU" in outcome.stderr


def test_memory_is_no_measure_of_what_caches_serve() -> None:
    (result,) = Steps("sgd", "lenet", steprule.SGD, {}, [Target(MEMORY, 1.1)]).run(SHORT)
    assert (result.targets, result.ratios) == ([], {})
    assert result.bytes == 12 * result.parameters


def test_memory_is_no_target_of_a_rule_with_two_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[Steps.__module__], "CACHES", 0)
    case = Steps("clip", "lenet", lambda params: steprule.SGD(params, clip_norm=1.0), {}, [Target(MEMORY, 1.1)])
    (result,) = case.run(SHORT)
    assert result.targets == []
    assert result.ratios[MEMORY].median > 0


def test_sizes_compare_the_time_per_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    def clock(step: Callable[[], object], steps: int) -> float:
        step()
        return 0.5 * steps  # whatever the size

    monkeypatch.setitem(CLOCKS, "cpu", clock)
    results = Sizes("adamw", steprule.AdamW, {"1M": 100, "10M": 1000, "30M": 4000}).run(SHORT)
    assert [(r.name, r.parameters) for r in results] == [("adamw/1M", 100), ("adamw/10M", 1000), ("adamw/30M", 4000)]
    assert [[reached.median for _, reached in r.targets] for r in results] == [[10.0], [], [0.25]]


# -- tables ----------------------------------------------------------------------------------------------------------


def long_result() -> Result:
    """A result in which every cell is as long as it gets."""
    times = {name: Times(1.0, (0.1, 0.125, 0.2)) for name in (OURS, *PEERS)}
    ratios = dict.fromkeys(PEERS, Spread(0.01234, 0.012, 0.013))
    missed = (Target(MEMORY, 1.08), Spread(1.09, 1.0, 2.0))
    return Result("sgd-momentum/lenet", 125_000_000, times, 3_500_000_000, 1_000_000_000, ratios, [missed])


@pytest.mark.parametrize(("width", "wide"), [(80, False), (200, True)])
def test_tables_fit_the_terminal(width: int, wide: bool) -> None:
    console = Console(width=width, record=True, file=StringIO())
    for grid in (figures([long_result()], wide), targets([long_result()])):
        console.print(grid.rich())
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert text.count("sgd-momentum/lenet") == 2


def test_figures_are_medians_in_their_units() -> None:
    grid = figures([long_result()], wide=True)
    row = dict(zip(grid.columns, grid.rows[0], strict=True))
    assert row == {
        "case": "sgd-momentum/lenet",
        "ms": "125",
        "B/p": "28",
        "GB/s": "28.0",
        "mul_": "8.00",
        **dict.fromkeys(PEERS, "0.0123 (125 ms)"),
    }


def test_columns_without_a_figure_are_left_out() -> None:
    result = replace(long_result(), ratios={}, bytes=None, bandwidth_bytes=None)
    assert figures([result]).columns == ["case", "ms"]


@pytest.mark.parametrize(("reached", "verdict"), [(1.08, "met"), (1.0801, "missed"), (math.nan, "missed")])
def test_a_target_is_met_up_to_its_limit(reached: float, verdict: str) -> None:
    result = replace(long_result(), targets=[(Target(MEMORY, 1.08), Spread(reached, 0.9, 1.2))])
    assert targets([result]).rows[0][-1] == verdict


# -- the command -----------------------------------------------------------------------------------------------------


def run(*arguments: str) -> Outcome:
    return invoke("bench", *arguments)


def test_the_command_writes_what_it_measured(tmp_path: Path) -> None:
    files = {name: tmp_path / f"bench.{name}" for name in ("json", "markdown", "picture")}
    threads = torch.get_num_threads()
    try:
        options = [word for name, path in files.items() for word in (f"--{name}", str(path))]
        outcome = run("--case", "sgd/lenet", "--quick", "--threads", "1", *options)
    finally:
        torch.set_num_threads(threads)
    assert outcome.exit_code == 0, outcome.output
    assert "sgd/lenet" in outcome.output
    written = json.loads(files["json"].read_text())
    assert (written["threads"], written["torch"], written["pace"]["rounds"]) == (1, torch.__version__, 3)
    (result,) = written["results"]
    ours, theirs = (result["rounds"][name] for name in (OURS, "fused"))
    assert result["ratios"]["fused"]["median"] == statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    assert result["targets"][0]["met"] is (result["ratios"]["fused"]["median"] <= result["targets"][0]["limit"])
    assert "\n| case | ms |" in files["markdown"].read_text()
    assert files["picture"].read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 3


def test_cases_are_listed_and_chosen_by_name() -> None:
    every = run("--list").output.split()
    assert every == [case.name for case in cases()]
    assert run("--list", "--case", "adamw/*").output.split() == [n for n in every if n.startswith("adamw/")]


def test_other_shapes_keep_only_the_targets_they_have() -> None:
    chosen = {case.name: case for case in command.chosen_cases("adamw*", "lenet")}
    kept = ["adamw", "adamw-bf16", "adamw-clip", "adamw-groups", "adamw-schedules", "adamw-experts"]
    kept += ["adamw-state-bf16", "adamw-state-8bit", "adamw-bf16-8bit", "adamw-bf16-stochastic-8bit"]
    kept += ["adamw-bf16-master-8bit", "adamw-bf16-master"]
    assert list(chosen) == [f"{rule}/lenet" for rule in kept]
    assert [t.limit for t in chosen["adamw/lenet"].targets] == [0.4, 0.2]
    assert not chosen["adamw-bf16/lenet"].targets


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--case", "nothing"], "no case is named 'nothing'"),
        (["--shapes", "alexnet"], "there are no shapes 'alexnet'; there are lenet,"),
        (["--device", "abacus"], "--device is one of cpu"),
        (["--json", "/nowhere/at/all.json"], "cannot write /nowhere/at/all.json"),
        (["--picture", "/nowhere/at/all.png"], "cannot write /nowhere/at/all.png"),
    ],
)
def test_bad_input_is_refused_before_anything_is_measured(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "measure", lambda *_: pytest.fail("measured"))
    outcome = run(*arguments)
    assert outcome.exit_code == 2
    assert message in outcome.stderr


class Broken:
    def __init__(self, error: BaseException) -> None:
        self.name, self.error = "broken/case", error

    def run(self, settings: Settings) -> list[Result]:
        raise self.error


@pytest.mark.parametrize(
    ("error", "status", "measured"),
    [(RuntimeError("no such thing"), 1, 2), (ValueError("no such thing"), 1, 2), (KeyboardInterrupt(), 130, 1)],
)
def test_what_was_measured_is_shown_when_a_case_fails(
    error: BaseException, status: int, measured: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []

    def case(name: str) -> Any:
        result = replace(long_result(), name=name)
        return type("Case", (), {"name": name, "run": lambda *_: ran.append(name) or [result]})()

    chosen: Sequence[Any] = [case("one/x"), Broken(error), case("two/x")]
    monkeypatch.setitem(command.CASES, "cpu", lambda: chosen)
    outcome = run()
    assert outcome.exit_code == status
    assert len(ran) == measured
    assert all(name in outcome.output for name in ran)
    assert "broken/case was not measured" in outcome.output


def test_no_case_begins_when_the_time_is_over() -> None:
    ran: list[str] = []

    def case(name: str) -> Any:
        return type("Case", (), {"name": name, "run": lambda *_: ran.append(name) or [long_result()]})()

    results, failed = command.measure([case("one/x"), case("two/x")], SHORT, seconds=-1.0)
    assert (results, ran) == ([], [])
    assert failed == dict.fromkeys(("one/x", "two/x"), "the -1 seconds were over")
    assert len(command.measure([case("one/x")], SHORT, seconds=60.0)[0]) == 1


def test_steprule_need_not_be_installed_to_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert command.about_machine("cpu")["steprule"] == "not installed"


def test_markdown_has_a_line_for_each_row() -> None:
    assert Grid("", ["a", "b", "c"], [["1", "2", "3"], ["4", "5", "6"]]).markdown().splitlines() == [
        "| a | b | c |",
        "|---|---:|---:|",
        "| 1 | 2 | 3 |",
        "| 4 | 5 | 6 |",
    ]


def test_every_algorithm_is_measured_that_steps_without_a_closure() -> None:
    found = contenders.algorithms()
    assert set(found) == set(ALGORITHMS) - {"LBFGS"}


def test_files_are_saved_and_loaded_in_turns_with_torch(tmp_path: Path) -> None:
    result = run("--files", "--size", "13", "--repeats", "2", "--json", str(tmp_path / "times.json"))
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert re.search(r"steprule\.save, \d+ MB: [\d.]+ s, torch\.save [\d.]+ s: [\d.]+ of it", text)
    assert re.search(r"steprule\.load, \d+ MB: [\d.]+ s, torch\.load and load_state_dict [\d.]+ s: [\d.]+ of it", text)
    for found in json.loads((tmp_path / "times.json").read_text())["results"]:
        assert 10 < found["megabytes"] < 16
        pairs = list(zip(found["seconds"], found["torchs"], strict=True))
        assert len(pairs) == 2
        assert found["ratio"] == statistics.median(a / b for a, b in pairs)


def test_growth_is_measured_along_each_axis_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = [replace(axis, values=axis.values[:2]) for axis in growth.axes(quick=True)]
    monkeypatch.setattr(growth, "axes", lambda quick: short)
    monkeypatch.setattr(growth, "CONSTANT", 1000)
    drawn, told, threads = tmp_path / "growth.png", tmp_path / "growth.json", torch.get_num_threads()
    result = run("--growth", "--quick", "--picture", str(drawn), "--json", str(told))
    assert result.exit_code == 0, result.output
    curves = json.loads(told.read_text())["curves"]
    assert [curve["values"] for curve in curves] == [axis.values for axis in short]
    assert all(list(curve["seconds"]) == ["steprule", "fused", "foreach"] for curve in curves)
    assert all(found["median"] > 0 for curve in curves for own in curve["seconds"].values() for found in own)
    assert all(curve["name"] in result.output.replace("\n", " ") for curve in curves[3:])
    assert drawn.read_bytes()[:4] == b"\x89PNG"
    assert torch.get_num_threads() == threads


def test_each_contender_of_growth_is_the_one_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def looked_at(steps: dict[str, Any], *rest: Any) -> dict[str, Times]:
        seen.append({name: step.__self__.param_groups for name, step in steps.items()})
        return {name: Times(1.0, (1.0,)) for name in steps}

    monkeypatch.setattr(growth, "alternate", looked_at)
    growth.measured(replace(growth.axes()[2], values=[3]), Pace(1))
    (found,) = seen
    assert all(len(groups) == 3 for groups in found.values())
    assert all(group["fused"] is True for group in found["fused"])
    assert all(group["foreach"] is True and not group["fused"] for group in found["foreach"])


def test_what_grows_is_what_an_axis_says() -> None:
    size, tensors, groups, threads = growth.axes()
    assert [4 * total_elements(size.shapes(n)) for n in size.values] == size.values == [10**k for k in range(3, 10)]
    assert {total_elements(tensors.shapes(n)) for n in tensors.values} == {growth.CONSTANT}
    assert [len(tensors.shapes(n)) for n in tensors.values] == tensors.values == [10**k for k in range(6)]
    for count in groups.values:
        made = growth.grouped(parameters(groups.shapes(count), torch.float32, "cpu"), groups.groups(count))
        assert len(made) == count
        assert sum(len(group["params"]) for group in made) == growth.GROUPED
    assert threads.values[0] == threads.threads(1) == 1


def test_so_many_tensors_each_in_a_group_of_its_own(tmp_path: Path) -> None:
    told, drawn = tmp_path / "groups.json", tmp_path / "groups.png"
    result = run("--groups", "3", "--quick", "--json", str(told), "--picture", str(drawn))
    assert result.exit_code == 0, result.output
    found = json.loads(told.read_text())["results"]
    assert [own["case"] for own in found] == ["adamw-groups/3", "adamw-schedules/3"]
    assert all(own["parameters"] == 300 and "one group" in own["ratios"] for own in found)
    assert drawn.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--groups", "3", "--case", "adamw/*"], "--groups takes no --case"),
        (["--growth", "--device", "cuda", "--compile"], "--growth takes no --compile, --device"),
        (["--files", "--memory"], "--files takes no --memory"),
        (["--size", "3"], "--size is for --files"),
    ],
)
def test_an_option_that_would_say_nothing_is_refused(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.output
