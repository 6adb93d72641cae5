"""Whether the memory of tensors is there, may be written, and is nobody else's: asked when a plan is made."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from steprule.portability.torch_private import FakeTensor, is_functorch_wrapped_tensor

__all__ = ["fault", "folded", "has_own_memory", "reach", "shared_with", "tangled", "unlike_memory"]


def has_own_memory(tensor: torch.Tensor) -> bool:
    """Whether a tensor's elements lie in memory of its own, as torch's strided tensors do."""
    return (
        tensor.layout == torch.strided
        and type(tensor).__torch_dispatch__ is torch.Tensor.__torch_dispatch__
        and tensor.device.type != "meta"
    )


def unlike_memory(tensor: torch.Tensor, param: torch.Tensor) -> str | None:
    """Why a tensor can't be state of a parameter, whatever it holds: what to say of it; None where it may be."""
    if is_functorch_wrapped_tensor(tensor):
        return "belongs to a transform of torch.func"
    if tensor.is_nested or tensor.layout != param.layout:
        return "is a nested tensor" if tensor.is_nested else f"has the layout {tensor.layout}"
    if isinstance(tensor, FakeTensor) and not isinstance(param, FakeTensor):
        return "is a FakeTensor, which holds no numbers"
    return None


def reach(tensor: torch.Tensor) -> int:
    """The bytes from a tensor's first element to the end of its last; 0 for one without elements."""
    if tensor.is_contiguous():
        return tensor.numel() * tensor.element_size()
    if not tensor.numel():
        return 0
    last = sum((int(n) - 1) * int(s) for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def fault(tensor: torch.Tensor, written: bool = True) -> str | None:
    """Why a tensor can't be read, or written: what to say of it; None where it can."""
    if not has_own_memory(tensor):
        return None
    needed = reach(tensor)
    if not needed:
        return None
    storage = tensor.untyped_storage()
    needed += int(tensor.storage_offset()) * tensor.element_size()
    if storage.nbytes() < needed:
        return f"needs {needed} bytes of a storage that holds {storage.nbytes()}: it was resized"
    # torch's own memory can be resized and written; what came from elsewhere may be a file's
    if written and tensor.device.type == "cpu" and not storage.resizable():
        first = tensor.data_ptr()
        if not (writable(first) and writable(first + reach(tensor) - 1)):
            return "lies in memory that can only be read, as a file mapped with mode 'r'"
    return None


def folded(tensor: torch.Tensor) -> bool:
    """Whether several elements of a tensor are one place in memory.

    >>> [folded(torch.zeros(20).as_strided(size, (1, 1))) for size in ((6, 6), (1, 6))]
    [True, False]
    """
    if tensor.is_contiguous() or not tensor.numel():
        return False
    extents = sorted((s, n) for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n > 1)
    if extents and extents[0][0] == 0:
        return True
    beyond, apart = 1, True
    for stride, extent in extents:
        apart = apart and stride >= beyond
        beyond += (extent - 1) * stride
    if apart:
        return False
    places = np.zeros(1, np.int64)
    for stride, extent in extents:
        places = (places[:, None] + np.arange(extent) * stride).ravel()
    return len(np.unique(places)) < len(places)


def shared_with(tensors: Sequence[torch.Tensor]) -> tuple[int, int] | None:
    """Two of some tensors that lie in the same memory, by their places in the list; None where each has its own."""
    ranges = sorted(
        (t.data_ptr(), t.data_ptr() + reach(t), i) for i, t in enumerate(tensors) if has_own_memory(t) and t.numel()
    )
    for (_, end, one), (start, _, other) in pairwise(ranges):
        if start < end:
            return min(one, other), max(one, other)
    return None


def writable(address: int) -> bool:
    """Whether a byte may be written: the kernel is asked to write there what stands there already, and it may say no
    where a program would be ended."""
    if os.name != "posix":
        return True
    out, into = os.pipe()
    try:
        os.write(into, ctypes.string_at(address, 1))
        return bool(ctypes.CDLL(None).read(out, ctypes.c_void_p(address), ctypes.c_size_t(1)) == 1)
    finally:
        os.close(out)
        os.close(into)


def tangled(places: Sequence[tuple[int, int]], owners: Sequence[int], written: Sequence[bool]) -> set[int]:
    """The owners of memory that overlaps that of another, or what is written of their own.

    Args:
        places: address and size in bytes, each.
        owners: whose each is.
        written: whether it is written; what is only read may overlap.

    >>> sorted(tangled([(0, 8), (4, 8), (16, 8), (16, 8)], [1, 2, 3, 3], [True, True, True, False]))
    [1, 2, 3]
    >>> tangled([(0, 8), (8, 8), (16, 8), (16, 8)], [1, 2, 1, 2], [True, True, False, False])
    set()
    """
    if len(places) < 2:
        return set()
    table = np.asarray(places, np.int64)
    order = np.argsort(table[:, 0], kind="stable")
    starts, ends = table[order, 0], table[order].sum(axis=1)
    if not (starts[1:] < np.maximum.accumulate(ends)[:-1]).any():
        return set()
    found: set[int] = set()
    open_places: list[tuple[int, int]] = []
    for i, start, end in zip(order.tolist(), starts.tolist(), ends.tolist(), strict=True):
        open_places = [(k, stop) for k, stop in open_places if stop > start]
        for k, _ in open_places if end > start else ():
            same = owners[i] == owners[k] and written[i] and written[k]  # a parameter that is listed twice
            if (written[i] or written[k]) and not same:
                found |= {owners[i], owners[k]}
        open_places.append((i, end))
    return found
