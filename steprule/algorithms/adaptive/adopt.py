from __future__ import annotations

from typing import Any, ClassVar

from steprule.algorithms.arguments import PENALTY, Number, Options, Params, Ranges, Unpack, usually
from steprule.algorithms.moments import mean_of, mean_square_of
from steprule.algorithms.weight_decay import decayed
from steprule.optimizer import Optimizer
from steprule.rule import clip, maximum, sqrt, where

__all__ = ["ADOPT"]


class ADOPT(Optimizer):
    r"""Adam that divides each gradient by the size of those before it, and converges with any second beta.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1)
            \operatorname{clip}\left(\frac{g_t}{\max(\sqrt{v_{t-1}}, \epsilon)},\ (t-1)^{1/4}\right) \\
        \theta_t &= \theta_{t-1} - \gamma m_t, \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2

    The first step takes :math:`v_1 = g_1^2` and leaves the parameter as it is. `ADOPT: Modified Adam Can Converge
    with Any β2 with the Optimal Rate <https://arxiv.org/abs/2411.02853>`_, Taniguchi et al., 2024.

    Choose it in place of Adam where training is unstable, or where the second beta had to be tuned.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate: the size of a step in the parameter's own unit; usually 1e-5
            to 1e-2.
        betas (tuple of two floats): how much of the running means of the gradient and of its square is kept
            from step to step, without unit; usually 0.9 and 0.99 to 0.9999.
        eps (float): the least denominator, in the gradient's unit; usually 1e-8 to 1e-6.
        weight_decay (float): strength of the L2 penalty, in units of the loss over the parameter squared
            (decoupled: the part lost at each step, over the rate); 0, or 1e-6 to 1e-2.
        decoupled_weight_decay (bool): shrink the parameter itself, as :class:`AdamW` does.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import ADOPT
        >>> weight = torch.tensor([1.0, -200.0], requires_grad=True)
        >>> optimizer = ADOPT([weight], lr=0.25)
        >>> for _ in range(2):
        ...     optimizer.zero_grad()
        ...     weight.square().sum().backward()
        ...     optimizer.step()
        >>> weight.detach()  # the first step only looks
        tensor([   0.9750, -199.9750])
    """

    ranges: ClassVar[Ranges] = usually(
        lr="1e-5 to 1e-2", betas=("0.9", "0.99 to 0.9999"), eps="1e-8 to 1e-6", weight_decay=PENALTY
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.9999),
        eps: Number = 1e-6,
        weight_decay: Number = 0,
        decoupled_weight_decay: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, decoupled_weight_decay=decoupled_weight_decay),
            **options,
        )

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        beta1, beta2 = h.betas
        shrunk, g = decayed(p, g, h)
        most = (s.step - 1) ** 0.25
        u = clip(g / maximum(sqrt(s.exp_avg_sq), h.eps), -most, most)
        s.exp_avg = where(s.is_new, 0.0, mean_of(s.exp_avg, u, beta1))
        s.exp_avg_sq = where(s.is_new, g * g, mean_square_of(s.exp_avg_sq, g, beta2))
        return where(s.is_new, p, shrunk - h.lr * s.exp_avg)
