"""Saving harms nothing but the file it replaces, whoever else saves there."""

from __future__ import annotations

import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep
from typing import Any

import pytest
import torch

import steprule
from steprule.checkpoint import CheckpointError, load, save

posix = pytest.mark.skipif(os.name != "posix", reason="modes, pipes and links of POSIX")


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_the_mode_of_the_old_file_stays(tmp_path: Path, mode: int) -> None:
    for _ in range(2):
        save(tmp_path / "run", None, keep=2)
        os.chmod(tmp_path / "run", mode)
    save(tmp_path / "run", None, keep=2)
    assert [stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("run", "run.1")] == [mode, mode]


@posix
def test_a_new_file_has_the_mode_that_new_files_have(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    save(tmp_path / "run", None)
    assert os.stat(tmp_path / "run").st_mode == os.stat(tmp_path / "other").st_mode


@posix
def test_nobody_can_read_the_file_while_it_is_written_who_could_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "run", None)
    os.chmod(tmp_path / "run", 0o600)
    seen = []

    def watched(file: int) -> None:
        seen.append(stat.S_IMODE(os.fstat(file).st_mode))

    monkeypatch.setattr(os, "fsync", watched)
    save(tmp_path / "run", None)
    assert seen[0] == 0o600


@posix
@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize("kind", ["pipe", "circle", "device", "numbered pipe"])
def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path, kind: str, keep: int) -> None:
    path = tmp_path / "run"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "circle":
        path.symlink_to("run")
    elif kind == "device":
        path.symlink_to("/dev/null")
    elif keep > 1:
        save(path, None)
        os.mkfifo(tmp_path / "run.2")
    else:
        return
    before = {entry.name: entry.stat(follow_symlinks=False).st_mode for entry in os.scandir(tmp_path)}
    with pytest.raises(OSError, match=r"is no regular file|cannot be followed"):
        save(path, None, keep=keep)
    assert {entry.name: entry.stat(follow_symlinks=False).st_mode for entry in os.scandir(tmp_path)} == before
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@posix
def test_a_pipe_or_device_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(CheckpointError, match=f"{path}: not a checkpoint of steprule"):
            load(path, None)


@posix
def test_four_savers_at_once_all_succeed_and_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)  # which is what takes the time
    inside, most, link = [0], [0], os.link

    def watched(*arguments: Any) -> None:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        sleep(0.001)
        link(*arguments)
        inside[0] -= 1

    monkeypatch.setattr(os, "link", watched)
    with ThreadPoolExecutor(4) as savers:
        list(savers.map(lambda n: save(tmp_path / "run", None, keep=3, n=n), range(400)))
    assert most == [1]  # they wait for each other
    assert sorted(os.listdir(tmp_path)) == ["run", "run.1", "run.2"]
    assert len({load(tmp_path / name, None)["n"] for name in os.listdir(tmp_path)}) == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_signals_handler_may_fork_whatever_saving_and_loading_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, codes = threading.Thread.start, []

    def started(thread: threading.Thread) -> None:
        start(thread)
        child = os.fork()  # as a handler would that runs here
        if not child:
            os._exit(5)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    weight = torch.ones(1 << 20, requires_grad=True)
    optimizer = steprule.SGD([weight], lr=0.1, momentum=0.9)
    weight.grad = torch.ones_like(weight)
    optimizer.step()

    def both() -> None:
        steprule.save(tmp_path / "run", optimizer)
        steprule.load(tmp_path / "run", optimizer)
        codes.append(0)

    thread = threading.Thread(target=both, daemon=True)
    start(thread)
    monkeypatch.setattr(threading.Thread, "start", started)
    thread.join(60)
    assert codes[-1:] == [0]
    assert len(codes) > 2
    assert set(codes[:-1]) == {5}
