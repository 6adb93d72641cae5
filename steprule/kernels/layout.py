"""How tensors lie in memory, and bringing one to the layout of another."""

from __future__ import annotations

import math

import torch

__all__ = ["dense", "like", "materialized", "real", "same_layout"]


def dense(tensor: torch.Tensor) -> bool:
    """Whether a strided tensor's elements fill one piece of memory, in any order of its dimensions.

    >>> dense(torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)), dense(torch.zeros(4, 4)[:, ::2])
    (True, False)
    """
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, extent in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if extent == 1:
            continue
        if stride != expected:
            return False
        expected *= extent
    return expected == math.prod(tensor.shape)


def materialized(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` itself if its memory holds its values, else (a conjugate or negative view, a tensor of zeros that has
    no memory) a copy of which that is true."""
    tensor = tensor.resolve_conj().resolve_neg()
    return tensor.clone() if tensor._is_zerotensor() else tensor


def same_layout(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors of one shape put equal indices at equal offsets."""
    if a.stride() == b.stride():
        return True
    return all(n == 1 or s == t for n, s, t in zip(a.shape, a.stride(), b.stride(), strict=True)) or a.numel() == 0


def like(tensor: torch.Tensor, param: torch.Tensor) -> torch.Tensor:
    """``tensor`` itself if it lies in memory as ``param`` does, else a copy that does."""
    if same_layout(tensor, param):
        return tensor
    return torch.empty_strided(param.shape, param.stride(), dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def real(tensor: torch.Tensor) -> torch.Tensor:
    """A complex tensor as its real view, with a last dimension of size 2; any other tensor as it is."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
