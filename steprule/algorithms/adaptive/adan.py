from __future__ import annotations

from typing import Any, ClassVar

from steprule.algorithms.arguments import Number, Options, Params, Ranges, Unpack, usually
from steprule.algorithms.moments import corrected_root, mean_of, mean_square_of
from steprule.optimizer import Optimizer
from steprule.rule import where

__all__ = ["Adan"]


class Adan(Optimizer):
    r"""Adam with Nesterov's look ahead by the change of the gradient, of which it keeps a running mean.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) (g_t - g_{t-1}) \\
        n_t &= \beta_3 n_{t-1} + (1 - \beta_3) (g_t + \beta_2 (g_t - g_{t-1}))^2 \\
        \theta_t &= \left(\theta_{t-1} - \gamma \,
            \frac{m_t / (1 - \beta_1^t) + \beta_2 v_t / (1 - \beta_2^t)}{\sqrt{n_t / (1 - \beta_3^t)} + \epsilon}\right)
            / (1 + \gamma\lambda)

    with :math:`g_0 = g_1`. The betas are what is kept; the paper's are what is replaced. `Adan: Adaptive Nesterov
    Momentum Algorithm for Faster Optimizing Deep Models <https://arxiv.org/abs/2208.06677>`_, Xie et al., 2022.

    Choose it for vision transformers and diffusion with large batches: it bears rates several times those of AdamW,
    for four slots.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate: the size of a step in the parameter's own unit; usually 1e-4
            to 1e-2.
        betas (tuple of three floats): how much of the running means of the gradient, of its change and of its
            square is kept from step to step, without unit; usually 0.98 and 0.92 and 0.99.
        eps (float): added to the denominator, in the gradient's unit; usually 1e-10 to 1e-6.
        weight_decay (float): the part of the parameter lost at each step, over the rate: in units of one over
            the rate; usually 0 to 0.3.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import Adan
        >>> weight = torch.tensor([1.0, -200.0], requires_grad=True)
        >>> optimizer = Adan([weight], lr=0.25)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> weight.detach()
        tensor([   0.7500, -199.7500])
    """

    ranges: ClassVar[Ranges] = usually(
        lr="1e-4 to 1e-2", betas=("0.98", "0.92", "0.99"), eps="1e-10 to 1e-6", weight_decay="0 to 0.3"
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-3,
        betas: tuple[Number, Number, Number] = (0.98, 0.92, 0.99),
        eps: Number = 1e-8,
        weight_decay: Number = 0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay), **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        beta1, beta2, beta3 = h.betas
        change = where(s.is_new, 0.0, g - s.previous_grad)
        s.previous_grad = g
        s.exp_avg = mean_of(s.exp_avg, g, beta1)
        s.exp_avg_diff = mean_of(s.exp_avg_diff, change, beta2)
        s.exp_avg_sq = mean_square_of(s.exp_avg_sq, g + beta2 * change, beta3)
        ahead = s.exp_avg / (1 - beta1**s.step) + beta2 / (1 - beta2**s.step) * s.exp_avg_diff
        return (p - h.lr * ahead / corrected_root(s.exp_avg_sq, beta3, s, h)) / (1 + h.lr * h.weight_decay)
