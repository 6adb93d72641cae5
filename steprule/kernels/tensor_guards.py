"""Whether tensors still look as they did: type, dtype, device, layout, sizes and strides, asked at every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from steprule.portability.torch_private import tensor_guards

__all__ = ["look", "still"]


def look(tensor: Any) -> tuple[Any, ...]:
    """All that decides how a tensor is read, but for where it lies."""
    if not isinstance(tensor, torch.Tensor):
        return (type(tensor),)
    strides = tensor.stride() if tensor.layout == torch.strided else ()
    views = tensor.is_neg(), tensor.is_conj(), tensor._is_zerotensor()
    return type(tensor), tensor.layout, tensor.dtype, tensor.device, tensor.shape, strides, views


def still(tensors: Sequence[torch.Tensor]) -> Callable[..., bool]:
    """A function that says of as many tensors whether each looks as the one here.

    torch has one in C++, which takes a tenth of the time; it is not public, so there may be none.
    """
    strided = all(t.layout == torch.strided for t in tensors)
    if strided and tensor_guards is not None:
        sizes = [list(t.shape) for t in tensors]
        strides = [list(t.stride()) for t in tensors]
        native: Callable[..., bool] = tensor_guards(
            *tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides
        ).check
        return native
    looks = [look(t) for t in tensors]
    return lambda *others: [look(t) for t in others] == looks
