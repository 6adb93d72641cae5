"""Checkpoints: what goes in comes out, for this optimizer and this model or not at all."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import re
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comparing import same
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn
from training import train

from steprule.checkpoint import CheckpointError, load, save, write_parts
from steprule.saving import checksum, tensor_file
from steprule.saving.fit import LoadResult
from steprule.saving.header import read_header

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.complex64,
    torch.complex128,
]


WORDS = [torch.arange(6), torch.arange(6) + 1, torch.arange(6)]


class Tied(nn.Module):
    """An embedding whose weight is the head's too, a buffer, and state that is no tensor."""

    def __init__(self, words: int = 7) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, words, bias=False)
        self.head.weight = self.embedding.weight
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.head(self.norm(self.embedding(x)))

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": self.calls}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.calls = state["calls"]


def tied(words: int = 7, algorithm: str = "Adam", seed: int = 0, **hyper: object) -> tuple[Tied, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = Tied(words)
    return model, getattr(torch.optim, algorithm)(model.named_parameters(), **{"lr": 0.01, **hyper})


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> object:
    return copy.deepcopy((model.state_dict(), optimizer.state_dict(), torch.get_rng_state()))


def test_a_run_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    model, optimizer = tied(seed=1)
    train(model, optimizer, WORDS)
    save(tmp_path / "run", optimizer, model, epoch=3)
    train(model, optimizer, WORDS)
    twin, other = tied(seed=2, lr=7.0)
    assert load(tmp_path / "run", other, twin) == {"epoch": 3}
    train(twin, other, WORDS)
    assert same(model.state_dict(), twin.state_dict())
    assert same(optimizer.state_dict(), other.state_dict())


def test_without_a_model_and_without_an_optimizer(tmp_path: Path) -> None:
    model, optimizer = tied()
    train(model, optimizer, WORDS)
    save(tmp_path / "optimizer", optimizer)
    save(tmp_path / "model", None, model)
    save(tmp_path / "both", optimizer, model)
    twin, other = tied(seed=2)
    load(tmp_path / "optimizer", other)
    load(tmp_path / "model", None, twin)
    assert same(snapshot(model, optimizer)[:2], snapshot(twin, other)[:2])
    assert load(tmp_path / "both", None) == {}
    with pytest.raises(CheckpointError, match="optimizer: holds no model; it was saved without one"):
        load(tmp_path / "optimizer", other, twin)
    with pytest.raises(CheckpointError, match="model: holds no optimizer"):
        load(tmp_path / "model", other)


def test_safetensors_reads_the_file(tmp_path: Path) -> None:
    model, optimizer = tied()
    train(model, optimizer, WORDS)
    save(tmp_path / "run", optimizer, model, mean=torch.ones(2, 3, dtype=torch.bfloat16))
    with safe_open(tmp_path / "run", framework="pt") as file:
        assert file.get_tensor("extra.mean").dtype == torch.bfloat16
        assert torch.equal(file.get_tensor("model.norm.weight"), model.norm.weight)
        slot = optimizer.state[model.embedding.weight]["exp_avg"]
        assert torch.equal(file.get_tensor("optimizer.embedding.weight.exp_avg"), slot)
        assert set(file.metadata()) == {"checksum", "version", "steprule"}


def test_shared_tensors_are_stored_once_and_views_alone(tmp_path: Path) -> None:
    model, optimizer = tied()
    base = torch.arange(100_000.0)
    save(tmp_path / "run", optimizer, model, whole=base[:10], again=base[:10], other=base[10:20])
    with safe_open(tmp_path / "run", framework="pt") as file:
        names = set(file.keys())
    assert {"model.embedding.weight", "extra.whole", "extra.other"} <= names
    assert not {"model.head.weight", "extra.again"} & names
    assert os.path.getsize(tmp_path / "run") < 20_000
    extra = load(tmp_path / "run", optimizer, model)
    assert same(dict(extra), {"whole": base[:10], "again": base[:10], "other": base[10:20]})


def test_what_was_shared_is_shared_again_but_not_with_the_optimizer_or_the_model(tmp_path: Path) -> None:
    model, optimizer = tied()
    train(model, optimizer, WORDS)
    slot, weight = optimizer.state[model.norm.weight]["exp_avg"], model.norm.weight.detach()
    save(tmp_path / "run", optimizer, model, slot=slot, again=[slot], weight=weight)
    extra = load(tmp_path / "run", optimizer, model)
    assert extra["slot"] is extra["again"][0]
    now = optimizer.state[model.norm.weight]["exp_avg"]
    assert len({t.data_ptr() for t in (extra["slot"], now, extra["weight"], model.norm.weight)}) == 4
    assert torch.equal(extra["slot"], now)
    assert torch.equal(extra["weight"], model.norm.weight)
    train(model, optimizer, WORDS)
    assert torch.equal(extra["slot"], slot)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_layout(tmp_path: Path, dtype: torch.dtype) -> None:
    whole = torch.arange(24).view(2, 3, 4)
    tensors = {
        "plain": whole.to(dtype),
        "number": torch.tensor(1).to(dtype),
        "empty": torch.zeros(0, 5).to(dtype),
        "turned": whole.to(dtype).transpose(0, 2),
        "every other": whole.to(dtype)[:, ::2],
        "spread": torch.tensor([1]).to(dtype).expand(4, 5),
    }
    if dtype.is_complex:
        tensors["conjugate"] = (tensors["plain"] * 1j).conj()
        tensors["negative"] = tensors["conjugate"].imag
    save(tmp_path / "run", None, tensors=tensors)
    loaded = load(tmp_path / "run", None)["tensors"]
    assert list(loaded) == list(tensors)
    for name, tensor in tensors.items():
        expected = tensor.resolve_conj().resolve_neg().contiguous()
        view = torch.view_as_real if expected.is_complex() else lambda t: t
        assert loaded[name].dtype == dtype or name == "negative"
        assert loaded[name].shape == expected.shape
        assert same(
            view(loaded[name]).contiguous().view(-1).view(torch.uint8), view(expected).view(-1).view(torch.uint8)
        )


TEXT = st.text(max_size=4)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | TEXT
    | st.binary(max_size=4)
    | st.complex_numbers(allow_nan=False)
    | st.builds(
        lambda shape, dtype: torch.arange(math.prod(shape)).view(shape).to(dtype),
        st.lists(st.integers(0, 3), max_size=3),
        st.sampled_from([torch.float32, torch.int64, torch.bool, torch.complex64]),
    )
)
KEYS = TEXT | st.integers() | st.just("$") | st.booleans() | st.tuples(st.integers(), TEXT)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(KEYS, inner),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(values=st.lists(VALUES, max_size=4))
def test_extra_values_come_back_as_they_went(tmp_path_factory: pytest.TempPathFactory, values: list[object]) -> None:
    path = tmp_path_factory.getbasetemp() / "extra"
    save(path, None, values=values)
    assert same(load(path, None)["values"], values)


def test_numbers_of_numpy_become_plain_and_ordered_dictionaries_too(tmp_path: Path) -> None:
    save(tmp_path / "run", None, loss=np.float32(0.5), count=np.int64(3), best=np.float64(2.0), d=OrderedDict(a=1))
    loaded = load(tmp_path / "run", None)
    assert same(dict(loaded), {"loss": 0.5, "count": 3, "best": 2.0, "d": {"a": 1}})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, {"a": object()}], r"extra\.value\.1\.a is a builtins\.object, which a checkpoint cannot hold"),
        (np.zeros(3), r"extra\.value is a numpy\.ndarray"),
        ({1, 2}, r"extra\.value is a builtins\.set"),
        (torch.zeros(3).to_sparse(), r"extra\.value is of layout torch\.sparse_coo"),
        (torch.zeros(3, device="meta"), r"extra\.value is a meta tensor"),
        (torch._efficientzerotensor(4), r"extra\.value is a zero without memory"),
    ],
)
def test_what_cannot_be_held_is_named_and_the_old_file_stays(tmp_path: Path, value: object, message: str) -> None:
    save(tmp_path / "run", None, value=1)
    with pytest.raises(TypeError, match=message):
        save(tmp_path / "run", None, value=value)
    assert load(tmp_path / "run", None) == {"value": 1}
    assert os.listdir(tmp_path) == ["run"]


def test_random_state_is_restored_when_it_was_saved(tmp_path: Path) -> None:
    torch.manual_seed(3)
    save(tmp_path / "with", None, rng=True)
    save(tmp_path / "without", None)
    expected = torch.rand(3)
    load(tmp_path / "with", None)
    assert torch.equal(torch.rand(3), expected)
    before = torch.get_rng_state()
    load(tmp_path / "without", None)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="shapes are checked where there is CUDA")
def test_random_state_of_devices_that_are_not_here_is_said(tmp_path: Path) -> None:
    state = {"cpu": torch.get_rng_state(), "cuda": [torch.zeros(16, dtype=torch.uint8)] * 2}
    write_parts(tmp_path / "run", {"optimizer": None, "model": None, "random": state, "extra": {}})
    with pytest.warns(UserWarning, match="the random state of 2 CUDA devices was saved, and there are 0 here"):
        load(tmp_path / "run", None)


class TestFiles:
    def contents(self, folder: Path) -> dict[str, int]:
        return {path.name: load(path, None)["n"] for path in sorted(folder.iterdir())}

    def test_one_file_is_kept(self, tmp_path: Path) -> None:
        for n in range(3):
            save(tmp_path / "run", None, n=n)
        assert self.contents(tmp_path) == {"run": 2}

    def test_the_last_three_are_kept(self, tmp_path: Path) -> None:
        for n in range(5):
            save(tmp_path / "run", None, keep=3, n=n)
            assert self.contents(tmp_path) == {f"run.{i}".removesuffix(".0"): n - i for i in range(min(n + 1, 3))}

    def test_after_a_kill_between_link_and_rename_none_is_lost(self, tmp_path: Path) -> None:
        for n in range(3):
            save(tmp_path / "run", None, keep=3, n=n)
        os.replace(tmp_path / "run.1", tmp_path / "run.2")
        os.link(tmp_path / "run", tmp_path / "run.1")
        save(tmp_path / "run", None, keep=3, n=3)
        assert self.contents(tmp_path) == {"run": 3, "run.1": 2, "run.2": 1}

    def test_after_every_single_step_of_replacing_there_is_a_whole_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save(tmp_path / "run", None, n=0)
        seen: list[tuple[str, int]] = []

        def watched(name: str) -> Callable[..., object]:
            original = getattr(os, name)

            def call(*arguments: object, **more: object) -> object:
                result = original(*arguments, **more)
                seen.append((name, load(tmp_path / "run", None)["n"]))
                return result

            return call

        for name in ("replace", "rename", "link", "unlink", "remove", "fsync"):
            monkeypatch.setattr(os, name, watched(name))
        for n in range(1, 5):
            save(tmp_path / "run", None, keep=3, n=n)
        assert {"replace", "link", "fsync"} <= {name for name, _ in seen}
        assert [n for _, n in seen] == sorted(n for _, n in seen)

    def test_without_hard_links(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise PermissionError("no links here")

        monkeypatch.setattr(os, "link", refuse)
        for n in range(3):
            save(tmp_path / "run", None, keep=2, n=n)
        assert self.contents(tmp_path) == {"run": 2, "run.1": 1}

    @pytest.mark.parametrize("keep", [0, -1, 1.5, True, "3"])
    def test_keep_is_a_positive_number(self, tmp_path: Path, keep: Any) -> None:
        with pytest.raises(ValueError, match="keep must be a whole number from 1 on"):
            save(tmp_path / "run", None, keep=keep)
        assert not list(tmp_path.iterdir())

    def test_what_a_link_points_to_is_replaced(self, tmp_path: Path) -> None:
        save(tmp_path / "run", None, n=0)
        (tmp_path / "latest").symlink_to("run")
        save(tmp_path / "latest", None, n=1)
        assert (tmp_path / "latest").is_symlink()
        assert self.contents(tmp_path) == {"run": 1, "latest": 1}

    def test_files_of_killed_processes_are_removed_once_they_are_old(self, tmp_path: Path) -> None:
        old, new = f".run.{'a' * 32}.tmp", f".run.{'b' * 32}.tmp"
        others = [
            f".other.{'a' * 32}.tmp",
            ".run.notes.tmp",
            ".run.tmp",
            f".run.{'A' * 32}.tmp",
            f".run.{'a' * 31}.tmp",
        ]
        for name in (old, new, *others):
            (tmp_path / name).write_bytes(b"x")
        (tmp_path / f".run.{'c' * 32}.tmp").symlink_to(others[0])
        for name in (old, *others):
            os.utime(tmp_path / name, (0, 0))
        save(tmp_path / "run", None)
        assert set(os.listdir(tmp_path)) == {new, *others, f".run.{'c' * 32}.tmp", "run"}

    def test_a_failed_write_leaves_nothing_behind(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        save(tmp_path / "run", None, n=0)

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path / "run", None, keep=3, n=1)
        assert self.contents(tmp_path) == {"run": 0}

    def test_a_folder_is_refused_before_anything_is_written(self, tmp_path: Path) -> None:
        with pytest.raises(IsADirectoryError, match="is a folder"):
            save(tmp_path, None)
        with pytest.raises(FileNotFoundError):
            save(tmp_path / "no" / "run", None)
        with pytest.raises(FileNotFoundError):
            load(tmp_path / "run", None)


def test_files_of_version_1_with_a_sha256_are_read(tmp_path: Path) -> None:
    model, optimizer = tied(seed=1)
    train(model, optimizer, WORDS)
    save(tmp_path / "run", optimizer, model, epoch=3)
    raw = (tmp_path / "run").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    metadata = json.loads(raw[8 : 8 + length])["__metadata__"]
    assert (metadata["version"], re.fullmatch("xxh3-128:[0-9a-f]{32}", metadata["checksum"]) is not None) == ("2", True)
    header = raw[8 : 8 + length].replace(metadata["checksum"].encode(), b"sha256:" + b"0" * 64, 1)
    header = header.replace(b'"version":"2"', b'"version":"1"', 1)
    old = len(header).to_bytes(8, "little") + header + raw[8 + length :]
    old = old.replace(b"0" * 64, hashlib.sha256(old).hexdigest().encode(), 1)
    (tmp_path / "old").write_bytes(old)
    twin, other = tied(seed=2)
    assert load(tmp_path / "old", other, twin) == {"epoch": 3}
    assert same(snapshot(model, optimizer)[:2], snapshot(twin, other)[:2])
    (tmp_path / "old").write_bytes(flipped(old))
    with pytest.raises(CheckpointError, match="the checksum of its content"):
        load(tmp_path / "old", other, twin)


@pytest.mark.parametrize("at_a_place", [True, False])
def test_large_tensors_are_written_and_read_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_a_place: bool
) -> None:
    monkeypatch.setattr(tensor_file, "_PIECE", 1000)
    for module in (checksum, tensor_file):
        monkeypatch.setattr(module, "WORTH_A_THREAD", 500)
    monkeypatch.setattr(tensor_file, "_WRITEBACK", 1500)
    if not at_a_place:
        monkeypatch.delattr(os, "preadv", raising=False)
        monkeypatch.delattr(os, "fdatasync", raising=False)
    values = [torch.arange(n, dtype=torch.int32) for n in (0, 1, 100, 124, 125, 126, 250, 251, 7001)]
    save(tmp_path / "run", None, values=values)
    assert same(load(tmp_path / "run", None)["values"], values)
    raw = (tmp_path / "run").read_bytes()
    (tmp_path / "run").write_bytes(flipped(raw))
    with pytest.raises(CheckpointError, match="the checksum of its content"):
        load(tmp_path / "run", None)


def test_a_file_that_becomes_shorter_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "run", None, value=torch.zeros(1000))
    real = tensor_file._read_in_order

    def shortened(*arguments: Any) -> object:
        os.truncate(tmp_path / "run", os.path.getsize(tmp_path / "run") - 10)
        return real(*arguments)

    monkeypatch.setattr(tensor_file, "_read_in_order", shortened)
    with pytest.raises(CheckpointError, match="cut short while it was read"):
        load(tmp_path / "run", None)


def test_a_disk_that_fills_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "run", None, n=0)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_file, "_WRITEBACK", 100)
    monkeypatch.setattr(tensor_file, "_PIECE", 100)
    monkeypatch.setattr(os, "fdatasync", full, raising=False)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path / "run", None, value=torch.zeros(100_000))
    assert os.listdir(tmp_path) == ["run"]
    assert load(tmp_path / "run", None) == {"n": 0}


def edited(change: Callable[[dict[str, object]], object]) -> Callable[[bytes], bytes]:
    """A file whose header was changed by hand."""

    def apply(raw: bytes) -> bytes:
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        change(header)
        text = json.dumps(header, separators=(",", ":")).encode()
        return len(text).to_bytes(8, "little") + text + raw[8 + length :]

    return apply


def flipped(raw: bytes) -> bytes:
    return raw[:-50] + bytes([raw[-50] ^ 1]) + raw[-49:]


NAME = "optimizer.embedding.weight.exp_avg"
DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut short": (lambda raw: raw[:-10], r"cut short: [\d,]+ of [\d,]+ bytes of tensors"),
    "cut in the header": (lambda raw: raw[:200], "cut short: 200 bytes, and the header alone takes"),
    "a flipped bit": (flipped, "damaged: the checksum"),
    "too long": (lambda raw: raw + b"12345", "damaged: 5 bytes after the last tensor"),
    "empty": (lambda raw: b"", "empty"),
    "short": (lambda raw: b"1234567", "not a checkpoint of steprule"),
    "an absurd header": (lambda raw: (1 << 62).to_bytes(8, "little") + raw[8:], r"claims a header of 4,611,\d+"),
    "of torch.save": (lambda raw: b"PK\x03\x04" + raw, "it looks like a file of torch.save"),
    "a pickle": (lambda raw: b"\x80\x04" + raw, "it looks like a pickle"),
    "text": (lambda raw: b"epoch,loss\n1,0.5\n" * 10, "not a checkpoint of steprule$"),
    "broken JSON": (lambda raw: raw[:8] + b"{{" + raw[10:], "damaged: the header is not JSON"),
    "deep JSON": (
        lambda raw: (10**6).to_bytes(8, "little") + b'{"a":' + b"[" * 10**6,
        "damaged: the header is not JSON",
    ),
    "of another program": (edited(lambda h: h.pop("__metadata__")), "a safetensors file, but not a checkpoint"),
    "a later version": (edited(lambda h: h["__metadata__"].update(version="3")), "has version '3', and .* version 2"),
    "a huge shape": (edited(lambda h: h[NAME].update(shape=[1 << 62, 1 << 62])), r"of shape \[\d+, \d+\] takes"),
    "a negative shape": (edited(lambda h: h[NAME].update(shape=[-7, -4])), r"has shape \[-7, -4\]"),
    "a strange dtype": (
        edited(lambda h: h[NAME].update(dtype="F99")),
        "the entry of optimizer.embedding.weight.exp_avg",
    ),
    "overlapping": (edited(lambda h: h[NAME].update(data_offsets=[0, 112])), "damaged: .* begins at byte"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_says_how_and_changes_nothing(tmp_path: Path, kind: str) -> None:
    model, optimizer = tied()
    train(model, optimizer, WORDS)
    save(tmp_path / "run", optimizer, model, rng=True)
    damage, message = DAMAGE[kind]
    (tmp_path / "bad").write_bytes(damage((tmp_path / "run").read_bytes()))
    before = snapshot(model, optimizer)
    with pytest.raises(CheckpointError, match=f"bad: .*{message}"):
        load(tmp_path / "bad", optimizer, model)
    assert same(before, snapshot(model, optimizer))


def test_no_code_of_a_pickle_runs(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({"state": Evil()}, tmp_path / "run")
    model, optimizer = tied()
    with pytest.raises(CheckpointError, match="it looks like a file of torch"):
        load(tmp_path / "run", optimizer, model)
    assert not (tmp_path / "ran").exists()


class TestFit:
    def test_another_algorithm(self, tmp_path: Path) -> None:
        model, optimizer = tied()
        save(tmp_path / "run", optimizer, model)
        other = torch.optim.SGD(model.named_parameters(), lr=0.1)
        with pytest.raises(CheckpointError, match="run: the saved state is of Adam, and this is SGD"):
            load(tmp_path / "run", other, model)

    def test_optimizer_and_model_are_both_checked_before_either_changes(self, tmp_path: Path) -> None:
        model, optimizer = tied(seed=1)
        train(model, optimizer, WORDS)
        save(tmp_path / "run", optimizer, model, rng=True)
        twin, other = tied(words=9, seed=2)
        train(twin, other, WORDS)
        before = snapshot(twin, other)
        with pytest.raises(CheckpointError, match=r"misshapen: head\.weight was saved as \(7, 4\) float32") as error:
            load(tmp_path / "run", other, twin)
        assert "the saved model does not fit this Tied" in str(error.value)
        assert "the saved state does not fit this Adam" in str(error.value)
        assert same(before, snapshot(twin, other))
        fits, unfit = tied(seed=3)
        unfit = torch.optim.Adam([("norm.weight", fits.norm.weight)])
        before = snapshot(fits, unfit)
        with pytest.raises(CheckpointError, match=r"unexpected: embedding\.weight"):
            load(tmp_path / "run", unfit, fits)
        assert same(before, snapshot(fits, unfit))

    def test_a_model_that_refuses_leaves_everything(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model, optimizer = tied(seed=1)
        train(model, optimizer, WORDS)
        save(tmp_path / "run", optimizer, model)
        twin, other = tied(seed=2)
        monkeypatch.setattr(twin, "set_extra_state", lambda state: 1 / 0)
        before = copy.deepcopy(twin.state_dict())
        with pytest.raises(CheckpointError, match="nothing was loaded: ZeroDivisionError") as error:
            load(tmp_path / "run", other, twin)
        assert isinstance(error.value.__cause__, ZeroDivisionError)
        assert not other.state
        assert same(twin.state_dict(), before)

    def test_what_fits_is_loaded_when_not_strict(self, tmp_path: Path) -> None:
        model, optimizer = tied(seed=1)
        train(model, optimizer, WORDS)
        save(tmp_path / "run", optimizer, model)
        twin, other = tied(words=9, seed=2)
        embedding = twin.embedding.weight.detach().clone()
        loaded = load(tmp_path / "run", other, twin, strict=False)
        assert [entry.name for entry in loaded.model.misshapen] == ["embedding.weight", "head.weight"]
        assert loaded.optimizer.misshapen[0].name == "embedding.weight"
        assert torch.equal(twin.embedding.weight, embedding)
        assert torch.equal(twin.norm.weight, model.norm.weight)
        assert other.state[twin.norm.weight]["step"] == 3

    def test_a_vocabulary_grows(self, tmp_path: Path) -> None:
        model, optimizer = tied(seed=1)
        train(model, optimizer, WORDS)
        save(tmp_path / "run", optimizer, model)
        twin, other = tied(words=9, seed=2)
        embedding = twin.embedding.weight.detach().clone()
        loaded = load(tmp_path / "run", other, twin, resize=["embedding.weight", "head.weight"])
        assert (loaded.model, loaded.optimizer) == (LoadResult([], [], []), LoadResult([], [], []))
        assert torch.equal(twin.embedding.weight[:7], model.embedding.weight)
        assert torch.equal(twin.embedding.weight[7:], embedding[7:])
        slot = other.state[twin.embedding.weight]["exp_avg"]
        assert torch.equal(slot[:7], optimizer.state[model.embedding.weight]["exp_avg"])
        assert not slot[7:].any()

    def test_modules_move(self, tmp_path: Path) -> None:
        model, optimizer = tied(seed=1)
        train(model, optimizer, WORDS)
        save(tmp_path / "run", optimizer, model)

        class Outer(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body = Tied()

        outer = Outer()
        other = torch.optim.Adam(outer.named_parameters())
        rename = {
            "embedding": "body.embedding",
            "norm": "body.norm",
            "head": "body.head",
            "_extra_state": "body._extra_state",
        }
        load(tmp_path / "run", other, outer, rename=rename)
        assert same(list(model.state_dict().values()), list(outer.state_dict().values()))
        with pytest.raises(ValueError, match="rename= names nothing in what is loaded: 'nrom'; did you mean 'norm"):
            load(tmp_path / "run", other, outer, rename={**rename, "nrom": "x"})

    def test_a_wrapped_model(self, tmp_path: Path) -> None:
        model, optimizer = tied(seed=1)
        train(model, optimizer, WORDS)
        save(tmp_path / "run", optimizer, model)
        twin, _ = tied(seed=2)
        wrapped = nn.Module()
        wrapped.module = twin
        other = torch.optim.Adam(wrapped.named_parameters())
        load(tmp_path / "run", other, wrapped)
        assert same(model.state_dict(), twin.state_dict())

    def test_hyperparameters(self, tmp_path: Path) -> None:
        model, optimizer = tied()
        save(tmp_path / "run", optimizer, model)
        other = torch.optim.Adam(model.named_parameters(), lr=7.0)
        load(tmp_path / "run", other, hyperparameters="current")
        assert other.param_groups[0]["lr"] == 7.0
        load(tmp_path / "run", other)
        assert other.param_groups[0]["lr"] == 0.01
        with pytest.raises(ValueError, match="hyperparameters must be 'saved' or 'current', got 'both'"):
            load(tmp_path / "run", other, hyperparameters="both")  # type: ignore[arg-type]


def test_the_header_alone_is_read_before_the_size_is_known_to_fit(tmp_path: Path) -> None:
    model, optimizer = tied()
    save(tmp_path / "run", optimizer, model, long=torch.zeros(100_000))
    with open(tmp_path / "run", "rb") as file:
        header = read_header(file, tmp_path / "run")
        assert file.tell() == len(header.raw)
    assert header.tensors["extra.long"].shape == (100_000,)
    assert header.document["extra"]["long"] == {"$": "tensor", "name": "extra.long"}


MEMORY = """
import resource, sys, torch
from steprule.checkpoint import save
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
tensors = [torch.ones(4 << 20) for _ in range(6)] + [torch.ones(4 << 10, 1 << 10).t()]
save(sys.argv[1], None, warm=torch.ones(100))
before = peak()
save(sys.argv[1], None, tensors=tensors)
print(peak() - before)
"""


def test_saving_takes_no_more_memory_than_the_largest_tensor(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY, tmp_path / "run"], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 16 + 4  # MB; the file has 112


AT_EXIT = """
import atexit, sys, torch, steprule
weight = torch.ones(600_000, requires_grad=True)
optimizer = steprule.SGD([weight], lr=0.1)
atexit.register(lambda: print(steprule.load(sys.argv[1], optimizer)["weight"].sum().item()))
atexit.register(lambda: steprule.save(sys.argv[1], optimizer, weight=weight.detach()))
"""


def test_saving_and_loading_while_the_interpreter_ends(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", AT_EXIT, tmp_path / "run"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("600000.0\n", "")
