"""A DTensor as the kernels see it: this process's part of it, a plain tensor."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from steprule.portability.torch_private import global_offset
from steprule.rule.expression import Level
from steprule.rule.slot import Slot

__all__ = ["Axis", "Share", "axis_of", "cut", "is_spread", "joined_as", "look_up", "share_of"]


@dataclass(frozen=True)
class Axis:
    """The processes along one dimension of a mesh: those among which a tensor is cut.

    Attributes:
        name: that of the process group.
        size: how many processes there are.
        rank: which of them this one is.
        group: the process group.
    """

    name: str
    size: int
    rank: int
    group: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Axis) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)


def axis_of(mesh: Any, dim: int) -> Axis:
    group = mesh.get_group(dim)
    return Axis(group.group_name, mesh.size(dim), mesh.get_local_rank(dim), group)


def is_cut(placement: Any) -> bool:
    """Whether a placement gives each process another part: as Shard does, and FSDP's Shard within tensor parallel."""
    return not placement.is_replicate() and not placement.is_partial()


class Share:
    """This process's part of a parameter that is a DTensor; see :class:`steprule.kernels.part.Part`.

    Args:
        whole: the parameter.

    Attributes:
        cuts: for each dimension of the mesh along which it is cut, the tensor's dimension and the processes.
    """

    def __init__(self, whole: Any) -> None:
        self.whole: Any = whole
        self.spec = whole._spec
        self.param: torch.Tensor = whole._local_tensor
        self.grad: torch.Tensor | None = None
        self.shape = tuple(whole.shape)
        mesh, placements = whole.device_mesh, whole.placements
        found = [(p.dim, axis_of(mesh, i)) for i, p in enumerate(placements) if is_cut(p) and mesh.size(i) > 1]
        self.cuts: list[tuple[int, Axis]] = found
        self.axes: tuple[Any, ...] = tuple(axis for _, axis in found)
        self.where = words(mesh, placements)
        self.partial = any(p.is_partial() for p in placements)

    # -- whole matrices ------------------------------------------------------------------------------------------

    def check_matrix(self, program: str, name: str) -> None:
        """Refuse a parameter of which no whole matrix can be put together.

        Raises:
            RuntimeError: naming it.
        """
        if len(self.shape) < 2 or self.param.is_complex():
            raise RuntimeError(
                f"{program} works on whole real matrices, but parameter {name} is {self.param.dtype} of shape "
                f"{self.shape}; give it to another optimizer"
            )
        if any(dim > 1 for dim, _ in self.cuts) or self.extents(0, None) != (
            self.param.shape[0],
            math.prod(self.param.shape[1:]),
        ):
            raise RuntimeError(
                f"{program} works on whole matrices, which can't be put together of the parts of parameter {name}, "
                f"{self.where}; cut it along its first or second dimension, evenly where it is cut twice along one"
            )

    @functools.cached_property
    def way(self) -> list[tuple[Axis, int | None]]:
        """The dimensions of the mesh in the order in which a matrix is put together, each with the side along which it
        is cut there: first those that hold copies, then the cuts from the last to the first that was made."""
        mesh, placements = self.whole.device_mesh, self.whole.placements
        several = [i for i in range(mesh.ndim) if mesh.size(i) > 1]
        copies = [(axis_of(mesh, i), None) for i in several if not is_cut(placements[i])]
        cuts = [i for i in several if is_cut(placements[i])]
        made = cut_order(cuts, placements)
        return [*copies, *((axis_of(mesh, i), min(placements[i].dim, 1)) for i in made[::-1])]

    def extents(self, leg: int, place: int | None) -> tuple[int, int]:
        """The shape of the piece of its matrix that a process holds before a leg of the way.

        Args:
            leg: how many legs are done.
            place: which process along this leg; None for this one.
        """
        rows, columns, rest = self.shape[0], self.shape[1], math.prod(self.shape[2:])
        sizes = [rows, columns]
        for number in range(len(self.way) - 1, leg - 1, -1):
            axis, side = self.way[number]
            if side is not None:
                at = place if number == leg and place is not None else axis.rank
                whole = -(-sizes[side] // axis.size)
                sizes[side] = max(0, min(whole, sizes[side] - at * whole))
        return sizes[0], sizes[1] * rest

    # -- rows and columns ----------------------------------------------------------------------------------------

    def cut_at(self, dim: int) -> tuple[Axis, ...]:
        """The processes among which a dimension, counted from the last, is cut."""
        return tuple(axis for cut, axis in self.cuts if cut == len(self.shape) + dim)

    def across(self, level: Level) -> tuple[Axis, ...]:
        """The processes that have pieces of a row, or of a column."""
        return self.cut_at(-1 if level is Level.ROW else -2)

    def along(self, level: Level, into: Level) -> tuple[Axis, ...]:
        """The processes that have other rows, or other columns, of the same matrices or channels."""
        if into is Level.CHANNEL:
            return tuple(axis for cut, axis in self.cuts if 0 < cut < len(self.shape) - 1)
        return self.cut_at(-2 if level is Level.ROW else -1)

    def lines(self, level: Level) -> int:
        """How many rows, columns, matrices or channels, or pieces of them, are here."""
        shape = self.param.shape
        matrices = math.prod(shape[:-2])
        own = {Level.ROW: matrices * shape[-2], Level.COLUMN: matrices * shape[-1], Level.CHANNEL: shape[0]}
        return own.get(level, matrices)

    # -- state ---------------------------------------------------------------------------------------------------
    @property
    def origin(self) -> int | None:
        """Where in the memory of the whole what is here begins; None where it is not one piece of it."""
        if any(dim != 0 for dim, _ in self.cuts) or not self.param.is_contiguous():
            return None if self.cuts else 0
        placements: Any = self.whole.placements
        first = global_offset(self.whole.shape, self.whole.device_mesh, placements)
        return first[0] * math.prod(self.shape[1:]) if self.shape else 0

    def expected(self, slot: Slot) -> tuple[tuple[int, ...], list[Any]]:
        """The whole shape of a slot, and its placements: those of the parameter, but that of a dimension in which the
        slot has a single number every process has all."""
        from torch.distributed.tensor import Replicate

        if slot.kind == "scalar":
            return (), [Replicate() for _ in self.whole.placements]
        shape, last = slot.shape(self.shape), len(self.shape) - 1
        single = {"row": [last], "column": [last - 1], "channel": range(1, last + 1)}.get(slot.kind, ())
        placements = [Replicate() if is_cut(p) and p.dim in single else p for p in self.whole.placements]
        return shape, placements

    def held(self, value: torch.Tensor, slot: Slot, name: str) -> torch.Tensor:
        found: Any = value
        shape, placements = self.expected(slot)
        if tuple(value.shape) == shape and hasattr(value, "device_mesh"):
            if found.device_mesh == self.whole.device_mesh and list(found.placements) == placements:
                local: torch.Tensor = found._local_tensor
                return local
        elif slot.kind == "scalar" and not hasattr(value, "device_mesh"):
            return value
        elif tuple(value.shape) == shape:
            return cut(value.detach(), self.whole.device_mesh, placements).clone()
        spread = words(found.device_mesh, found.placements) if hasattr(value, "device_mesh") else "a plain tensor"
        raise RuntimeError(
            f"state {slot.name!r} of parameter {name} is {spread} of shape {tuple(value.shape)}, but the parameter is "
            f"{self.where}; replace it with a DTensor of shape {shape} placed {tuple(placements)}, or delete it to "
            "start anew"
        )

    def joined(self, tensor: torch.Tensor, slot: Slot, known: Any) -> torch.Tensor:
        if hasattr(known, "device_mesh") and known._local_tensor is tensor:
            same: torch.Tensor = known
            return same
        return joined_as(tensor, self.whole, *self.expected(slot))


def joined_as(local: torch.Tensor, like: Any, shape: tuple[int, ...], placements: Sequence[Any]) -> torch.Tensor:
    """A DTensor over the mesh of another one, of which what is here is ``local``."""
    from torch.distributed.tensor import DTensor

    same = shape == tuple(like.shape)
    stride = like.stride() if same else torch.empty(shape, device="meta").stride()
    size = torch.Size(shape)
    with torch.no_grad():
        return DTensor.from_local(
            local, like.device_mesh, placements, run_check=False, shape=size, stride=tuple(stride)
        )


def cut(value: torch.Tensor, mesh: Any, placements: Sequence[Any]) -> torch.Tensor:
    """A view of what of a whole tensor belongs to this process; nothing is exchanged, and nothing else is read."""
    cuts = [i for i, placement in enumerate(placements) if is_cut(placement)]
    for i in cut_order(cuts, placements):
        dim, size = placements[i].dim, value.shape[placements[i].dim]
        each = -(-size // mesh.size(i))
        start = min(mesh.get_local_rank(i) * each, size)
        value = value.narrow(dim, start, min(each, size - start))
    return value


def cut_order(cuts: Sequence[int], placements: Sequence[Any]) -> list[int]:
    """The dimensions of a mesh along which a tensor is cut, in the order in which the cuts were made: what FSDP cuts of
    what tensor parallel has cut already stands before it in the mesh."""
    late = [i for i in cuts if hasattr(placements[i], "split_factor")]
    return [i for i in cuts if i not in late] + late[::-1]


def words(mesh: Any, placements: Sequence[Any]) -> str:
    """How a tensor is spread, for a person to read."""
    sizes = " x ".join(map(str, mesh.shape))
    names = f" ({', '.join(mesh.mesh_dim_names)})" if mesh.mesh_dim_names else ""
    shown = str(placements[0]) if len(placements) == 1 else f"({', '.join(map(repr, placements))})"
    return f"{shown} over a mesh of {sizes}{names}"


def is_spread(tensor: object) -> bool:
    """Whether several processes hold it together."""
    return isinstance(tensor, torch.Tensor) and hasattr(tensor, "device_mesh") and hasattr(tensor, "placements")


def share_of(param: torch.Tensor) -> Share | None:
    """What of a parameter is here, if it is a DTensor."""
    return Share(param) if is_spread(param) else None


def look_up(shares: Iterable[Share]) -> None:
    """Note which tensors parameters and gradients are now."""
    for share in shares:
        share.param = share.whole._local_tensor
        grad: Any = share.whole.grad
        if grad is None:
            share.grad = None
        elif grad._spec is share.spec or (
            grad.placements == share.spec.placements and grad.device_mesh == share.spec.mesh
        ):
            share.grad = grad._local_tensor
        else:
            share.grad = grad.redistribute(share.spec.mesh, share.spec.placements)._local_tensor


def same_placement(a: Any, b: Any) -> bool:
    """Whether two tensors of one shape are spread in the same way."""
    return bool(a.placements == b.placements and a.mesh == b.mesh)
