"""Random matrices that algorithms begin with: the same on every device, for any stack, and after a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["normal_like"]


def normal_like(stack: torch.Tensor, shape: Sequence[int], seed: float, count: float) -> torch.Tensor:
    """One matrix of standard normal numbers, for all matrices of a stack.

    Args:
        stack: of whose dtype and device it is.
        shape: its shape.
        seed: the group's.
        count: the how many-th of this seed it is.
    """
    generator = torch.Generator().manual_seed((int(seed) * 1_000_003 + int(count)) % 2**63)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64).to(stack)
