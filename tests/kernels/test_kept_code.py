"""Machine code on disk: taken where it is whole and nobody else can have put it there, and compiled otherwise."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tensors import normal

import steprule
from steprule.kernels.cpu import kept_code, machine

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="there are no owners of files")


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv(kept_code.CACHE, str(tmp_path / "code"))
    machine.forget()
    yield tmp_path / "code"
    machine.forget()


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sources that are compiled from here on."""
    sources: list[str] = []
    emitted = machine.Machine.emitted
    monkeypatch.setattr(machine.Machine, "emitted", lambda self, s: (sources.append(s), emitted(self, s))[1])
    return sources


def stepped() -> torch.Tensor:
    """A parameter after two steps, as a process that begins takes them."""
    machine.forget()
    p = normal(70, seed=1).requires_grad_()
    optimizer = steprule.AdamW([p], lr=0.1)
    for step in range(2):
        p.grad = normal(70, seed=2 + step)
        optimizer.step()
    return p.detach()


def test_code_is_compiled_once_and_has_the_same_bits(compiled: list[str], place: Path) -> None:
    before = stepped()
    [file] = place.iterdir()
    assert (place.stat().st_mode & 0o777, file.stat().st_mode & 0o777, len(compiled)) == (0o700, 0o600, 1)
    assert torch.equal(stepped(), before)
    assert len(compiled) == 1


def test_another_processor_or_version_has_code_of_its_own(compiled: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    stepped()
    found = machine.machine()
    other = found.key("source")
    monkeypatch.setattr(found, "features", found.features + ",-avx")
    assert found.key("source") != other
    stepped()
    assert len(compiled) == 1  # the machine was made anew, with its own features
    monkeypatch.setattr(machine, "EMITTED", machine.EMITTED + 1)
    stepped()
    assert len(compiled) == 2


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def open_to_others(file: Path) -> None:
    file.chmod(0o622)


def link(file: Path) -> None:
    file.rename(file.parent.parent / "elsewhere")
    file.symlink_to(file.parent.parent / "elsewhere")


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file, 0o600)


@pytest.mark.parametrize("change", [cut, flip, empty, open_to_others, link, pipe])
def test_what_may_be_another_s_is_replaced(change: Any, compiled: list[str], place: Path) -> None:
    before = stepped()
    [file] = place.iterdir()
    change(file)
    assert torch.equal(stepped(), before)
    assert len(compiled) == 2
    assert torch.equal(stepped(), before)
    assert len(compiled) == 2
    assert not file.is_symlink()


def test_code_under_the_name_of_other_code_is_not_taken(place: Path) -> None:
    kept_code.keep_code("ab", b"code")
    (place / "ab").rename(place / "cd")
    assert kept_code.kept("cd") is None
    kept_code.keep_code("cd", b"code")
    assert kept_code.kept("cd") == b"code"


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o711])
def test_a_folder_that_is_open_to_others_is_not_used(mode: int, place: Path) -> None:
    place.mkdir()
    place.chmod(mode)
    stepped()
    assert not list(place.iterdir())


def test_neither_is_what_is_no_folder_or_leads_to_one(place: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir(mode=0o700)
    place.symlink_to(tmp_path / "other")
    stepped()
    assert not list((tmp_path / "other").iterdir())
    place.unlink()
    place.write_text("")
    stepped()
    assert not place.read_text()


def test_nothing_is_kept_where_nothing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(kept_code.CACHE, "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    stepped()
    assert not list(tmp_path.iterdir())
    monkeypatch.delenv(kept_code.CACHE)
    stepped()
    assert len(list((tmp_path / "steprule" / "code").iterdir())) == 1


def test_the_latest_asked_for_stay(place: Path) -> None:
    for i, key in enumerate("abcd"):
        kept_code.keep_code(key, b"code")
        os.utime(place / key, (i, i))
    assert kept_code.kept("a") == b"code"
    kept_code.leave(place, 2)
    assert sorted(file.name for file in place.iterdir()) == ["a", "d"]
