from __future__ import annotations

from typing import Any, ClassVar

import torch

from steprule.algorithms.arguments import Number, Options, Params, Range, Ranges, Slots, Unpack, usually
from steprule.optimizer import Optimizer
from steprule.rule import matrix, ndim

from .projected import PROJECTED, moments, moved_parameter, tall, unprojected
from .square_tables import sound

__all__ = ["GaLore", "moments", "tall"]


class GaLore(Optimizer):
    r"""AdamW in a low-rank space of each matrix's gradient, which is looked for anew now and then.

    .. math::
        P &= \text{the first right singular vectors of } g_t, \text{ in every } k \text{-th step}, \qquad R_t = g_t P \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) R_t, \qquad v_t = \beta_2 v_{t-1} + (1 - \beta_2) R_t^2 \\
        \theta_t &= (1 - \gamma\lambda) \left(\theta_{t-1} - \gamma \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t} \;
            \alpha \, \frac{m_t}{\sqrt{v_t} + \epsilon} P^T\right)

    for a matrix of at least as many rows as columns, and its transpose otherwise. What is not of two dimensions, and
    groups with ``rank=None``, are AdamW's. `GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection
    <https://arxiv.org/abs/2403.03507>`_, Zhao et al., 2024.

    Choose it for fine-tuning and training of language models whose AdamW state does not fit: a matrix of n x m keeps
    rank (m + 2 n) numbers instead of 2 n m.

    Args:
        params: see :class:`steprule.Optimizer`; real.
        lr (float, Tensor or Schedule): the rate: about how far a coordinate moves in a step, over ``scale``, in the
            parameter's own unit; usually 1e-3 to 1e-2.
        betas (tuple of two floats): how much of the running means of the projected gradient and of its square is kept
            from step to step, without unit; usually 0.9 and 0.999.
        eps (float): added to the denominator, in the gradient's unit; usually 1e-6.
        weight_decay (float): the part of the parameter lost at each step, over the rate; usually 0 to 0.1.
        rank (int, optional): how many directions, at most the shorter side; usually 4 to 1024.
        update_proj_gap (int): in every how many-th step they are looked for anew; usually 50 to 1000.
        scale (float): how long projected steps are beside AdamW's, without unit; usually 0.25 to 1.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.
        RuntimeError: in a step, if a matrix is complex or its gradient sparse, or if it is a DTensor that is cut.

    Example:
        >>> import torch
        >>> from steprule import GaLore
        >>> weight = torch.zeros(3, 2, requires_grad=True)
        >>> optimizer = GaLore([weight], lr=1.0, rank=1, scale=1.0)
        >>> weight.grad = torch.tensor([[3.0, 0.0], [3.0, 0.0], [3.0, 0.1]])
        >>> optimizer.step()  # all but the direction of the first column is left out
        >>> weight.detach().round(decimals=1) + 0
        tensor([[-1., 0.],
                [-1., 0.],
                [-1., 0.]])
        >>> {name: tuple(value.shape) for name, value in optimizer.state[weight].items()}["projection"]
        (2, 1)
    """

    switches: ClassVar[frozenset[str]] = frozenset()
    slots: ClassVar[Slots] = PROJECTED
    ranges: ClassVar[Ranges] = usually(
        lr="1e-3 to 1e-2",
        betas=("0.9", "0.999"),
        eps="1e-6",
        weight_decay="0 to 0.1",
        rank=Range(least=1, optional=True, usual="4 to 1024"),
        update_proj_gap=Range(least=1, usual="50 to 1000"),
        scale=Range(least=0, usual="0.25 to 1"),
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-6,
        weight_decay: Number = 0.0,
        rank: int | None = 128,
        update_proj_gap: int = 200,
        scale: Number = 0.25,
        **options: Unpack[Options],
    ) -> None:
        defaults: dict[str, Any] = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        defaults |= dict(rank=rank, update_proj_gap=update_proj_gap, scale=scale)
        super().__init__(params, defaults, **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        if ndim(p) == 2 and h.rank is not None:
            known = s.projection
            s.projection = matrix(directions, known, g, returns=known, every=h.update_proj_gap)
            averages = s.projected_exp_avg, s.projected_exp_avg_sq
            u, s.projected_exp_avg, s.projected_exp_avg_sq = matrix(
                projected_step, g, s.projection, *averages, *h.betas, h.eps, returns=(g, *averages)
            )
            u = h.scale * u
        else:
            u = unprojected(g, s, h)
        return moved_parameter(p, u, s, h)


def directions(projection: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """The singular vectors, of the shorter side, of the largest singular values."""
    if g.numel() == 0:
        return projection
    g, mark = sound(g)
    found = torch.linalg.svd(g, full_matrices=False)
    vectors: torch.Tensor = found.Vh.mT if g.shape[-2] >= g.shape[-1] else found.U
    return vectors[..., : projection.shape[-1]] + mark


def projected_step(
    g: torch.Tensor,
    projection: torch.Tensor,
    m: torch.Tensor,
    v: torch.Tensor,
    beta1: float,
    beta2: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Adam's directions in the low-rank space, brought back."""
    u = moments(tall(g) @ projection, m, v, beta1, beta2, eps) @ projection.mT
    return u if u.shape == g.shape else u.mT, m, v
