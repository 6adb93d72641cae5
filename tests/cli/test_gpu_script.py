"""scripts/gpu.sh: its parts, its limits, its report. No GPU is needed: what it runs is replaced, or run on the CPU."""

from __future__ import annotations

import itertools
import json
import os
import re
import runpy
import subprocess
import sys
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import optimizer as torch_optimizer

import steprule
from steprule.cli.bench import about_machine, gpu_training
from steprule.cli.bench.cases import FirstStep, Result, Settings, Steps
from steprule.cli.bench.contenders import parameters
from steprule.cli.bench.gpu_cases import gpu_cases
from steprule.cli.bench.gpu_training import Graphed, Scaled
from steprule.cli.bench.table import as_dictionary
from steprule.cli.bench.table import figures as table_of
from steprule.cli.bench.tensor_shapes import SHAPES
from steprule.cli.bench.timing import CLOCKS, Pace, Times
from steprule.stepping import options as stepping_options

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "gpu.sh"
PAGE = ROOT / "scripts" / "gpu_page.py"
ORDER = ["sync", "tests", "memory", "blocks", "zeros", "rows", "bucket", "scaler", "graph", "first", "muon"]
SHORT = Settings(Pace(2, block=1e-4, settle=1e-4))
PARTS = re.findall(r"^\s*(?:limited|measured) (\w+) (\d+) (.*)$", SCRIPT.read_text(), re.MULTILINE)

FAKE = """#!/bin/sh
# stands for Python: notes how it is called, and does what the test has asked for
echo "$@" >>"$NOTES"
case "$*" in
    scripts/gpu_check.py) echo "a card, torch" ;;
    *gpu_page.py*) exec "$REAL" "$@" ;;
    *tests/gpu*) exit 1 ;;
    *zeros*) exec sleep 60 ;;
    *--json*) while [ "$1" != --json ]; do shift; done; cp "$FIGURES" "$2" ;;
esac
"""


def test_the_parts_stand_in_their_order_and_end_within_eight_minutes() -> None:
    assert [part for part, *_ in PARTS][: len(ORDER)] == ORDER
    assert f"parts=${{*:-{' '.join(ORDER)}}}" in SCRIPT.read_text()
    assert sum(int(seconds) for part, seconds, _ in PARTS if part in ORDER) <= 475


def test_every_part_measures_something_and_what_it_says() -> None:
    names = [case.name for case in gpu_cases()]
    found = {}
    for part, _, rest in PARTS:
        if (quoted := re.fullmatch(r"'(.*)'", rest)) and part != "benchmark":
            found[part] = [name for name in names if fnmatchcase(name, quoted[1])]
    blocks = [f"adamw{kind}-{{}}-{b}/gpt2" for kind in ("", "-bf16") for b in ("1024x4", "1024x8", "2048x4")]
    assert found == {
        "blocks": [name.format("block") for name in blocks],
        "zeros": [name.format("zeros") for name in blocks],
        "rows": ["adafactor/resnet50", "adafactor/wide", "adafactor/row"],
        "bucket": ["adamw-bucket/gpt2", "adamw-bf16-bucket/gpt2"],
        "scaler": ["adamw-scaler/lenet", "adamw-scaler/gpt2"],
        "graph": ["adamw-graph/lenet", "adamw-graph/gpt2"],
        "first": ["adamw/first", "adafactor/first", "muon/first"],
        "muon": ["muon-bf16/gpt2-hidden"],
    }
    assert (SHAPES["wide"], SHAPES["row"]) == ([(768, 50257)], [(1, 10_000_000)])
    muon = next(case for case in gpu_cases() if case.name == "muon-bf16/gpt2-hidden")
    assert isinstance(muon, Steps)
    assert muon.dtype == torch.bfloat16


def test_the_tests_that_it_runs_are_there() -> None:
    for path in re.findall(r"tests/[\w/.]+", SCRIPT.read_text()):
        assert (ROOT / path).exists(), path
    words = re.search(r"waiting='(.*)'", SCRIPT.read_text())[1].split(" or ")  # type: ignore[index]
    tests = re.findall(r"^def (test_\w+)", (ROOT / "tests/gpu/test_cuda.py").read_text(), re.MULTILINE)
    for word in words:
        assert any(word in name for name in tests), word


def figures(case: str, *, peaks: dict[str, int] | None = None) -> dict[str, Any]:
    spread = lambda value: {"median": value, "low": value, "high": value}
    seconds = {"steprule": spread(1e-3), "memory": spread(5e-4), "fused": spread(2e-3)}
    return {
        "case": case,
        "bytes": 28e8,
        "bandwidth_bytes": 8e8,
        "seconds": seconds,
        "ratios": {"fused": spread(0.5)},
        "peaks": peaks or {},
    }


def test_a_report_is_written_though_parts_fail_or_take_too_long(tmp_path: Path) -> None:
    fake, figures_file, notes = tmp_path / "python", tmp_path / "figures.json", tmp_path / "notes"
    fake.write_text(FAKE)
    fake.chmod(0o755)
    about = about_machine("cpu") | {"gpu": "NVIDIA A1"}
    figures_file.write_text(json.dumps({**about, "results": [figures("adamw/gpt2", peaks={"steprule": 2_000_000})]}))
    shorter = tmp_path / "scripts" / "gpu.sh"
    shorter.parent.mkdir()
    shorter.write_text(re.sub(r"^(measured zeros) \d+", r"\1 1", SCRIPT.read_text(), flags=re.MULTILINE))
    for name in ("gpu_page.py", "gpu_check.py"):
        (shorter.parent / name).symlink_to(ROOT / "scripts" / name)
    environment = os.environ | {
        "PYTHON": str(fake),
        "REAL": sys.executable,
        "NOTES": str(notes),
        "FIGURES": str(figures_file),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        ["bash", str(shorter), "results"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    results = tmp_path / "results"
    summary = dict(line.split(": ", 1) for line in (results / "summary.txt").read_text().splitlines())
    assert list(summary) == ORDER
    status = {part: line.split(" after")[0] for part, line in summary.items()}
    assert status.pop("memory") in ("exit status 1", "not run, since compute-sanitizer is not there")
    failed = {"sync": "exit status 1", "tests": "exit status 1", "zeros": "exit status 124"}
    assert status == dict.fromkeys(status, "exit status 0") | failed
    page = (results / "table.md").read_text()
    assert page.startswith("# Step times on NVIDIA A1, torch ")
    assert page.count("| adamw/gpt2 | 1.00 | 2800 | 1.75 | 2.00 | 1400 | 0.500 |  | 2.00 |  |") == 7
    assert all(f"- {part}: {line}" in page for part, line in summary.items())
    called = notes.read_text().splitlines()
    assert [line for line in called if "adamw-graph" in line] == [
        f"benchmarks/step_time.py --device cuda --repeats 5 --seconds 12 --case adamw-graph/* --json {Path('results')}"
        "/graph.json"
    ]


def test_a_page_says_so_where_nothing_was_measured(tmp_path: Path) -> None:
    page = runpy.run_path(str(PAGE))["page"]
    assert "Nothing was measured." in page(tmp_path)
    (tmp_path / "check.txt").write_text("NVIDIA B7, torch 3\n")
    assert page(tmp_path).startswith("# Step times on NVIDIA B7, torch 3\n")
    (tmp_path / "rows.json").write_text('{"results": [')
    assert "- rows.json can't be read: " in page(tmp_path)


# -- the cases of a GPU, on the CPU -----------------------------------------------------------------------------------

SMALL = {
    "lenet": [(6, 3), (5,), (7,), (4, 4)],
    "gpt2": [(9, 5), (5,), (17,), (4, 4), (3,)],
    "gpt2-hidden": [(8, 4), (4, 8)],
    "gpt-1.3b": [(9, 5), (5,)],
    "resnet50": [(4, 3, 3, 3), (4,)],
    "small": [(3,)] * 5,
    "embedding": [(9, 4)],
    "narrow": [(4, 4)],
    "wide": [(3, 20)],
    "row": [(1, 30)],
}
KINDS = (
    *("adamw-block-1024x4/gpt2", "adamw-bf16-block-2048x4/gpt2", "adamw-bf16-zeros-1024x8/gpt2"),
    *("adamw-bucket/gpt2", "adafactor/[rw]*", "adamw-scaler/lenet", "adamw-graph/lenet", "muon-bf16/*"),
)
NAMED = [case for case in gpu_cases() if any(fnmatchcase(case.name, kind) for kind in KINDS)]


def as_on_the_cpu(step: Any, device: str) -> Any:
    for _ in range(4):
        step()
    return step


@pytest.mark.parametrize("case", NAMED, ids=lambda case: case.name)
def test_a_case_of_a_gpu_runs(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steprule.cli.bench.gpu_training.captured", as_on_the_cpu)
    monkeypatch.setattr(torch_optimizer, "_get_capturable_supported_devices", lambda *_: ["cuda", "cpu"])
    monkeypatch.setattr(stepping_options, "capturable_devices", lambda: ["cuda", "cpu"])
    for name, shapes in SMALL.items():
        monkeypatch.setitem(SHAPES, name, shapes)
    (result,) = case.run(SHORT)
    assert result.name == case.name
    assert json.loads(json.dumps(as_dictionary(result)))["case"] == case.name


class HereInstead:
    """A pool of processes that is none."""

    Pool = lambda self, *args, **options: self
    __enter__ = lambda self: self
    __exit__ = lambda self, *error: None

    def starmap(self, function: Any, tasks: Any, chunksize: int) -> list[Any]:
        return list(itertools.starmap(function, tasks))


def test_a_first_step_says_its_peak_of_memory_beside_that_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that is the CPU, whose memory is told by another count."""
    peaks, cases = iter([7_000_000, 5_000_000]), sys.modules[FirstStep.__module__]
    monkeypatch.setattr(cases, "get_context", lambda kind: HereInstead())
    monkeypatch.setattr(cases, "parameters", lambda shapes, dtype, device, tokens: parameters(shapes, dtype, "cpu"))
    monkeypatch.setitem(cases.CLOCKS, "cuda", CLOCKS["cpu"])
    monkeypatch.setitem(SHAPES, "gpt2", SMALL["gpt2"])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 1_000_000)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: next(peaks))
    monkeypatch.setenv("TRITON_CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv(cases.CACHE, "")
    case = next(case for case in gpu_cases() if case.name == "adamw/first")
    (result,) = case.run(Settings(Pace(2), "cuda"))
    assert result.peaks == {"steprule": 6_000_000, "fused": 4_000_000}
    assert len(result.times["steprule"].rounds) == 1


@pytest.mark.parametrize("kind", [Scaled, Graphed])
def test_steps_that_differ_from_those_of_torch_are_not_timed(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steprule.cli.bench.gpu_training.captured", as_on_the_cpu)
    monkeypatch.setitem(SHAPES, "lenet", SMALL["lenet"])
    theirs: Any = lambda params, *rate: torch.optim.AdamW(params)
    other: Any = lambda params, *rate: steprule.AdamW(params, weight_decay=0.5)
    case = kind("adamw", "lenet", other, {"fused": theirs})
    with pytest.raises(AssertionError, match=r"parameter 0 is .* from that of torch's fused"):
        case.run(SHORT)


def test_a_scaled_step_leaves_out_every_fourth_and_lets_parameters_join() -> None:
    params = [torch.ones(3, requires_grad=True) for _ in range(5)]
    for p in params:
        p.grad = torch.ones(3)
    made: list[steprule.Optimizer] = []
    step = gpu_training.behind_a_scaler(lambda own: made.append(steprule.SGD(own, lr=1.0)) or made[0], params, "cpu")
    # of ten steps the first, fifth and ninth were left out; the first and the last parameter came with the fifth
    assert [p.tolist()[0] for p in params] == [1 - 4.0, 1 - 7.0, 1 - 7.0, 1 - 7.0, 1 - 4.0]
    for _ in range(4):
        step()
    assert [p.tolist()[0] for p in params] == [1 - 7.0, 1 - 10.0, 1 - 10.0, 1 - 10.0, 1 - 7.0]


def test_the_memory_of_a_first_step_stands_in_the_table() -> None:
    result = Result("adamw/first", 1, {"steprule": Times(1.0, (1.0,))}, peaks={"steprule": 3_000_000, "fused": 10**6})
    grid = table_of([result])
    assert grid.columns == ["case", "ms", "peak MB", "fused's"]
    assert grid.rows == [["adamw/first", "1000", "3.00", "1.00"]]
    assert asdict(result)["peaks"] == as_dictionary(result)["peaks"]
