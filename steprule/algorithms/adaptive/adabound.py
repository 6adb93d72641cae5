from __future__ import annotations

from typing import Any, ClassVar

from steprule.algorithms.arguments import Number, Options, Params, Ranges, Slots, Unpack, usually
from steprule.algorithms.moments import mean_of, mean_square_of
from steprule.optimizer import Optimizer
from steprule.rule import clip, scalar, sqrt, where

__all__ = ["AdaBound"]


class AdaBound(Optimizer):
    r"""Adam whose rates are held between two bounds that close in on one rate for all: it ends as SGD.

    .. math::
        \eta_t &= \operatorname{clip}\left(\frac{\gamma}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon_t},\
            \gamma^* \Big(1 - \frac{1}{gt + 1}\Big),\ \gamma^* \Big(1 + \frac{1}{gt}\Big)\right) \\
        \theta_t &= (1 - \gamma\lambda)\, \theta_{t-1} - \eta_t \, m_t

    with the moments :math:`m` and :math:`v` of :class:`Adam`, :math:`g` the argument ``gamma``, and
    :math:`\gamma^*` the final rate times :math:`\gamma` over its first value above zero, so that it follows a
    schedule. The first bias is corrected before the rate is held, as in the authors' code. `Adaptive Gradient
    Methods with Dynamic Bound of Learning Rate <https://arxiv.org/abs/1902.09843>`_, Luo et al., 2019.

    Choose it for images where SGD generalizes better than Adam, but is slow at first.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate: the size of a step in the parameter's own unit; usually 1e-4
            to 1e-2.
        betas (tuple of two floats): how much of the running means of the gradient and of its square is kept
            from step to step, without unit; usually 0.9 and 0.99 to 0.999.
        final_lr (float): the rate of SGD that it ends with, in units of the parameter squared over the loss;
            usually 0.01 to 1.
        gamma (float): how fast the bounds close in, in units of one over a step; usually 1e-4 to 1e-2.
        eps (float): added to the denominator, in the gradient's unit; usually 1e-10 to 1e-6.
        weight_decay (float): the part of the parameter lost at each step, over the rate: in units of one over
            the rate; usually 0 to 0.3.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import AdaBound
        >>> weight = torch.tensor([1.0, -2.0], requires_grad=True)
        >>> optimizer = AdaBound([weight], lr=0.1)
        >>> for _ in range(300):
        ...     optimizer.zero_grad()
        ...     weight.square().sum().backward()
        ...     optimizer.step()
        >>> bool(weight.abs().max() < 0.01)
        True
    """

    slots: ClassVar[Slots] = {"base_lr": scalar()}
    ranges: ClassVar[Ranges] = usually(
        lr="1e-4 to 1e-2",
        betas=("0.9", "0.99 to 0.999"),
        final_lr="0.01 to 1",
        gamma="1e-4 to 1e-2",
        eps="1e-10 to 1e-6",
        weight_decay="0 to 0.3",
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        final_lr: Number = 0.1,
        gamma: Number = 1e-3,
        eps: Number = 1e-8,
        weight_decay: Number = 0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            dict(lr=lr, betas=betas, final_lr=final_lr, gamma=gamma, eps=eps, weight_decay=weight_decay),
            **options,
        )

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        beta1, beta2 = h.betas
        s.exp_avg = mean_of(s.exp_avg, g, beta1)
        s.exp_avg_sq = mean_square_of(s.exp_avg_sq, g, beta2)
        s.base_lr = where(s.base_lr > 0, s.base_lr, h.lr)
        final = where(s.base_lr > 0, h.final_lr * h.lr / s.base_lr, 0.0)
        low, high = final * (1 - 1 / (h.gamma * s.step + 1)), final * (1 + 1 / (h.gamma * s.step))
        rate = h.lr * sqrt(1 - beta2**s.step) / (1 - beta1**s.step) / (sqrt(s.exp_avg_sq) + h.eps)
        return p * (1 - h.lr * h.weight_decay) - clip(rate, low, high) * s.exp_avg
