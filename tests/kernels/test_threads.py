"""Threads: torch's number of them, forks before and after steps, several optimizers at once, Ctrl-C."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tensors import leaf, normal
from torch import Tensor
from torch.utils.data import DataLoader

import steprule
from steprule import AdamW, Lamb
from steprule.kernels.cpu import machine, pool
from steprule.kernels.cpu.pool import ALONE, Pool, run_on_threads

ELEMENTS = 3 * pool.ALONE


@pytest.fixture(autouse=True)
def four_threads() -> None:
    torch.set_num_threads(4)


# made beforehand: in a forked child torch's own threads (OpenMP's) wait for ever
STARTS = [normal(ELEMENTS, seed=seed) for seed in range(4)]
GRADS = [normal(ELEMENTS, seed=1000 + step) for step in range(4)]


def after(steps: int, seed: int = 0, algorithm: Callable[..., Any] = AdamW) -> tuple[Any, Tensor]:
    p = leaf(STARTS[seed].clone())
    optimizer = algorithm([p], lr=0.01, clip_norm=1.0)
    go_on(optimizer, p, range(steps))
    return optimizer, p


def go_on(optimizer: Any, p: Tensor, steps: range) -> None:
    for step in steps:
        p.grad = GRADS[step]
        optimizer.step()


def sample(p: Tensor) -> list[float]:
    numbers: list[float] = p.detach()[::997].tolist()
    return numbers


# How many threads.


class Recorded(Pool):
    """Notes how many helpers each run asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []

    def run(self, kernel: Any, frame: int, helpers: int) -> None:
        self.asked.append(helpers)
        super().run(kernel, frame, helpers)


def test_the_number_of_threads_is_torchs_and_small_steps_take_one(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded()
    monkeypatch.setattr(pool, "pool", recorded)
    for threads in (1, 3, 2):
        torch.set_num_threads(threads)
        p = leaf(normal(ELEMENTS), normal(ELEMENTS, seed=1))
        AdamW([p]).step()
    assert recorded.asked == [2, 1]
    assert len(recorded.threads) == 2
    p = leaf(normal(pool.ALONE - 1), normal(pool.ALONE - 1))
    AdamW([p]).step()
    assert recorded.asked == [2, 1]


def test_every_helper_works_and_the_kernel_has_ended_when_the_run_has() -> None:
    running: list[int] = []
    seen: set[str] = set()
    lock = threading.Lock()

    def kernel(frame: int) -> None:
        with lock:
            running.append(frame)
            seen.add(threading.current_thread().name)
        time.sleep(0.02)
        with lock:
            running.remove(frame)

    mine = Pool()
    for _ in range(5):
        mine.run(kernel, 7, 3)
        assert not running
    assert len(mine.threads) == 3
    assert {"steprule", threading.current_thread().name} <= seen


# Forks.


def in_a_fork(action: Callable[[], Any]) -> Any:
    """What a function returns in a forked child."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on warns of forks with threads
        child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            result = pickle.dumps(action())
        except BaseException as error:
            result = pickle.dumps(repr(error))
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(result)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        result = pipe.read()
    os.waitpid(child, 0)
    return pickle.loads(result)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


@needs_fork
@pytest.mark.parametrize("threads", [1, 4])
def test_a_child_steps_on_and_both_get_the_same_bits(threads: int) -> None:
    _, expected = after(4)
    optimizer, p = after(2)
    start = p.detach().clone()

    def in_child() -> list[float]:
        torch.set_num_threads(threads)
        go_on(optimizer, p, range(2, 4))
        assert len(pool.pool.threads) == threads - 1
        return sample(p)

    assert in_a_fork(in_child) == sample(expected)
    assert torch.equal(p.detach(), start)
    go_on(optimizer, p, range(2, 4))
    assert torch.equal(p, expected)


@needs_fork
def test_a_fork_while_another_thread_compiles() -> None:
    _, expected = after(2)
    optimizer, p = after(1)
    stop = threading.Event()
    errors: list[BaseException] = []

    def busy() -> None:
        small = leaf(torch.ones(3), torch.ones(3))
        try:
            while not stop.is_set():
                machine.forget()
                AdamW([small]).step()
        except BaseException as error:
            errors.append(error)

    def in_child() -> list[float]:
        machine.forget()
        p.grad = None
        optimizer.step()
        go_on(optimizer, p, range(1, 2))
        return sample(p)

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        assert [in_a_fork(in_child) for _ in range(4)] == [sample(expected)] * 4
    finally:
        stop.set()
        thread.join()
    assert not errors


class Rows(torch.utils.data.Dataset[Tensor]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((3,), float(index))


@needs_fork
def test_a_data_loader_with_workers_before_between_and_after_steps() -> None:
    def epoch() -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of more workers than processors, and of forks with threads
            return sum(batch.sum().item() for batch in DataLoader(Rows(), 2, num_workers=2))

    _, expected = after(4)
    assert epoch() == 45
    optimizer, p = after(2)
    assert epoch() == 45
    go_on(optimizer, p, range(2, 4))
    assert epoch() == 45
    assert torch.equal(p, expected)


# Several optimizers at once.


@pytest.mark.parametrize("algorithm", [AdamW, Lamb])
def test_optimizers_in_several_python_threads_get_the_bits_of_one_after_another(algorithm: Any) -> None:
    expected = [after(3, seed, algorithm)[1] for seed in range(4)]
    machine.forget()
    found: dict[int, Tensor] = {}
    ready = threading.Barrier(4)

    def work(seed: int) -> None:
        torch.set_num_threads(4)
        ready.wait()
        found[seed] = after(3, seed, algorithm)[1]

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, p in enumerate(expected):
        assert torch.equal(found[seed], p)


def test_one_compiler_is_made_however_many_threads_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class Slow(machine.Machine):
        def __init__(self) -> None:
            made.append(self)
            time.sleep(0.05)
            super().__init__()

    monkeypatch.setattr(machine, "Machine", Slow)
    machine.forget()
    threads = [threading.Thread(target=after, args=(1, seed)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


# Ctrl-C.

INTERRUPTED = """
import os, signal, threading, time
from steprule.kernels.cpu import pool

begun, ended = [], []

def kernel(frame):
    begun.append(frame)
    if threading.current_thread() is not threading.main_thread():
        if frame == 1:
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)
    ended.append(frame)

first = pool.pool
try:
    first.run(kernel, 1, 1)
except KeyboardInterrupt:
    assert len(ended) == len(begun), "a worker still wrote"
    assert pool.pool is not first
    for round in range(3):
        ended.clear()
        pool.pool.run(kernel, 2, 2)
        assert len(ended) == 3, "a later run came back too early"
    print("waited")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")
def test_ctrl_c_in_a_step_waits_for_the_workers_and_later_steps_are_whole() -> None:
    result = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.stdout.strip() == "waited", result.stderr


def test_an_error_in_a_kernel_leaves_the_next_run_a_pool() -> None:
    def failing(frame: int) -> None:
        if threading.current_thread() is threading.main_thread():
            raise RuntimeError("no")

    before = mine = pool.pool
    with pytest.raises(RuntimeError, match="no"):
        mine.run(failing, 0, 2)
    assert not any(thread.is_alive() for thread in mine.threads)
    assert pool.pool is not before
    calls: list[int] = []
    run_on_threads(calls.append, 3, 100)
    assert calls == [3] * 4


def test_a_launch_that_finds_the_workers_taken_does_all_alone() -> None:
    calls: list[int] = []
    with pool.pool.busy:
        run_on_threads(calls.append, 5, 100)
    assert calls == [5]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class HandlerError(Exception):
    """What a signal's handler raises."""


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "steprule"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_whatever_a_signals_handler_raises_anywhere_leaves_the_pool_whole() -> None:
    def handler(*_: Any) -> None:
        raise HandlerError

    def kernel(frame: int) -> None:
        counts.append(frame)

    counts: list[int] = []
    random, idle = np.random.default_rng(0), len(workers())
    before = signal.signal(signal.SIGALRM, handler)
    broken = 0
    try:
        for _ in range(200):
            try:
                # again later, should the first be raised where Python ignores it, as in a weak reference's callback
                signal.setitimer(signal.ITIMER_REAL, random.uniform(2e-5, 2e-3), 0.5)
                while True:
                    run_on_threads(kernel, 1, 100)
            except HandlerError:
                signal.setitimer(signal.ITIMER_REAL, 0)
                broken += 1
            assert not pool.pool.busy.locked()
            assert len(workers()) <= idle + torch.get_num_threads()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert broken == 200
    for _ in range(20):
        counts.clear()
        run_on_threads(kernel, 2, 100)
        assert counts == [2] * torch.get_num_threads()


def test_where_no_thread_can_be_started_fewer_do_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start
    started: list[Any] = []

    def refuse_the_third(thread: threading.Thread) -> None:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    mine = Pool()
    monkeypatch.setattr(threading.Thread, "start", refuse_the_third)
    calls: list[int] = []
    mine.run(calls.append, 7, 5)
    mine.run(calls.append, 7, 5)
    assert calls == [7] * 6
    monkeypatch.setattr(pool, "pool", Pool())
    started.append(threading.current_thread())  # not even the first
    p = torch.zeros(ALONE, requires_grad=True)
    p.grad = torch.ones(ALONE)
    optimizer = steprule.SGD([p], lr=1.0)
    optimizer.step()
    assert p.unique().tolist() == [-1.0]
    assert optimizer.steps_taken == 1
    mine.end()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_signals_handler_may_fork_while_its_thread_compiles() -> None:
    codes: list[int] = []

    def handler_in_the_compiler() -> None:
        with machine.COMPILING:
            child = os.fork()
            if not child:
                os._exit(5)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    thread = threading.Thread(target=handler_in_the_compiler, daemon=True)
    thread.start()
    thread.join(30)
    assert codes == [5]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_forked_while_a_thread_takes_a_step_can_take_steps() -> None:
    p = torch.zeros(3, requires_grad=True)
    p.grad = torch.ones(3)
    optimizer = steprule.SGD([p], lr=1.0)
    optimizer.step()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with optimizer._workings.planner.lock:
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if not child:
        signal.alarm(20)
        optimizer.step()
        os._exit(int(-p[0].item()))
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this processor can't round subnormal numbers to zero")
def test_workers_round_subnormal_numbers_as_the_caller_does() -> None:
    size = 8 * ALONE
    start = torch.linspace(0.5, 2, size) * torch.finfo(torch.float32).tiny
    found = []
    threads = torch.get_num_threads()
    try:
        for flush in (False, True, False):
            torch.set_flush_denormal(flush)
            for count in (1, 4, 3):
                torch.set_num_threads(count)
                p = start.clone().requires_grad_()
                p.grad = torch.zeros(size)
                optimizer = steprule.SGD([p], lr=0.5, weight_decay=1.0)
                optimizer.step()
                found.append((flush, p.detach()))
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(threads)
    kept, flushed = found[0][1], found[3][1]
    assert not torch.equal(kept, flushed)
    assert bool((flushed[start < torch.finfo(torch.float32).tiny] == 0).all())
    for flush, values in found:
        assert torch.equal(values, flushed if flush else kept)
