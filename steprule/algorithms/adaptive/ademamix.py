from __future__ import annotations

from typing import Any, ClassVar

from steprule.algorithms.arguments import Number, Options, Params, Range, Ranges, Unpack, usually
from steprule.algorithms.moments import corrected_root, mean_of, mean_square_of, slowing
from steprule.optimizer import Optimizer
from steprule.rule import minimum

__all__ = ["AdEMAMix"]


class AdEMAMix(Optimizer):
    r"""Adam with a second, much slower running mean of the gradient beside the fast one.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad
        n_t = \beta_3 n_{t-1} + (1 - \beta_3) g_t \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        \theta_t &= (1 - \gamma\lambda)\, \theta_{t-1} - \gamma \,
            \frac{m_t / (1 - \beta_1^t) + \alpha n_t}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    Over ``alpha_warmup`` steps :math:`\alpha` grows from 0, and over ``beta3_warmup`` steps the half-life of
    :math:`\beta_3` from that of :math:`\beta_1`, both in a straight line. `The AdEMAMix Optimizer: Better, Faster,
    Older <https://arxiv.org/abs/2409.03137>`_, Pagliardini et al., 2024.

    Choose it for the pretraining of language models over many steps: it keeps learning from gradients of thousands
    of steps ago. Give both warm-ups the length of the training.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate: the size of a step in the parameter's own unit; usually 1e-5
            to 1e-2.
        betas (tuple of three floats): how much of the fast running mean of the gradient, of that of its square,
            and of the slow one is kept from step to step, without unit; usually 0.9 and 0.99 to 0.999 and 0.999
            to 0.9999.
        alpha (float): how much the slow mean counts, without unit; usually 2 to 8.
        beta3_warmup (int, optional): steps over which the slow mean slows down; None means none; usually the
            length of the training.
        alpha_warmup (int, optional): steps over which it begins to count; None means none; usually the length
            of the training.
        eps (float): added to the denominator, in the gradient's unit; usually 1e-10 to 1e-6.
        weight_decay (float): the part of the parameter lost at each step, over the rate: in units of one over
            the rate; usually 0 to 0.3.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import AdEMAMix
        >>> weight = torch.tensor([1.0, -200.0], requires_grad=True)
        >>> optimizer = AdEMAMix([weight], lr=0.25)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> weight.detach()  # the slow mean adds a five thousandth
        tensor([   0.7499, -199.7500])
    """

    ranges: ClassVar[Ranges] = usually(
        lr="1e-5 to 1e-2",
        betas=("0.9", "0.99 to 0.999", "0.999 to 0.9999"),
        alpha="2 to 8",
        beta3_warmup=Range(least=1, optional=True, usual="the length of the training"),
        alpha_warmup=Range(least=1, optional=True, usual="the length of the training"),
        eps="1e-10 to 1e-6",
        weight_decay="0 to 0.3",
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-3,
        betas: tuple[Number, Number, Number] = (0.9, 0.999, 0.9999),
        alpha: Number = 2.0,
        beta3_warmup: Number | None = None,
        alpha_warmup: Number | None = None,
        eps: Number = 1e-8,
        weight_decay: Number = 0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            dict(
                lr=lr,
                betas=betas,
                alpha=alpha,
                beta3_warmup=beta3_warmup,
                alpha_warmup=alpha_warmup,
                eps=eps,
                weight_decay=weight_decay,
            ),
            **options,
        )

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        beta1, beta2, beta3 = h.betas
        alpha = h.alpha * minimum(s.step / h.alpha_warmup, 1.0) if h.alpha_warmup else h.alpha
        if h.beta3_warmup:
            beta3 = slowing(beta1, beta3, s.step / h.beta3_warmup)
        s.exp_avg_fast = mean_of(s.exp_avg_fast, g, beta1)
        s.exp_avg_slow = mean_of(s.exp_avg_slow, g, beta3)
        s.exp_avg_sq = mean_square_of(s.exp_avg_sq, g, beta2)
        u = (s.exp_avg_fast / (1 - beta1**s.step) + alpha * s.exp_avg_slow) / corrected_root(s.exp_avg_sq, beta2, s, h)
        return p * (1 - h.lr * h.weight_decay) - h.lr * u
