from __future__ import annotations

from typing import Any, ClassVar

import torch

from steprule.algorithms.arguments import Number, Options, Params, Range, Ranges, Slots, Unpack, usually
from steprule.algorithms.moments import corrected_root, mean_of
from steprule.optimizer import Optimizer
from steprule.rule import channel, matrix, mean, ndim, scalar, table

__all__ = ["AdamMini"]


def by_head(
    square: torch.Tensor, mean: torch.Tensor, g: torch.Tensor, heads: float, beta2: float, correction: float, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean squares of heads, one number for each of their rows, and Adam's direction by them.

    Raises:
        ValueError: the rows are no whole number of heads.
    """
    count, rows, _ = g.shape
    if rows % int(heads):
        raise ValueError(f"heads={int(heads)} does not divide the {rows} rows of a parameter of AdamMini")
    means = g.square().view(count, int(heads), -1).mean(-1).repeat_interleave(rows // int(heads), 1)
    square = beta2 * square + (1 - beta2) * means[..., None]
    return square, mean / ((square / correction).sqrt() + eps)


class AdamMini(Optimizer):
    r"""Adam with one mean square for each row of a matrix, for each attention head, or for a whole vector.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) \operatorname{mean}_{\text{block}} g_t^2 \\
        \theta_t &= (1 - \gamma\lambda)\, \theta_{t-1} - \gamma \,
            \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    A block is an index of the first dimension: an output neuron, or a token of an embedding. A query's or key's
    weight whose group says ``heads`` is cut into so many equal parts along that dimension. A vector is one block.
    `Adam-mini: Use Fewer Learning Rates To Gain More <https://arxiv.org/abs/2406.16793>`_, Zhang et al., 2024. What
    is a query or a key is for the caller to say: ``overrides={"*.q_proj.weight": dict(heads=12), "*.k_proj.weight":
    dict(heads=12)}``.

    Choose it for transformers where AdamW's state does not fit: it keeps half of it, at the same rate.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate: the size of a step in the parameter's own unit; usually 1e-5
            to 1e-2.
        betas (tuple of two floats): how much of the running means of the gradient and of its square is kept
            from step to step, without unit; usually 0.9 and 0.95 to 0.999.
        eps (float): added to the denominator, in the gradient's unit; usually 1e-10 to 1e-6.
        weight_decay (float): the part of the parameter lost at each step, over the rate: in units of one over
            the rate; usually 0 to 0.3.
        heads (int): of a query's or key's weight, how many heads it has; 0 makes each row a block; 0, or 8 to
            128.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import AdamMini
        >>> weight = torch.tensor([[3.0, 4.0], [0.0, 1.0]], requires_grad=True)
        >>> optimizer = AdamMini([weight], lr=0.1)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> optimizer.state[weight]["by_row"].shape
        torch.Size([2, 1])
    """

    slots: ClassVar[Slots] = {"vmean": scalar(), "by_row": channel(), "by_head": table("rows", 1)}
    ranges: ClassVar[Ranges] = usually(
        lr="1e-5 to 1e-2",
        betas=("0.9", "0.95 to 0.999"),
        eps="1e-10 to 1e-6",
        weight_decay="0 to 0.3",
        heads=Range(least=0, usual="0, or 8 to 128"),
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 0,
        heads: Number = 0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, heads=heads), **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        beta1, beta2 = h.betas
        s.exp_avg = mean_of(s.exp_avg, g, beta1)
        rate = h.lr / (1 - beta1**s.step)
        if ndim(p) < 2:
            s.vmean = mean_of(s.vmean, mean(g * g), beta2)
            u = s.exp_avg / corrected_root(s.vmean, beta2, s, h)
        elif h.heads:
            correction = 1 - beta2**s.step
            numbers = h.heads, beta2, correction, h.eps
            s.by_head, u = matrix(by_head, s.by_head, s.exp_avg, g, *numbers, returns=(s.by_head, g))
        else:
            s.by_row = mean_of(s.by_row, mean(g * g, scope="channel"), beta2)
            u = s.exp_avg / corrected_root(s.by_row, beta2, s, h)
        return p * (1 - h.lr * h.weight_decay) - rate * u
