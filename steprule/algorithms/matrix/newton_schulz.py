"""Matrices brought near to orthogonal ones by products alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["orthogonalized"]

LEAST, OBLONG = 256, 1.5
"""The shorter side, and its ratio to the longer one, from which on that is accurate enough and cheaper."""


def orthogonalized(stack: torch.Tensor, a: float, b: float, c: float, eps: float, steps: float) -> torch.Tensor:
    r"""Move the singular values of each matrix towards 1: ``steps`` times
    :math:`X \leftarrow a X + b (X X^T) X + c (X X^T)^2 X`, starting from :math:`X / \max(\lVert X \rVert, \epsilon)`.

    Oblong matrices are iterated by the Gram matrix :math:`G` of the shorter side:
    :math:`P = a + b G + c G^2,\ G \leftarrow P G P`; the product of some :math:`P` multiplies :math:`X` at once.

    Args:
        stack: matrices, of shape (n, rows, columns); overwritten.
        a, b, c: the coefficients of the polynomial.
        eps: the least norm that is divided by.
        steps: the number of iterations.

    Returns:
        The matrices, of the same shape and dtype.

    Example:
        >>> x = orthogonalized(torch.tensor([[[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]]]), 2.0, -1.5, 0.5, 1e-7, 10)
        >>> [round(value, 4) for value in x.flatten().tolist()]
        [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    """
    stack.div_(torch.linalg.vector_norm(stack, dim=(1, 2), keepdim=True).clamp(min=eps))
    # a CPU multiplies single matrices, which stay in its cache, faster than batches
    batches = list(stack) if stack.device.type == "cpu" else [stack]
    spare = torch.empty_like(batches[0]) if batches else stack
    side = min(stack.shape[1:])
    small = [spare.new_empty(*spare.shape[:-2], side, side) for _ in range(4)]
    for x in batches:
        result = iterated(x, spare, small, (a, b, c), int(steps))
        if result is not x:
            x.copy_(result)
    return stack


def iterated(
    x: torch.Tensor,
    spare: torch.Tensor,
    small: Sequence[torch.Tensor],
    coefficients: tuple[float, float, float],
    steps: int,
) -> torch.Tensor:
    """The iterations, on one matrix or a batch; ``x`` and ``spare`` are overwritten in turn."""
    tall = x.shape[-2] > x.shape[-1]
    side, length = sorted(x.shape[-2:])
    oblong = side >= LEAST and length > OBLONG * side
    for count in blocks(steps) if oblong else [1] * steps:
        rows = x.mT if tall else x
        if count == 1:
            gram = torch.matmul(rows, rows.mT, out=small[0])
            u = plus_product(gram, gram, gram, *coefficients[1:], out=small[1])
            plus_product(x, *(x, u.mT) if tall else (u, x), coefficients[0], 1.0, out=spare)
        else:
            factor = gram_factor(gram_of(rows, small[0]), small[1:], coefficients, count)
            torch.matmul(*(x, factor.mT) if tall else (factor, x), out=spare)
        x, spare = spare, x
    return x


def blocks(steps: int) -> list[int]:
    """How many iterations go by the Gram matrix alone before the matrix itself is multiplied: at most 3, since
    rounding errors in the directions of small singular values grow twelvefold with each, and 2 in the end, where
    no iteration follows that would even them out."""
    threes = max(steps - 2, 0) // 3
    rest = steps - 3 * threes
    return [3] * threes + [2] * (rest // 2) + [1] * (rest % 2)


def gram_of(rows: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """``rows @ rows.mT``, of which the blocks above the diagonal are those below it."""
    side = rows.shape[-2]
    step = -(-side // 3)
    for start in range(0, side, step):
        block = rows[..., start : start + step, :] @ rows[..., : start + step, :].mT
        out[..., start : start + step, : start + step] = block
        out[..., :start, start : start + step] = block[..., :start].mT
    return out


def gram_factor(
    gram: torch.Tensor, small: Sequence[torch.Tensor], coefficients: tuple[float, float, float], count: int
) -> torch.Tensor:
    """What some iterations multiply a matrix by, given its Gram matrix, which is overwritten."""
    a, b, c = coefficients
    u, factor, spare = small
    for k in range(count):
        plus_product(gram, gram, gram, b, c, out=u)
        if k == 0:
            factor.copy_(u).diagonal(dim1=-2, dim2=-1).add_(a)
        else:
            plus_product(factor, u, factor, a, 1.0, out=spare)
            factor, spare = spare, factor
        if k + 1 < count:
            plus_product(gram, u, gram, a, 1.0, out=spare)
            plus_product(spare, u, spare, a, 1.0, out=gram)
    return factor


def plus_product(
    x: torch.Tensor, left: torch.Tensor, right: torch.Tensor, beta: float, alpha: float, *, out: torch.Tensor
) -> torch.Tensor:
    """``beta * x + alpha * left @ right``, rounded once."""
    add = torch.addmm if x.ndim == 2 else torch.baddbmm
    return add(x, left, right, beta=beta, alpha=alpha, out=out)
