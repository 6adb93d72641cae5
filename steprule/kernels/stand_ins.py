"""Tensors that look as gradients do which are not there, so that one question can be asked of all."""

from __future__ import annotations

import numpy as np
import torch

__all__ = ["Look", "stand_in"]

Look = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
"""Sizes, strides and dtype."""


class Ground:
    """What they lie over: nobody reads or writes it, so that it takes addresses and no memory."""

    def __init__(self) -> None:
        self.over = torch.empty(0, dtype=torch.uint8)

    def reaching(self, nbytes: int) -> torch.Tensor:
        if self.over.numel() < nbytes:
            # torch fills what it allocates where algorithms have to be deterministic
            self.over = torch.from_numpy(np.empty(nbytes, np.uint8))
        return self.over


ground = Ground()


def stand_in(look: Look) -> torch.Tensor:
    """A tensor that is asked how it looks, and for nothing else; each is an object of its own."""
    sizes, strides, dtype = look
    last = sum((n - 1) * s for n, s in zip(sizes, strides, strict=True)) if 0 not in sizes else -1
    whole = ground.reaching((last + 1) * dtype.itemsize)
    return whole[: whole.numel() // dtype.itemsize * dtype.itemsize].view(dtype).as_strided(sizes, strides)
