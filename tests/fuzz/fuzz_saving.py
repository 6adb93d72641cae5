"""Files and state dictionaries, changed at random until the time is over: they load as they say, or nothing changes.

``make fuzz`` runs it for an hour, ``make fuzz SECONDS=60`` for a minute. What fails prints its seed, and
``make fuzz SEED=...`` runs that case alone.
"""

from __future__ import annotations

import copy
import json
import os
import random
import resource
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, process_time
from typing import Any

import pytest
import torch
from comparing import same
from hypothesis import given, settings
from hypothesis import strategies as st
from saving.files import sealed, split
from torch import nn
from typer.testing import CliRunner

import steprule
from fuzz.mutator import OBJECTS, PLAIN, mutated, mutated_bytes
from steprule.checkpoint import CheckpointError, load, save
from steprule.cli import app
from steprule.schedules import cosine, plateau

SECONDS = float(os.environ.get("SECONDS") or 3600)
SEED = os.environ.get("SEED") or None
TARGETS = 6
LONGEST = 60.0  # seconds of a processor that one case may take
MOST_MEMORY = 500_000_000  # bytes that one case may take

REFUSALS = (ValueError, KeyError, TypeError)
ALGORITHMS = ["AdamW", "SGD", "NAdam", "Rprop", "Lamb", "Adafactor", "Muon", "LBFGS"]


class Run:
    """A small model and its optimizer, trained a little."""

    def __init__(self, algorithm: str, seed: int, lr: Any) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, affine=False), nn.Linear(3, 4, bias=False))
        first, *rest = self.model.named_parameters()
        if algorithm == "Muon":
            first, *rest = [(name, p) for name, p in self.model.named_parameters() if p.ndim == 2]
        groups: Any = [*([first]), *rest] if algorithm == "LBFGS" else [{"params": [first]}, {"params": rest}]
        more = {"momentum": 0.9} if algorithm == "SGD" else {}
        self.optimizer = getattr(steprule, algorithm)(groups, lr=lr, **more)
        self.step()

    def step(self) -> None:
        def closure() -> torch.Tensor:
            self.optimizer.zero_grad()
            loss = self.model(torch.arange(8.0).view(2, 4)).square().sum()
            loss.backward()
            return loss

        self.optimizer.step(closure)

    def content(self) -> Any:
        return copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict(), torch.get_rng_state()))


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(os, "fsync", lambda file: None)  # power does not fail here, and it takes most of the time
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def repeat(name: str, case: Callable[[random.Random], None]) -> None:
    """Runs one case after the other, each with dice of its own, until the time of a target is over."""
    if SEED is not None and not SEED.startswith(f"{name}:"):
        pytest.skip("the seed is of another target")
    begin, base, count = monotonic(), random.SystemRandom().randrange(10**9), 0
    while count == 0 or (SEED is None and monotonic() - begin < SECONDS / TARGETS):
        seed, started, memory = SEED or f"{name}:{base}:{count}", process_time(), most_memory()
        try:
            case(random.Random(seed))
            assert process_time() - started < LONGEST, f"it took {process_time() - started:.0f} s"
            assert most_memory() - memory < MOST_MEMORY, f"it took {most_memory() - memory:,} bytes of memory"
        except BaseException:
            print(f"\nto run this case again: make fuzz SEED={seed}")
            raise
        count += 1
    print(f"\n{name}: {count:,} cases")


def most_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def all_or_nothing(run: Run, refusals: Any, seen: Counter[str]) -> Iterator[None]:
    """What is in the block succeeds, or raises one of these and has changed nothing."""
    before = run.content()
    flags = [(p.requires_grad, p.grad) for p in run.model.parameters()]
    try:
        yield
    except refusals as error:
        refusal: Exception | None = error
    else:
        refusal = None
    seen["loaded" if refusal is None else type(refusal).__name__] += 1
    if refusal is not None:
        assert same(run.content(), before), f"half loaded: {refusal}"
        now = [(p.requires_grad, p.grad) for p in run.model.parameters()]
        assert all(a[0] is b[0] and a[1] is b[1] for a, b in zip(now, flags, strict=True)), refusal


class Runs(dict[str, Run]):
    """A run for each algorithm, made anew when something was loaded into it."""

    def __missing__(self, algorithm: str) -> Run:
        return self.setdefault(algorithm, Run(algorithm, 2, 0.5))

    def use(self, algorithm: str) -> None:
        """After loading, a step, saving and showing work."""
        run = self.pop(algorithm)
        groups = run.optimizer.param_groups
        try:
            if not any(group.get(key) for group in groups for key in ("capturable", "differentiable")):
                run.step()
            run.optimizer.state_dict()
            repr(run.optimizer)
        except Exception as error:
            raise AssertionError(f"loaded, but of no use: {error!r}") from error


def file_of(folder: Path, algorithm: str) -> bytes:
    run = Run(algorithm, 1, 0.01 * cosine(50) if algorithm != "LBFGS" else 0.01)
    if algorithm == "SGD":
        run = Run(algorithm, 1, 0.01 * plateau())
    if algorithm != "LBFGS":
        run.optimizer.freeze("0.bias") if algorithm == "AdamW" else None
    extra: dict[str, Any] = {
        "history": [0.5, float("inf"), (1, "x")],
        "z": torch.zeros(2, dtype=torch.complex64),
        "d": {1: {2: 3}},
    }
    save(folder / "run", run.optimizer, run.model, rng=True, epoch=3, **extra)
    return (folder / "run").read_bytes()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("fuzz")
    return {algorithm: file_of(folder, algorithm) for algorithm in ALGORITHMS}


def hostile(raw: bytes, dice: random.Random) -> bytes:
    """A file whose header or document was changed, under a right checksum."""
    header, document, tensors = split(raw)
    if dice.random() < 0.7:
        header["__metadata__"]["steprule"] = text_of(mutated(document, dice, PLAIN))
    if dice.random() < 0.5:
        header = mutated(header, dice, PLAIN)
    return sealed(json.loads(text_of(header)) if dice.random() < 0.1 else header, tensors)


def text_of(plain: Any) -> str:
    return json.dumps(plain)


def test_bytes(files: dict[str, bytes], tmp_path: Path) -> None:
    seen: Counter[str] = Counter()
    runs = Runs()

    def case(dice: random.Random) -> None:
        algorithm = dice.choice(ALGORITHMS)
        raw = mutated_bytes(files[algorithm], dice)
        (tmp_path / "run").unlink(missing_ok=True)
        (tmp_path / "run").write_bytes(raw)
        with all_or_nothing(runs[algorithm], CheckpointError, seen):
            load(tmp_path / "run", runs[algorithm].optimizer, runs[algorithm].model)
            assert raw == files[algorithm]
            runs.use(algorithm)

    repeat("bytes", case)
    assert seen["CheckpointError"] or SEED


def test_structure_under_a_right_checksum(files: dict[str, bytes], tmp_path: Path) -> None:
    seen: Counter[str] = Counter()
    runs = Runs()

    def case(dice: random.Random) -> None:
        algorithm = dice.choice(ALGORITHMS)
        try:
            raw = hostile(files[algorithm], dice)
        except (RecursionError, ValueError):  # what JSON itself cannot hold
            return
        (tmp_path / "run").unlink(missing_ok=True)
        (tmp_path / "run").write_bytes(raw)
        run = runs[algorithm]
        options: dict[str, Any] = {
            "strict": dice.random() < 0.7,
            "hyperparameters": dice.choice(["saved", "saved", "current"]),
        }
        with all_or_nothing(run, CheckpointError, seen):
            load(tmp_path / "run", run.optimizer, run.model, **options)
            runs.use(algorithm)

    repeat("structure", case)
    assert (seen["CheckpointError"] and seen["loaded"]) or SEED, seen


@pytest.mark.parametrize("form", ["ours", "torch"])
def test_dictionaries(form: str) -> None:
    seen: Counter[str] = Counter()
    saved = {algorithm: Run(algorithm, 1, 0.01).optimizer.state_dict() for algorithm in ALGORITHMS}
    runs = Runs()

    def case(dice: random.Random) -> None:
        algorithm = dice.choice(ALGORITHMS)
        plain = copy.deepcopy(saved[algorithm])
        if form == "torch":
            del plain["steprule"]
            for group in plain["param_groups"]:
                group.pop("param_names", None)
        changed = mutated(plain, dice, [*PLAIN, *OBJECTS])
        run = runs[algorithm]
        options = {"strict": dice.random() < 0.7, "hyperparameters": dice.choice(["saved", "saved", "current"])}
        with all_or_nothing(run, REFUSALS, seen):
            run.optimizer.load_state_dict(changed, **options)
            runs.use(algorithm)

    repeat(f"dictionaries, {form}", case)
    assert len(seen) > 1 or SEED, seen


def commands(path: Path, other: Path) -> list[list[str]]:
    return [
        ["inspect", str(path)],
        ["inspect", "--json", str(path)],
        ["inspect", str(path), str(other)],
        ["convert", str(path), str(path.with_name("out")), "--to", "torch", "--whole"],
        ["convert", str(path), str(path.with_name("out")), "--to", "checkpoint"],
    ]


def test_commands(files: dict[str, bytes], tmp_path: Path) -> None:
    seen: Counter[str] = Counter()
    torch.save({"optimizer": Run("AdamW", 1, 0.01).optimizer.state_dict(), "n": 1}, tmp_path / "torch")
    theirs = (tmp_path / "torch").read_bytes()
    (tmp_path / "other").write_bytes(files["AdamW"])

    def case(dice: random.Random) -> None:
        algorithm = dice.choice(ALGORITHMS)
        ours, kind = files[algorithm], dice.randrange(3)
        try:
            raw = hostile(ours, dice) if kind == 2 else mutated_bytes(theirs if kind else ours, dice)
        except (RecursionError, ValueError):
            return
        for name in ("run", "out"):
            (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / "run").write_bytes(raw)
        result = CliRunner().invoke(app, dice.choice(commands(tmp_path / "run", tmp_path / "other")))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code in (0, 2), result.output
        assert all(c.isprintable() or c == "\n" for c in result.output), ascii(result.output)
        seen[str(result.exit_code)] += 1

    repeat("commands", case)
    assert len(seen) == 2 or SEED, seen


LEAVES: Any = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.binary(max_size=6)
    | st.complex_numbers()
    | st.sampled_from([value for value in OBJECTS if not isinstance(value, nn.UninitializedParameter)])
)
VALUES: Any = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=30,
)


def test_values_that_are_saved_come_back(tmp_path: Path) -> None:
    seen: Counter[str] = Counter()

    def case(dice: random.Random) -> None:

        @settings(max_examples=50, deadline=None, database=None)
        @given(value=VALUES)
        def attempt(value: Any) -> None:
            try:
                save(tmp_path / "run", None, value=value)
            except (TypeError, ValueError):
                seen["refused"] += 1
                return
            seen["saved"] += 1
            assert same(plain(load(tmp_path / "run", None)["value"]), plain(value))

        seeded(attempt, dice.randrange(2**32))

    repeat("values", case)
    assert len(seen) == 2 or SEED, seen


def seeded(test: Callable[[], None], seed: int) -> None:
    vars(test)["_hypothesis_internal_use_seed"] = seed
    test()


def plain(value: Any) -> Any:
    """The value with every tensor as it lies in memory when it is dense."""
    if isinstance(value, torch.Tensor):
        return torch.view_as_real(value.detach().resolve_conj()) if value.is_complex() else value.detach()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    return value
