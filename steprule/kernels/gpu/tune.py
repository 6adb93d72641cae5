"""Block sizes of GPU kernels: measured once on a device, then remembered on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch

from steprule.replacing import replacing

__all__ = ["DEFAULT", "Block", "cache_file", "fastest", "narrow_block"]


@dataclass(frozen=True)
class Block:
    """How a program of a kernel works on a chunk: elements at a time, and warps that share them."""

    size: int = 1024
    warps: int = 4


DEFAULT = Block()
CANDIDATES = (DEFAULT, Block(1024, 8), Block(2048, 4))
LEAST = 128
"""Elements of a block that keep a warp's vector loads busy."""
WARMUP, REPEATS, TURNS = 3, 20, 3
"""Launches that are not measured, those that are measured together, and how often each candidate has its turn."""
_chosen: dict[str, Block] = {}


def narrow_block(width: int) -> Block:
    """The block for chunks that are rows of so many elements: one that divides them, for then no element is masked
    and loads are vectors; if that is too small, one whose half, of which masked elements are taken, holds them."""
    dividing, holding = width & -width, 1 << (width - 1).bit_length()
    size = min(DEFAULT.size, dividing if dividing >= LEAST else max(64, 2 * holding))
    return Block(size, max(1, size // 256))


def cache_file() -> Path:
    """Where the measured choices stand: ``steprule/blocks.json`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``."""
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "steprule" / "blocks.json"


def fastest(key: str, trial: Callable[[], Callable[[Block], Any]], device: torch.device) -> Block:
    """The block for which some work is fastest, measured with the device's own clock unless it is known already, in
    this process or on disk; the default where there is no memory to measure in.

    Args:
        key: names the device and what runs; choices are remembered under it.
        trial: makes what launches the work with a block; called only if something is to be measured.
        device: a CUDA device.
    """
    if key not in _chosen:
        known = remembered()
        on_disk = [block for block in CANDIDATES if known.get(key) == list(astuple(block))]
        try:
            _chosen[key] = on_disk[0] if on_disk else measured(key, trial(), device)
        except torch.cuda.OutOfMemoryError:
            _chosen[key] = DEFAULT  # in this process; another may have room
    return _chosen[key]


def measured(key: str, run: Callable[[Block], Any], device: torch.device) -> Block:
    """The block with which ``run`` is fastest, which is put on disk."""
    times = [[milliseconds(lambda b=block: run(b), device) for block in CANDIDATES] for _ in range(TURNS)]  # type: ignore[misc]
    best = CANDIDATES[min(range(len(CANDIDATES)), key=lambda k: min(turn[k] for turn in times))]
    remember({**remembered(), key: astuple(best)})
    return best


def milliseconds(run: Callable[[], Any], device: torch.device) -> float:
    """How long one run takes, on the device."""
    stream = torch.cuda.current_stream(device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    for _ in range(WARMUP):
        run()
    begin.record(stream)
    for _ in range(REPEATS):
        run()
    end.record(stream)
    end.synchronize()
    return float(begin.elapsed_time(end)) / REPEATS


def remembered() -> dict[str, Any]:
    """The choices on disk; none where there is no such file, or it can't be read as what it should be."""
    with suppress(OSError, ValueError):
        known = json.loads(cache_file().read_text(encoding="utf-8"))
        return known if isinstance(known, dict) else {}
    return {}


def remember(known: dict[str, Any]) -> None:
    """Put the choices on disk, where it can be written to."""
    path = cache_file()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(json.dumps(known, indent=1, sort_keys=True).encode())
