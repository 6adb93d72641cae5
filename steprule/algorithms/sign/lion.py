from __future__ import annotations

from typing import Any, ClassVar

from steprule.algorithms.arguments import Number, Options, Params, Ranges, Unpack, usually
from steprule.algorithms.moments import mean_of
from steprule.optimizer import Optimizer
from steprule.rule import sign

__all__ = ["Lion"]


class Lion(Optimizer):
    r"""Lion: every coordinate moves by the rate, in the direction of a momentum that leans on the newest gradient.

    .. math::
        \theta_t &= (1 - \gamma\lambda)\, \theta_{t-1}
            - \gamma \operatorname{sign}(\beta_1 m_{t-1} + (1 - \beta_1) g_t) \\
        m_t &= \beta_2 m_{t-1} + (1 - \beta_2) g_t

    `Symbolic Discovery of Optimization Algorithms <https://arxiv.org/abs/2302.06675>`_, Chen et al., 2023.

    Choose it in place of AdamW where state is dear: it keeps one slot instead of two. Against AdamW's, take a rate
    3 to 10 times smaller and a weight decay larger by the same factor; it wants large batches.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate: the size of every step in the parameter's own unit; usually 1e-5 to
            1e-3.
        betas (tuple of two floats): how much of the momentum counts in the direction, and how much of it is kept from
            step to step, without unit; usually 0.9 to 0.95 and 0.98 to 0.99.
        weight_decay (float): the part of the parameter lost at each step, over the rate: in units of one over the
            rate; usually 0 to 1.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import Lion
        >>> weight = torch.tensor([1.0, -200.0], requires_grad=True)
        >>> optimizer = Lion([weight], lr=0.25)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> weight.detach()
        tensor([   0.7500, -199.7500])
    """

    ranges: ClassVar[Ranges] = usually(lr="1e-5 to 1e-3", betas=("0.9 to 0.95", "0.98 to 0.99"), weight_decay="0 to 1")

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-4,
        betas: tuple[Number, Number] = (0.9, 0.99),
        weight_decay: Number = 0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, weight_decay=weight_decay), **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        beta1, beta2 = h.betas
        direction = sign(mean_of(s.exp_avg, g, beta1))
        s.exp_avg = mean_of(s.exp_avg, g, beta2)
        return p * (1 - h.lr * h.weight_decay) - h.lr * direction
