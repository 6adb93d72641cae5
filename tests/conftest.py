"""Triton kernels are tested on the GPU where there is one, and in Triton's interpreter where there is none."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in the background

os.environ.pop("COLUMNS", None)  # parallel runs set it, and a console keeps the width that it finds when it is made

# machine code that this or another run of the tests has compiled
os.environ.setdefault("STEPRULE_CACHE", str(Path(__file__).parents[1] / ".pytest_cache" / "code"))

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it when it is imported


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    """A test may change how many threads torch takes; the next one finds as many as before."""
    threads = torch.get_num_threads()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
