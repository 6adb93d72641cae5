from __future__ import annotations

from typing import Any, ClassVar

import torch

from steprule.algorithms.arguments import Choice, Number, Options, Params, Range, Ranges, Slots, Unpack, usually
from steprule.optimizer import Optimizer
from steprule.rule import ceil, matrix, maximum, ndim, norm, scalar, sqrt, where

from .drawn import normal_like
from .projected import PROJECTED, moments, moved_parameter, tall, unprojected

__all__ = ["Apollo"]


class Apollo(Optimizer):
    r"""The gradient, each channel as much larger or smaller as AdamW would make it: known from a random projection.

    .. math::
        R_t &= g_t P, \qquad P_{ij} \sim \mathcal{N}(0, 1 / \text{rank}), \text{ drawn anew in every } k \text{-th
        step} \\ m_t &= \beta_1 m_{t-1} + (1 - \beta_1) R_t, \qquad v_t = \beta_2 v_{t-1} + (1 - \beta_2) R_t^2, \qquad
            \tilde R_t = m_t / (\sqrt{v_t} + \epsilon) \\
        u_t &= \frac{\lVert \tilde R_t \rVert}{\lVert R_t \rVert} \, g_t \text{ row by row}, \qquad
            \text{at most } 1.01 \text{ times as long as } u_{t-1} \\
        \theta_t &= (1 - \gamma\lambda) \left(\theta_{t-1}
            - \gamma \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t} \sqrt{\alpha} \; u_t\right)

    for a matrix of at least as many rows as columns, and its transpose otherwise. What is not of two dimensions, and
    groups with ``rank=None``, are AdamW's. `APOLLO: SGD-like Memory, AdamW-level Performance
    <https://arxiv.org/abs/2412.05270>`_, Zhu et al., 2024; with ``rank=1, scale_type="tensor", scale=128`` it is
    APOLLO-Mini.

    Choose it to train language models from scratch where AdamW's state does not fit: a matrix of n x m keeps rank
    (m + 2 n) numbers, and no decomposition is needed.

    Args:
        params: see :class:`steprule.Optimizer`; real.
        lr (float, Tensor or Schedule): the rate: about how far a coordinate moves in a step, in the parameter's own
            unit; usually 1e-3 to 1e-2.
        betas (tuple of two floats): how much of the running means of the projected gradient and of its square is kept
            from step to step, without unit; usually 0.9 and 0.999.
        eps (float): added to the denominator, in the gradient's unit; usually 1e-6.
        weight_decay (float): the part of the parameter lost at each step, over the rate; usually 0 to 0.1.
        rank (int, optional): how many directions, at most the shorter side; usually 1 to 256.
        update_proj_gap (int): in every how many-th step they are drawn anew; usually 50 to 1000.
        scale (float): the square of how long steps are beside AdamW's, without unit; usually 1 to 128.
        scale_type (str): what has a factor of its own: ``"channel"``, each index of the longer side, or ``"tensor"``,
            the whole matrix.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.
        RuntimeError: in a step, if a matrix is complex or its gradient sparse, or if it is a DTensor that is cut.

    Example:
        >>> import torch
        >>> from steprule import Apollo
        >>> weight = torch.zeros(3, 2, requires_grad=True)
        >>> optimizer = Apollo([weight], lr=1.0, rank=1)
        >>> weight.grad = torch.tensor([[3.0, 4.0], [30.0, 40.0], [0.3, 0.4]])
        >>> optimizer.step()
        >>> torch.allclose(weight[1], weight[0], atol=1e-3)  # however large a row of the gradient is
        True
    """

    switches: ClassVar[frozenset[str]] = frozenset()
    slots: ClassVar[Slots] = {**PROJECTED, "length": scalar()}
    ranges: ClassVar[Ranges] = usually(
        lr="1e-3 to 1e-2",
        betas=("0.9", "0.999"),
        eps="1e-6",
        weight_decay="0 to 0.1",
        rank=Range(least=1, optional=True, usual="1 to 256"),
        update_proj_gap=Range(least=1, usual="50 to 1000"),
        scale=Range(least=0, usual="1 to 128"),
        scale_type=Choice(choices=("channel", "tensor")),
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-6,
        weight_decay: Number = 0.0,
        rank: int | None = 256,
        update_proj_gap: int = 200,
        scale: Number = 1.0,
        scale_type: str = "channel",
        **options: Unpack[Options],
    ) -> None:
        defaults: dict[str, Any] = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        defaults |= dict(rank=rank, update_proj_gap=update_proj_gap, scale=scale, scale_type=scale_type)
        super().__init__(params, defaults, **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        projects = ndim(p) == 2 and h.rank is not None
        u = sqrt(h.scale) * self.scaled(g, s, h) if projects else unprojected(g, s, h)
        return moved_parameter(p, u, s, h)

    def scaled(self, g: Any, s: Any, h: Any) -> Any:
        """The gradient with each channel, or all of it, scaled; and not much longer than the time before."""
        gap, known = h.update_proj_gap, s.projection
        s.projection = matrix(random_projection, known, h.seed, ceil(s.step / gap), returns=known, every=gap)
        averages = s.projected_exp_avg, s.projected_exp_avg_sq
        function = by_channel if h.scale_type == "channel" else by_tensor
        u, s.projected_exp_avg, s.projected_exp_avg_sq = matrix(
            function, g, s.projection, *averages, *h.betas, h.eps, returns=(g, *averages)
        )
        length = norm(u)
        over = where(s.is_new, 1.0, maximum(length / (s.length + 1e-8), 1.01) / 1.01)
        s.length = length / over
        return u / over


def random_projection(projection: torch.Tensor, seed: float, count: float) -> torch.Tensor:
    rank = max(projection.shape[-1], 1)
    found: torch.Tensor = normal_like(projection, projection.shape[1:], seed, count) / rank**0.5
    return found.repeat(len(projection), 1, 1)


def by_channel(
    g: torch.Tensor,
    projection: torch.Tensor,
    m: torch.Tensor,
    v: torch.Tensor,
    beta1: float,
    beta2: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each row of the tall matrices as much longer as Adam makes its projection."""
    low = tall(g) @ projection
    u = moments(low, m, v, beta1, beta2, eps)
    u = tall(g) * (u.norm(dim=-1, keepdim=True) / (low.norm(dim=-1, keepdim=True) + 1e-8))
    return u if u.shape == g.shape else u.mT, m, v


def by_tensor(
    g: torch.Tensor,
    projection: torch.Tensor,
    m: torch.Tensor,
    v: torch.Tensor,
    beta1: float,
    beta2: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each matrix as much longer as Adam makes its projection."""
    low = tall(g) @ projection
    u = moments(low, m, v, beta1, beta2, eps)
    return g * (u.norm(dim=(-2, -1), keepdim=True) / (low.norm(dim=(-2, -1), keepdim=True) + 1e-8)), m, v
