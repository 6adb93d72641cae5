"""How the parameters of a small model may be spread, and the same steps with them whole."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

Placements = Sequence[Any] | None
"""None for a plain tensor, which every rank has."""

R, ROWS, COLUMNS = Replicate(), Shard(0), Shard(1)


@dataclass(frozen=True)
class Layout:
    """Ranks, the mesh they form, and for each parameter its shape and placements."""

    mesh: tuple[int, ...]
    params: tuple[tuple[tuple[int, ...], Placements], ...]

    @property
    def size(self) -> int:
        return torch.Size(self.mesh).numel()


LAYOUTS = {
    "rows": Layout((2,), (((8, 6), [ROWS]), ((6,), [ROWS]), ((4, 8), [ROWS]), ((4,), [ROWS]))),
    "uneven": Layout((4,), (((7, 4), [ROWS]), ((7,), [ROWS]), ((5, 7), [ROWS]), ((3, 5), [ROWS]), ((1,), [ROWS]))),
    "tensor parallel": Layout((2,), (((8, 6), [ROWS]), ((6, 8), [COLUMNS]), ((8,), None), ((6,), [R]), ((8,), [ROWS]))),
    "both": Layout(
        (2, 2),
        (
            ((8, 6), [ROWS, COLUMNS]),
            ((6, 9), [_StridedShard(0, split_factor=2), ROWS]),
            ((7,), [ROWS, R]),
            ((5,), None),
        ),
    ),
    "replicated": Layout((2, 2), (((8, 6), [R, ROWS]), ((3, 4), [R, ROWS]), ((6,), [R, ROWS]))),
    "half": Layout((2,), (((5, 6), [ROWS]), ((6, 4), None), ((4,), [ROWS]), ((3,), None))),
}

MATRICES = {
    "rows": Layout((2,), (((8, 6), [ROWS]), ((6, 10), [ROWS]), ((5, 7), [COLUMNS]), ((3, 3), [R]), ((3, 5), None))),
    "uneven": Layout((4,), (((7, 4), [ROWS]), ((5, 7), [ROWS]), ((3, 5), [ROWS]), ((2, 9), [COLUMNS]))),
    "both": Layout(
        (2, 2),
        (
            ((8, 6), [ROWS, COLUMNS]),
            ((8, 9), [_StridedShard(0, split_factor=2), ROWS]),
            ((9, 5), [ROWS, ROWS]),
            ((7, 4), [ROWS, R]),
        ),
    ),
    "replicated": Layout((2, 2), (((8, 6), [R, ROWS]), ((3, 4), [R, ROWS]), ((5, 5), [R, COLUMNS]))),
}
"""Of matrices alone, for rules that work on them as a whole."""


def values(layout: Layout, seed: int, scale: float = 1.0) -> list[Tensor]:
    """A tensor for each parameter, the same on every rank."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) * scale for shape, _ in layout.params]


@functools.cache
def mesh_of(shape: tuple[int, ...]) -> DeviceMesh:
    """A mesh of all processes, whose process groups are made once."""
    return init_device_mesh("cpu", shape)


def spread(layout: Layout, tensors: Iterable[Tensor]) -> list[Tensor]:
    """Tensors placed as the parameters are."""
    mesh = mesh_of(layout.mesh)
    return [
        tensor.clone() if placements is None else distribute_tensor(tensor, mesh, placements, src_data_rank=None)
        for tensor, (_, placements) in zip(tensors, layout.params, strict=True)
    ]


def whole(tensor: Any) -> Tensor:
    found: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return found.detach()


def train_spread(
    make: Callable[[list[tuple[str, Tensor]]], torch.optim.Optimizer],
    layout: Layout,
    placed: Callable[[Layout, Iterable[Tensor]], list[Tensor]],
    steps: int = 3,
    after: Callable[[torch.optim.Optimizer], object] = lambda optimizer: None,
) -> tuple[list[Tensor], torch.optim.Optimizer]:
    """The parameters after a few steps with gradients of which every rank knows the whole, and the optimizer."""
    params: list[Tensor] = [nn.Parameter(tensor) for tensor in placed(layout, values(layout, 0))]
    optimizer = make([(f"p{i}", p) for i, p in enumerate(params)])
    for step in range(steps):
        gradients = placed(layout, values(layout, step + 1, 10.0**step / 100))
        for p, g in zip(params, gradients, strict=True):
            p.grad = g
        optimizer.step()
        after(optimizer)
    return params, optimizer


def plain(layout: Layout, tensors: Iterable[Tensor]) -> list[Tensor]:
    """The tensors as one process has them."""
    return [tensor.clone() for tensor in tensors]
