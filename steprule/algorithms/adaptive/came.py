from __future__ import annotations

from typing import Any, ClassVar

from steprule.algorithms.arguments import Number, Options, Params, Range, Ranges, Slots, Unpack, usually
from steprule.algorithms.moments import mean_of
from steprule.optimizer import Optimizer
from steprule.rule import column, maximum, mean, ndim, norm, row, rsqrt, size, sqrt

__all__ = ["CAME"]


def over_root(rows: Any, columns: Any) -> Any:
    """One over the root of a mean square that is kept as the means of its rows and its columns."""
    return rsqrt(rows / mean(rows, dim=-2)) * rsqrt(columns)


class CAME(Optimizer):
    r"""Adafactor with momentum, which trusts a step less where it differs from its running mean.

    .. math::
        u_t &= g_t / \sqrt{R_t C_t / \operatorname{mean} R_t}, \qquad
        u_t \leftarrow u_t / \max(1, \operatorname{rms}(u_t) / d), \qquad
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) u_t \\
        \theta_t &= (1 - \gamma\lambda)\, \theta_{t-1} - \gamma \, m_t / \sqrt{S_t T_t / \operatorname{mean} S_t}

    with the running means of rows and of columns :math:`R, C` of :math:`g^2 + \epsilon_1` and :math:`S, T` of
    :math:`(u - m)^2 + \epsilon_2`. A vector keeps its whole mean square, and takes :math:`m` as it is. Of a
    parameter with more than two dimensions the last two are the matrix. `CAME: Confidence-guided Adaptive Memory
    Efficient Optimization <https://arxiv.org/abs/2307.02047>`_, Luo et al., 2023.

    Choose it in place of Adafactor where there is memory for a momentum: it is as good as AdamW on language models,
    for one slot.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate: the size of a step in the parameter's own unit; usually 1e-5
            to 1e-3.
        betas (tuple of three floats): how much of the momentum, of the mean squares and of the deviations is
            kept from step to step, without unit; usually 0.9 and 0.99 to 0.999 and 0.999 to 0.9999.
        eps (tuple of two floats): added to the square of the gradient and to that of the deviation, in their
            units; usually 1e-30 and 1e-16.
        clip_threshold (float): :math:`d`, the root mean square at which a step is clipped, without unit;
            usually 1.
        weight_decay (float): the part of the parameter lost at each step, over the rate: in units of one over
            the rate; usually 0 to 0.3.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import CAME
        >>> weight = torch.full((3, 2), 2.0, requires_grad=True)
        >>> optimizer = CAME([weight], lr=0.1)
        >>> weight.sum().backward()
        >>> optimizer.step()
        >>> {name: tuple(value.shape) for name, value in optimizer.state[weight].items() if name != "exp_avg"}
        {'exp_avg_sq_row': (3, 1), 'exp_avg_sq_col': (1, 2), 'exp_avg_res_row': (3, 1), 'exp_avg_res_col': (1, 2)}
    """

    slots: ClassVar[Slots] = {
        "exp_avg_sq_row": row(),
        "exp_avg_sq_col": column(),
        "exp_avg_res_row": row(),
        "exp_avg_res_col": column(),
    }
    ranges: ClassVar[Ranges] = usually(
        lr="1e-5 to 1e-3",
        betas=("0.9", "0.99 to 0.999", "0.999 to 0.9999"),
        eps=(Range(least=0, called="epsilon1", usual="1e-30"), Range(least=0, called="epsilon2", usual="1e-16")),
        clip_threshold=Range(above=0, usual="1"),
        weight_decay="0 to 0.3",
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 2e-4,
        betas: tuple[Number, Number, Number] = (0.9, 0.999, 0.9999),
        eps: tuple[Number, Number] = (1e-30, 1e-16),
        clip_threshold: Number = 1.0,
        weight_decay: Number = 0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            dict(lr=lr, betas=betas, eps=eps, clip_threshold=clip_threshold, weight_decay=weight_decay),
            **options,
        )

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        beta1, beta2, beta3 = h.betas
        square = g * g + h.eps[0]
        if ndim(p) > 1:
            s.exp_avg_sq_row = mean_of(s.exp_avg_sq_row, mean(square, dim=-1), beta2)
            s.exp_avg_sq_col = mean_of(s.exp_avg_sq_col, mean(square, dim=-2), beta2)
            u = g * over_root(s.exp_avg_sq_row, s.exp_avg_sq_col)
        else:
            s.exp_avg_sq = mean_of(s.exp_avg_sq, square, beta2)
            u = g * rsqrt(s.exp_avg_sq)
        u = u / maximum(norm(u) / sqrt(size(p)) / h.clip_threshold, 1.0)
        step = s.exp_avg = mean_of(s.exp_avg, u, beta1)
        if ndim(p) > 1:
            unsure = (u - s.exp_avg) * (u - s.exp_avg) + h.eps[1]
            s.exp_avg_res_row = mean_of(s.exp_avg_res_row, mean(unsure, dim=-1), beta3)
            s.exp_avg_res_col = mean_of(s.exp_avg_res_col, mean(unsure, dim=-2), beta3)
            step = s.exp_avg * over_root(s.exp_avg_res_row, s.exp_avg_res_col)
        return p * (1 - h.lr * h.weight_decay) - h.lr * step
