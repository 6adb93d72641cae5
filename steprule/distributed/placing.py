"""Tensors brought to where others are: whole ones cut as a parameter is, and the other way round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from steprule.rule.slot import Slot

from .shares import Share, cut, is_spread, joined_as

__all__ = ["cut", "is_spread", "placed", "placed_like", "whole"]


def placed(value: torch.Tensor, param: torch.Tensor, slot: Slot | None, dtype: torch.dtype) -> torch.Tensor | None:
    """A copy of what was saved for a parameter's slot, spread as the parameter is.

    Args:
        value: what was saved: whole, where every process has the same, or spread in any way.
        param: the parameter.
        slot: the slot; None where nobody knows, and it is an array if it has the parameter's shape.
        dtype: in which it is to be kept.

    Returns:
        The copy; None where nothing is spread, and a plain copy will do.
    """
    if not is_spread(param):
        return whole(value).to(dtype=dtype, device=param.device, copy=True) if is_spread(value) else None
    share = Share(param)
    shape, placements = share.expected(slot or Slot("array" if value.shape == param.shape else "scalar"))
    if tuple(value.shape) != shape and slot is not None:
        return None
    return placed_like(value, param, placements, dtype)


def placed_like(
    value: torch.Tensor, like: Any, placements: Sequence[Any] | None = None, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """A copy of a tensor over the mesh of another one, with placements of its own or with that one's."""
    placements = list(like.placements) if placements is None else list(placements)
    dtype = like.dtype if dtype is None else dtype
    found: Any = value.detach()
    if is_spread(value) and found.device_mesh == like.device_mesh and list(found.placements) == placements:
        local = found._local_tensor
    else:
        local = cut(whole(found), like.device_mesh, placements)
    device = like._local_tensor.device
    return joined_as(local.to(dtype=dtype, device=device, copy=True).contiguous(), like, tuple(value.shape), placements)


def whole(value: Any) -> torch.Tensor:
    """All of a tensor, on every process that has a part of it."""
    if not is_spread(value):
        found: torch.Tensor = value
    elif value.dtype == torch.int16:  # which neither gloo nor NCCL knows
        found = value.to(torch.int32).full_tensor().to(torch.int16)
    else:
        found = value.full_tensor()
    return found
