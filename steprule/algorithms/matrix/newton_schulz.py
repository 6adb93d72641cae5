"""Matrices brought near to orthogonal ones by products alone."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from steprule.algorithms.arguments import Choice, Range
from steprule.rule import matrix

__all__ = ["PRODUCTS", "STEPS", "Coefficients", "check_coefficients", "orthogonal", "orthogonalized", "polar_express"]

Triple = tuple[float, float, float]
Coefficients = Triple | Sequence[Triple] | str

STEPS = Range(below=100, usual="5", message="Number of steps must be less than 100 for computational efficiency")
"""What the number of iterations may be."""

PRODUCTS = Choice(choices=("bfloat16", "float16", "float32", "float64"))
"""What products may be in."""

STEEP = 5.0
"""The slope at 0 from which on rounding errors grow too fast for several iterations by the Gram matrix."""

LEAST, OBLONG = 256, 1.5
"""The shorter side, and its ratio to the longer one, from which on that is accurate enough and cheaper."""


def check_coefficients(given: Any) -> None:
    """Refuse what are no coefficients of iterations.

    Raises:
        ValueError: saying what is.
    """
    if given == "polar_express":
        return
    triples = given if not isinstance(given, str) and len(given) and isinstance(given[0], (tuple, list)) else [given]
    if isinstance(given, str) or any(len(triple) != 3 for triple in triples):
        raise ValueError(
            "Coefficients must be a tuple of exactly 3 values, a list of such tuples, or 'polar_express', "
            f"got {given!r}"
        )


def orthogonal(x: Any, h: Any) -> Any:
    """In a rule: a matrix whose singular values are near 1, by iterations as ``ns_coefficients``, ``ns_steps``, ``eps``
    and ``ns_dtype`` say."""
    if h.ns_coefficients == "polar_express":
        return matrix(polar_express, x, h.eps, h.ns_steps, dtype=h.ns_dtype)
    several = isinstance(h.ns_coefficients[0], tuple)
    numbers = itertools.chain(*h.ns_coefficients) if several else h.ns_coefficients
    return matrix(orthogonalized, x, *numbers, h.eps, h.ns_steps, dtype=h.ns_dtype)


def orthogonalized(stack: torch.Tensor, *numbers: float) -> torch.Tensor:
    r"""Move the singular values of each matrix towards 1: ``steps`` times
    :math:`X \leftarrow a X + b (X X^T) X + c (X X^T)^2 X`, starting from :math:`X / \max(\lVert X \rVert, \epsilon)`.

    Oblong matrices are iterated by the Gram matrix :math:`G` of the shorter side:
    :math:`P = a + b G + c G^2,\ G \leftarrow P G P`; the product of some :math:`P` multiplies :math:`X` at once.

    Args:
        stack: matrices, of shape (n, rows, columns); overwritten.
        numbers: a, b and c, the coefficients of the polynomial, or those of each iteration, of which the last are taken
            from then on; eps, the least norm that is divided by; and the number of iterations.

    Returns:
        The matrices, of the same shape and dtype.

    Example:
        >>> x = orthogonalized(torch.tensor([[[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]]]), 2.0, -1.5, 0.5, 1e-7, 10)
        >>> [round(value, 4) for value in x.flatten().tolist()]
        [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    """
    *coefficients, eps, steps = numbers
    triples: Any = list(zip(*[iter(coefficients)] * 3, strict=True))
    stack.div_(torch.linalg.vector_norm(stack, dim=(1, 2), keepdim=True).clamp(min=eps))
    return iterated(stack, [triples[min(k, len(triples) - 1)] for k in range(int(steps))])


def polar_express(stack: torch.Tensor, eps: float, steps: float) -> torch.Tensor:
    """The same by the best polynomial in each iteration, of which fewer are needed.

    `The Polar Express: Optimal Matrix Sign Methods and Their Application to the Muon Algorithm
    <https://arxiv.org/abs/2505.16932>`_, Amsel et al., 2025.
    """
    stack.div_(torch.linalg.vector_norm(stack, dim=(1, 2), keepdim=True) * SAFETY + eps)
    return iterated(stack, optimal(int(steps)))


SAFETY, SMALLEST, CUSHION = 1.01, 1e-3, 0.02407327424182761
"""Of the Polar Express: by how much the largest singular value may be off, the smallest that is aimed at, and the least
ratio of both that a polynomial is made for."""


@functools.cache
def optimal(steps: int) -> list[Triple]:
    """The coefficients of each iteration: the odd polynomial nearest to 1 where the singular values are by then."""
    found: list[Triple] = []
    low, high = SMALLEST, 1.0
    for _ in range(steps):
        if low / high >= 1 - 5e-6:
            found.append((1.875 / high, -1.25 / high**3, 0.375 / high**5))
            continue
        triple = nearest_to_one(max(low, CUSHION * high), high)
        ends = [math.fsum(c * x**k for c, k in zip(triple, (1, 3, 5), strict=True)) for x in (low, high)]
        a, b, c = (coefficient * 2 / sum(ends) for coefficient in triple)  # as far above 1 as below
        low = ends[0] * 2 / sum(ends)
        high = 2 - low
        found.append((a / SAFETY, b / SAFETY**3, c / SAFETY**5))
    return found


def nearest_to_one(low: float, high: float) -> Triple:
    """The coefficients of x, x^3 and x^5 whose largest deviation from 1 between two numbers is the least: it is as
    large, with changing sign, at both ends and at the two extremes between them, which Remez's exchange finds."""
    q, r, before, error = (3 * low + high) / 4, (low + 3 * high) / 4, math.inf, 0.0
    for _ in range(100):
        points = np.array([low, q, r, high])
        system = np.stack([points, points**3, points**5, np.array([1.0, -1.0, 1.0, -1.0])], axis=1)
        a, b, c, error = np.linalg.solve(system, np.ones(4))
        if abs(before - error) <= 1e-15:
            break
        before = error
        q, r = np.sqrt((-3 * b + np.array([-1.0, 1.0]) * np.sqrt(9 * b * b - 20 * a * c)) / (10 * c))
    return float(a), float(b), float(c)


def iterated(stack: torch.Tensor, coefficients: Sequence[Triple]) -> torch.Tensor:
    """A stack after an iteration with each coefficients, in its place."""
    # a CPU multiplies single matrices, which stay in its cache, faster than batches
    batches = list(stack) if stack.device.type == "cpu" else [stack]
    spare = torch.empty_like(batches[0]) if batches else stack
    side = min(stack.shape[1:])
    small = [spare.new_empty(*spare.shape[:-2], side, side) for _ in range(4)]
    for x in batches:
        result = one_iterated(x, spare, small, coefficients)
        if result is not x:
            x.copy_(result)
    return stack


def one_iterated(
    x: torch.Tensor, spare: torch.Tensor, small: Sequence[torch.Tensor], coefficients: Sequence[Triple]
) -> torch.Tensor:
    """The iterations, on one matrix or a batch; ``x`` and ``spare`` are overwritten in turn."""
    tall = x.shape[-2] > x.shape[-1]
    side, length = sorted(x.shape[-2:])
    oblong = side >= LEAST and length > OBLONG * side
    for triples in blocks(coefficients) if oblong else [[one] for one in coefficients]:
        rows = x.mT if tall else x
        if len(triples) == 1:
            [(a, b, c)] = triples
            gram = torch.matmul(rows, rows.mT, out=small[0])
            u = plus_product(gram, gram, gram, b, c, out=small[1])
            plus_product(x, *(x, u.mT) if tall else (u, x), a, 1.0, out=spare)
        else:
            factor = gram_factor(gram_of(rows, small[0]), small[1:], triples)
            torch.matmul(*(x, factor.mT) if tall else (factor, x), out=spare)
        x, spare = spare, x
    return x


def blocks(coefficients: Sequence[Triple]) -> list[Sequence[Triple]]:
    """Which iterations go by the Gram matrix alone before the matrix itself is multiplied: at most 3, since rounding
    errors in the directions of small singular values grow twelvefold with each (by the square of a), and 2 in the end,
    where no iteration follows that would even them out; those of the largest a go alone."""
    alone = sum(a > STEEP for a, _, _ in coefficients)
    steps = len(coefficients) - alone
    threes = max(steps - 2, 0) // 3
    rest = steps - 3 * threes
    counts = [1] * alone + [3] * threes + [2] * (rest // 2) + [1] * (rest % 2)
    ends = list(itertools.accumulate(counts))
    return [coefficients[end - count : end] for count, end in zip(counts, ends, strict=True)]


def gram_of(rows: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """``rows @ rows.mT``, of which the blocks above the diagonal are those below it."""
    side = rows.shape[-2]
    step = -(-side // 3)
    for start in range(0, side, step):
        block = rows[..., start : start + step, :] @ rows[..., : start + step, :].mT
        out[..., start : start + step, : start + step] = block
        out[..., :start, start : start + step] = block[..., :start].mT
    return out


def gram_factor(gram: torch.Tensor, small: Sequence[torch.Tensor], coefficients: Sequence[Triple]) -> torch.Tensor:
    """What some iterations multiply a matrix by, given its Gram matrix, which is overwritten."""
    u, factor, spare = small
    for k, (a, b, c) in enumerate(coefficients):
        plus_product(gram, gram, gram, b, c, out=u)
        if k == 0:
            factor.copy_(u).diagonal(dim1=-2, dim2=-1).add_(a)
        else:
            plus_product(factor, u, factor, a, 1.0, out=spare)
            factor, spare = spare, factor
        if k + 1 < len(coefficients):
            plus_product(gram, u, gram, a, 1.0, out=spare)
            plus_product(spare, u, spare, a, 1.0, out=gram)
    return factor


def plus_product(
    x: torch.Tensor, left: torch.Tensor, right: torch.Tensor, beta: float, alpha: float, *, out: torch.Tensor
) -> torch.Tensor:
    """``beta * x + alpha * left @ right``, rounded once."""
    add = torch.addmm if x.ndim == 2 else torch.baddbmm
    return add(x, left, right, beta=beta, alpha=alpha, out=out)
