from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from steprule.algorithms.adaptive.adamw import AdamW
from steprule.algorithms.arguments import MatrixOptions, Number, Params, Range, Ranges, Slots, Unpack, usually
from steprule.rule import fraction, matrix, size, sqrt, table, where

from .drawn import normal_like
from .hidden import _HiddenMatrices

__all__ = ["Dion"]


class Dion(_HiddenMatrices):
    r"""Muon of a lower rank: momentum is orthogonalized in a few directions, and what is left of it waits.

    .. math::
        B_t &= M_{t-1} + g_t, \qquad P_t = \operatorname{QR}(B_t Q_{t-1}), \qquad R_t = B_t^T P_t \\
        M_t &= B_t - (1 - \mu)\, P_t R_t^T, \qquad Q_t = R_t / (\lVert R_t \rVert_{\text{column}} + \epsilon) \\
        \theta_t &= (1 - \gamma\lambda)\, \theta_{t-1} - \gamma \sqrt{\text{rows} / \text{columns}} \; P_t Q_t^T

    :math:`Q_0` is of normal numbers, drawn by the group's ``seed``. `Dion: Distributed Orthonormalized Updates
    <https://arxiv.org/abs/2504.05295>`_, Ahn et al., 2025, algorithm 1; defaults of the authors' code, which works on
    the transpose of matrices with more columns than rows.

    Choose it for large matrices, of which a fraction of the directions is enough: its products are of the rank, where
    Muon's are of the side.

    Only matrices are for it; a :class:`torch.nn.Module` is sorted as :class:`Muon` sorts it, with AdamW for the rest.
    ``use_dion=False`` is what ``use_muon=False`` is there.

    Args:
        params: a :class:`torch.nn.Module` to be sorted; or matrices, as :class:`steprule.Optimizer` takes them.
        lr (float, Tensor or Schedule): the rate, in the parameter's own unit; usually 0.001 to 0.05.
        mu (float): how much of the momentum is kept where a step was taken, without unit; usually 0.9 to 0.98.
        weight_decay (float): the part of the parameter lost at each step, over the rate; usually 0 to 0.1.
        eps (float): added to the norms that are divided by, in the gradient's unit; usually 1e-8.
        rank_fraction (float): how many directions, as a part of the shorter side, rounded up, without unit; usually
            0.0625 to 1.
        adamw (dict, optional): see :class:`Muon`.
        convolutions (bool): take a parameter of more than two dimensions as a matrix (size(0), everything else).
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range, or a parameter for Dion is not a matrix.
        RuntimeError: in a step, if a parameter for Dion is complex or its gradient sparse, or if it is a DTensor that
            is cut.

    Example:
        >>> import torch
        >>> from steprule import Dion
        >>> weight = torch.zeros(2, 2, requires_grad=True)
        >>> optimizer = Dion([weight], lr=1.0)
        >>> for _ in range(20):
        ...     weight.grad = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
        ...     optimizer.step()
        >>> before = weight.detach().clone()
        >>> weight.grad = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
        >>> optimizer.step()  # at full rank, the orthogonal matrix nearest to the momentum, and weight decay
        >>> (weight.detach() - before * 0.99).round(decimals=3) + 0
        tensor([[ 0., -1.],
                [-1.,  0.]])
    """

    flag = "use_dion"
    slots: ClassVar[Slots] = {"Q": table("columns", fraction("rank_fraction"))}
    ranges: ClassVar[Ranges] = usually(
        lr="0.001 to 0.05",
        mu=Range(least=0, below=1, usual="0.9 to 0.98"),
        weight_decay="0 to 0.1",
        eps="1e-8",
        rank_fraction=Range(above=0, most=1, usual="0.0625 to 1"),
        betas=AdamW.ranges["betas"],
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 0.01,
        mu: Number = 0.95,
        weight_decay: Number = 0.01,
        eps: Number = 1e-8,
        rank_fraction: float = 1.0,
        *,
        adamw: Mapping[str, Any] | None = None,
        convolutions: bool = False,
        overrides: Mapping[Any, Mapping[str, Any]] | None = None,
        **options: Unpack[MatrixOptions],
    ) -> None:
        hyper: dict[str, Any] = dict(lr=lr, mu=mu, weight_decay=weight_decay, eps=eps, rank_fraction=rank_fraction)
        super().__init__(params, hyper, adamw, convolutions, overrides, **options)

    def direction(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        b, new = s.momentum + g, where(s.is_new, 1.0, 0.0)
        o, taken, s.Q = matrix(power_iteration, b, s.Q, h.eps, h.seed, new, returns=(g, g, s.Q))
        s.momentum = b - (1 - h.mu) * taken
        return sqrt(size(p, 0) / (size(p) / size(p, 0))) * o


def power_iteration(
    b: torch.Tensor, q: torch.Tensor, eps: float, seed: float, new: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The orthogonal step of each matrix, its part of the matrix, and the directions to look in next."""
    if new:
        q = normal_like(q, q.shape[1:], seed, 0).expand_as(q)
    p = torch.linalg.qr(b @ q).Q
    r = b.mT @ p
    length = torch.linalg.vector_norm(r, dim=1, keepdim=True)
    following = r / (length + eps)
    # of a matrix that is zero nothing is learned
    kept = torch.where((length == 0).all(-1, keepdim=True), q, following)
    return p @ following.mT, p @ r.mT, kept
