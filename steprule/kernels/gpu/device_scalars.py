"""The scalars of a launch, computed on the device: for CUDA graphs, and wherever the host must not wait to know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from steprule.kernels.entry import Entry, Group
from steprule.kernels.shared_numbers import SharedNumbers, size_along
from steprule.kernels.slots import scalar_dtype
from steprule.kernels.upload import upload
from steprule.rule.program import Program

from .device_table import DeviceTable
from .source import NAMES, compiled, exact, extents, hyper_paths, scalar_source

__all__ = ["DeviceScalars", "lookup"]

BLOCK = 128
"""Tensors that one program of the kernel takes."""


def lookup(group: Group, path: Sequence[Any]) -> Any:
    """A hyperparameter of a group."""
    value: Any = group
    for key in path:
        value = value[key]
    return value


class DeviceScalars:
    """Step counts, scalar slots and scalars of T tensors, where no host has to look at them.

    Args:
        program: whose scalars.
        entries: the T parameters.
        rows: their numbers as the host knows them.
        counters: for ``step`` and each scalar slot, T tensors of one element on the device.
        device: where they live.
    """

    def __init__(
        self,
        program: Program,
        entries: Sequence[Entry],
        rows: Sequence[SharedNumbers],
        counters: Sequence[Sequence[torch.Tensor]],
        device: torch.device,
    ) -> None:
        count = len(entries)
        self.source = scalar_source(program, NAMES[scalar_dtype()])
        self.kernel = compiled(self.source)["advance"]
        self.paths = hyper_paths(program)
        self.used = sorted({e.group for e in entries})
        self.hyper = DeviceTable(np.zeros((len(self.used), len(self.paths))), device)
        places = {group: i for i, group in enumerate(self.used)}
        self.groups = upload(np.asarray([places[e.group] for e in entries], np.int64), device)
        pointers = [[c.data_ptr() for c in line] for line in counters]
        self.counters = upload(np.asarray(pointers, np.int64).reshape(-1, count), device)
        new = np.zeros(count, np.int8)
        new[[i for row in rows if row.is_new for i in row.members]] = 1
        self.fresh = upload(new, device)
        shape = [[size_along(e.shape, e.param.dtype, dim) for e in entries] for dim in extents(program)]
        self.extents = upload(np.asarray(shape, np.float64).reshape(-1, count), device)
        self.table = torch.empty(count, len(program.scalars), dtype=torch.float64, device=device)

    def advance(self, groups: Sequence[Group], found_inf: torch.Tensor | None) -> None:
        """Count a step and compute its scalars; where ``found_inf`` is not zero, the step is not counted."""
        on_device = []
        for i, group in enumerate(self.used):
            for j, path in enumerate(self.paths):
                value = lookup(groups[group], path)
                if isinstance(value, torch.Tensor) and value.device.type == self.table.device.type:
                    on_device.append((i, j, value))
                else:
                    self.hyper.host[i, j] = float(value)
        hyper = self.hyper.send()
        for i, j, value in on_device:
            hyper[i, j].copy_(value.detach().reshape(()), non_blocking=True)
        count = len(self.table)
        tables = (hyper, self.groups, self.counters, self.fresh, self.extents, self.table, found_inf)
        self.kernel[(-(-count // BLOCK),)](*tables, count, BLOCK=BLOCK, **exact())

    def tables(self) -> list[torch.Tensor]:
        """Everything that the kernel reads and writes, but for the counters."""
        return [self.hyper.tensor, self.groups, self.counters, self.fresh, self.extents, self.table]
