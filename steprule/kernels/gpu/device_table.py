"""Tables on a device that follow tables on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from steprule.kernels.upload import capturing, upload
from steprule.portability.torch_private import foreach_add, foreach_zero

__all__ = ["DeviceTable", "device_row_chunks", "flat_rows", "keep_alive"]

_kept: list[torch.Tensor] = []


def keep_alive(*tensors: torch.Tensor) -> None:
    """Let tensors that a CUDA graph reads live as long as the process: nothing says when a graph goes."""
    known = set(map(id, _kept))
    _kept.extend(t for t in tensors if id(t) not in known)


class DeviceTable:
    """A table that is written on the host and read on a device.

    Args:
        host: the table; its owner writes to it and calls :meth:`send`.
        device: where it is read.
    """

    def __init__(self, host: npt.NDArray[Any], device: torch.device) -> None:
        self.host = host
        self.device = device
        self.sent = host.copy()
        self.known = host.tobytes()
        self.tensor = upload(host, device)

    def send(self) -> torch.Tensor:
        """The table on the device, as it stands on the host; copied there only if it has changed.

        The copy is a new tensor, so that kernels under way and graphs keep the one they read.
        """
        if capturing(self.device):
            return self.record()
        found = self.host.tobytes()
        if found != self.known:
            self.tensor = upload(self.host, self.device)
            np.copyto(self.sent, self.host)
            self.known = found
        return self.tensor

    def record(self) -> torch.Tensor:
        """What a graph is to read: the table as it was sent, or a copy inside of the graph with what has changed.

        The changes travel as arguments of kernels, by value: memory of the host would have to live and to stay as
        it is as long as the graph.
        """
        keep_alive(self.tensor)
        changed = np.flatnonzero(self.host != self.sent)
        if not changed.size:
            return self.tensor
        fresh = self.tensor.clone()
        flat = fresh.view(-1)
        places = [flat[i] for i in changed.tolist()]
        foreach_zero(places)
        foreach_add(places, self.host.ravel()[changed].tolist())
        return fresh


def flat_rows(indices: torch.Tensor, extents: Sequence[int]) -> torch.Tensor:
    """The numbers of the rows that a sparse tensor holds, from its indices of shape (sparse dimensions, rows)."""
    rows = torch.zeros(indices.shape[1], dtype=torch.int64, device=indices.device)
    for index, extent in zip(indices, extents, strict=True):
        rows = rows * extent + index
    return rows


def device_row_chunks(tensor: int, rows: torch.Tensor, width: int, limit: int) -> torch.Tensor:
    """The chunks of a gradient that holds only some rows, made where the rows are.

    Args:
        tensor: the number of the tensor.
        rows: the rows present, unique; row ``i`` of the gradient belongs to row ``rows[i]``.
        width: elements of a row.
        limit: the number of elements of a chunk at most.

    Returns:
        int64 of shape (chunks, 4): tensor, offset of parameter and state, offset of gradient, count.
    """
    starts = torch.arange(0, width, limit, device=rows.device)
    ranks = torch.arange(len(rows), device=rows.device)
    offsets = rows[:, None] * width + starts
    grad_offsets = ranks[:, None] * width + starts
    counts = (width - starts).clamp(max=limit).expand_as(offsets)
    return torch.stack([torch.full_like(offsets, tensor), offsets, grad_offsets, counts], dim=-1).reshape(-1, 4)
