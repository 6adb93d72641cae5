"""Whatever becomes of a file or of the process that writes it: it loads right, or is refused and nothing changes."""

from __future__ import annotations

import copy
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import same
from hypothesis import given, settings
from hypothesis import strategies as st
from saving.files import sealed, split
from saving.mutations import HOW, JUNK, changed, places
from torch import nn
from training import train

import steprule
from steprule.checkpoint import CheckpointError, load, save
from steprule.saving.encoding import decode


class Run:
    """A small model and its optimizer, trained a little."""

    def __init__(self, seed: int, lr: float) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        first, *rest = self.model.named_parameters()
        self.optimizer = steprule.AdamW([{"params": [first]}, {"params": rest, "lr": lr / 2}], lr=lr)
        self.step()

    def step(self) -> None:
        train(self.model, self.optimizer, [torch.arange(15.0).view(5, 3)])

    def content(self) -> tuple[Any, ...]:
        return self.model.state_dict(), self.optimizer.state_dict(), torch.get_rng_state()


class Saved:
    """A file, what a run is that has loaded it, and another run to load damaged ones into."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "run"
        run = Run(seed=1, lr=0.01)
        save(self.path, run.optimizer, run.model, rng=True, epoch=3, history=[0.5, float("inf"), (1, "x")])
        self.raw = self.path.read_bytes()
        self.content = copy.deepcopy(run.content())
        self.renew()

    def renew(self) -> None:
        self.run = Run(seed=2, lr=0.5)
        self.before = copy.deepcopy(self.run.content())

    def load(self, raw: bytes) -> bool:
        """Whether the file loads; if it does not, nothing has changed."""
        target = self.path.with_name("other")
        target.unlink(missing_ok=True)
        target.write_bytes(raw)
        try:
            load(target, self.run.optimizer, self.run.model)
        except CheckpointError as error:
            refusal = str(error)
        else:
            return True
        assert refusal.startswith(f"{target}: ")
        assert same(self.run.content(), self.before)
        return False


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return Saved(tmp_path_factory.mktemp("damage"))


MUTATIONS: dict[str, Callable[[bytes, int, int, bytes], bytes]] = {
    "flip": lambda raw, i, n, junk: raw[:i] + bytes([raw[i] ^ (1 << n % 8)]) + raw[i + 1 :],
    "cut": lambda raw, i, n, junk: raw[:i],
    "drop": lambda raw, i, n, junk: raw[:i] + raw[i + n :],
    "insert": lambda raw, i, n, junk: raw[:i] + junk + raw[i:],
    "overwrite": lambda raw, i, n, junk: raw[:i] + junk + raw[i + len(junk) :],
    "repeat": lambda raw, i, n, junk: raw[: i + n] + raw[i:],
    "turn": lambda raw, i, n, junk: raw[:i] + raw[i : i + n][::-1] + raw[i + n :],
    "zero": lambda raw, i, n, junk: raw[:i] + bytes(len(raw[i : i + n])) + raw[i + n :],
}


@settings(max_examples=1500, deadline=None)
@given(
    kind=st.sampled_from(list(MUTATIONS)),
    in_header=st.booleans(),
    where=st.integers(0, 10**9),
    size=st.integers(1, 64),
    junk=st.binary(min_size=1, max_size=40),
)
def test_bytes_that_changed_are_noticed(
    saved: Saved, kind: str, in_header: bool, where: int, size: int, junk: bytes
) -> None:
    raw = saved.raw
    length = 8 + int.from_bytes(raw[:8], "little") if in_header else len(raw)
    damaged = MUTATIONS[kind](raw, where % length, size, junk)
    assert saved.load(damaged) == (damaged == raw)
    if damaged == raw:
        assert same(saved.run.content(), saved.content)
        saved.renew()


def test_sealing_gives_a_file_that_loads(saved: Saved) -> None:
    header, document, data = split(saved.raw)
    header["__metadata__"]["steprule"] = json.dumps(document)
    assert saved.load(sealed(header, data))
    assert same(saved.run.content(), saved.content)
    saved.renew()


@pytest.mark.parametrize("cuda", [{}, "", None, 0, [0]], ids=repr)
def test_a_random_state_of_another_kind_is_refused_before_anything_changes(saved: Saved, cuda: Any) -> None:
    header, document, data = split(saved.raw)
    document["random"]["cuda"] = cuda
    header["__metadata__"]["steprule"] = json.dumps(document)
    assert not saved.load(sealed(header, data))


@pytest.mark.filterwarnings("ignore:loading freezes")  # a changed list of what is frozen may be one, too
@settings(max_examples=700, deadline=None)
@given(data=st.data())
def test_a_changed_structure_under_a_right_checksum_is_refused_whole_or_loads(
    saved: Saved, data: st.DataObject
) -> None:
    header, document, tensors = split(saved.raw)
    inner = data.draw(st.booleans())
    tree = document if inner else header
    paths = places(tree)
    tree = changed(
        tree,
        paths[data.draw(st.integers(0, len(paths) - 1))],
        data.draw(st.sampled_from(HOW)),
        data.draw(st.sampled_from(JUNK)),
        paths[data.draw(st.integers(0, len(paths) - 1))],
    )
    if inner:
        header["__metadata__"]["steprule"] = json.dumps(tree)
    if saved.load(sealed(header if inner else tree, tensors)):
        run = saved.run
        saved.renew()
        if not any(group["capturable"] or group["differentiable"] for group in run.optimizer.param_groups):
            run.step()


KILLED = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
from steprule.checkpoint import load, save

folder, rounds, dice = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
torch.set_num_threads(1)
path = folder / "run"
parameters = [torch.zeros(n, requires_grad=True) for n in (1, 1000, 100_000)]
optimizer = torch.optim.SGD([(str(i), p) for i, p in enumerate(parameters)], lr=0.1, momentum=0.9)

def save_from(n, times):
    for i in range(n, n + times):
        for p in parameters:
            optimizer.state[p] = {"momentum_buffer": torch.full_like(p, i)}
        save(path, optimizer, keep=3, n=i)

def loaded(path):
    n = load(path, optimizer)["n"]
    assert all((optimizer.state[p]["momentum_buffer"] == n).all() for p in parameters)
    return n

def forked(n, times):
    child = os.fork()
    if child == 0:
        save_from(n, times)
        os._exit(0)
    return child

begin = time.perf_counter()
os.waitpid(forked(0, 5), 0)
duration = (time.perf_counter() - begin) / 5
last, torn, advanced = 4, 0, 0
for _ in range(rounds):
    child = forked(last + 1, 10**9)
    time.sleep(dice.uniform(0, 3 * duration))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    n = loaded(path)
    earlier = [loaded(p) for i in (1, 2) if (p := folder / f"run.{i}").exists()]
    assert n >= last and sorted([n, *earlier], reverse=True) == [n, *earlier], (last, n, earlier)
    advanced += n > last
    last = n
    leftovers = list(folder.glob(".run.*.tmp"))
    torn += bool(leftovers)
    for leftover in leftovers:
        leftover.unlink()
print(json.dumps({"advanced": advanced, "torn": torn}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_200_random_moments_the_file_is_the_old_one_or_the_new(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), "200", str(random.randrange(10**6))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["advanced"] > 20  # it was saved in between,
    assert seen["torn"] > 20  # and killed in the midst of it


def test_a_whole_number_that_no_float_reaches_is_no_float() -> None:
    with pytest.raises(ValueError, match="cannot make sense of"):
        decode({"$": "float", "value": 10**400}, lambda name, is_complex: None)
