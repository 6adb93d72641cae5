"""What functions of tables share: products with a square table or, of a long side, its diagonal."""

from __future__ import annotations

import torch

__all__ = ["is_whole", "sound", "take_in_products", "turned"]


def is_whole(table: torch.Tensor) -> bool:
    """Whether a stack holds square tables, and not diagonals as columns."""
    return table.shape[-1] == table.shape[-2]


def sound(stack: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What can be decomposed of a stack, and what is added to the results: NaN for a matrix that is not finite, so that
    it stays NaN where a decomposition would raise, and else 0."""
    mark = (stack * 0).sum((-2, -1), keepdim=True)
    return torch.where(mark == 0, stack, torch.zeros_like(stack)), mark


def take_in_products(left: torch.Tensor, right: torch.Tensor, g: torch.Tensor, beta: float, weight: float) -> None:
    """Let tables of both sides decay by ``beta`` and take in ``g``'s Gram matrices with a weight; diagonals stay."""
    if is_whole(left):
        left.baddbmm_(g, g.mT, beta=beta, alpha=weight)
    if is_whole(right):
        right.baddbmm_(g.mT, g, beta=beta, alpha=weight)


def turned(left: torch.Tensor, x: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``left.mT @ x @ right`` for bases of both sides; a side that has only a diagonal keeps its own."""
    x = left.mT @ x if is_whole(left) else x
    return x @ right if is_whole(right) else x
