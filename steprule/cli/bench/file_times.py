"""Saving and loading beside torch's: the same model and optimizer, in turns, in one process."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from steprule.algorithms.adaptive.adamw import AdamW
from steprule.checkpoint import load, save

__all__ = ["FileResult", "measure_files"]


@dataclass(frozen=True)
class FileResult:
    """What one way of saving or loading took.

    Attributes:
        name: ``"save"`` or ``"load"``.
        megabytes: of the file.
        seconds: of ours, in each turn.
        torchs: of torch's, in each turn.
    """

    name: str
    megabytes: float
    seconds: list[float]
    torchs: list[float]

    @property
    def ratio(self) -> float:
        """The median of the ratios of neighbouring turns, which ran under the same load."""
        return statistics.median(a / b for a, b in zip(self.seconds, self.torchs, strict=True))

    @property
    def line(self) -> str:
        """In words."""
        ours, theirs = statistics.median(self.seconds), statistics.median(self.torchs)
        how = "torch.save" if self.name == "save" else "torch.load and load_state_dict"
        times = f"{ours:.2f} s, {how} {theirs:.2f} s: {self.ratio:.2f} of it"
        return f"steprule.{self.name}, {self.megabytes:,.0f} MB: {times}"


def measure_files(megabytes: int, turns: int) -> Iterator[FileResult]:
    """Saves and loads a model with its AdamW, in turns with torch.

    Args:
        megabytes: about how large the file is.
        turns: how often each is measured, after one turn that is not.
    """
    model = _model(megabytes * 1_000_000 // 12)
    optimizer = AdamW(model.named_parameters())
    optimizer.state.update({p: _state_entry(p) for p in model.parameters()})
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "ours", Path(folder) / "theirs"

        def torch_save() -> None:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, theirs)

        def torch_load() -> None:
            content = torch.load(theirs)
            model.load_state_dict(content["model"])
            torchs.load_state_dict(content["optimizer"])

        pairs: list[tuple[str, Callable[[], Any], Callable[[], Any]]] = [
            ("save", lambda: save(ours, optimizer, model), torch_save),
            ("load", lambda: load(ours, optimizer, model), torch_load),
        ]
        torchs = torch.optim.AdamW(model.named_parameters())
        for name, mine, other in pairs:
            seconds: list[tuple[float, float]] = [(_time(mine), _time(other)) for _ in range(turns + 1)]
            size = ours.stat().st_size / 1_000_000
            yield FileResult(name, size, [a for a, _ in seconds[1:]], [b for _, b in seconds[1:]])


def _model(numbers: int) -> nn.Module:
    """Layers as a transformer has them: a few large matrices, many small vectors."""
    width = 512
    layers = max(numbers // (4 * width * width + 4 * width), 1)
    shapes = [(4 * width, width), (4 * width,)] * layers
    return nn.ParameterList([nn.Parameter(torch.randn(shape)) for shape in shapes])


def _state_entry(p: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"step": torch.tensor(1.0), "exp_avg": torch.randn_like(p), "exp_avg_sq": torch.rand_like(p)}


def _time(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
