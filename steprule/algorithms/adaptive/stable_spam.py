from __future__ import annotations

from typing import Any, ClassVar

from steprule.algorithms.arguments import Number, Options, Params, Range, Ranges, Slots, Unpack, usually
from steprule.algorithms.moments import mean_of, mean_square_of
from steprule.optimizer import Optimizer
from steprule.rule import abs, max_abs, norm, scalar, sqrt, where

__all__ = ["StableSPAM"]


class StableSPAM(Optimizer):
    r"""Adam on gradients without spikes, in size as in norm, whose moments begin anew now and then.

    .. math::
        m^{\infty}_t &= \theta\, m^{\infty}_{t-1} + (1 - \theta) \max_i |g_{t,i}|, \qquad
        \hat m^\infty_t = m^\infty_t / (1 - \theta^t) \\
        g_t &\leftarrow g_t\, \hat m^\infty_t / \max_i |g_{t,i}| \quad\text{where } |g_t| > \hat m^\infty_t \\
        g_t &\leftarrow \frac{g_t}{\lVert g_t \rVert} \cdot
            \frac{n_t / (1 - \gamma_1^t)}{\sqrt{n^2_t / (1 - \gamma_2^t)} + \epsilon}

    with the running means :math:`n` and :math:`n^2` of :math:`\lVert g \rVert` and its square, over each parameter;
    then the step of :class:`AdamW`, whose moments begin anew every ``update_proj_gap`` steps. `Stable-SPAM: How to
    Train in 4-Bit More Stably than 16-Bit Adam <https://arxiv.org/abs/2502.17055>`_, Huang et al., 2025.

    Choose it for training in few bits, and where gradients have spikes.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate: the size of a step in the parameter's own unit; usually 1e-4
            to 1e-2.
        betas (tuple of two floats): how much of the running means of the gradient and of its square is kept
            from step to step, without unit; usually 0.9 and 0.99 to 0.999.
        gamma1 (float): how much of the running norm is kept from step to step, without unit; usually 0.7 to
            0.85.
        gamma2 (float): the same of that of its square; usually 0.9 to 0.999.
        theta (float): the same of that of the largest element; usually 0.999.
        weight_decay (float): the part of the parameter lost at each step, over the rate: in units of one over
            the rate; usually 0 to 0.3.
        update_proj_gap (int): after how many steps moments begin anew; usually 500 to 1000.
        eps (float): added to the denominator, in the gradient's unit; usually 1e-10 to 1e-6.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import StableSPAM
        >>> weight = torch.tensor([1.0, -200.0], requires_grad=True)
        >>> optimizer = StableSPAM([weight], lr=0.25)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> weight.detach()
        tensor([   0.7500, -199.7500])
    """

    slots: ClassVar[Slots] = {"m_max_t": scalar(), "m_norm_t": scalar(), "v_norm_t": scalar()}
    ranges: ClassVar[Ranges] = usually(
        lr="1e-4 to 1e-2",
        betas=("0.9", "0.99 to 0.999"),
        gamma1=Range(least=0, below=1, usual="0.7 to 0.85"),
        gamma2=Range(least=0, below=1, usual="0.9 to 0.999"),
        theta=Range(least=0, below=1, usual="0.999"),
        weight_decay="0 to 0.3",
        update_proj_gap=Range(least=1, usual="500 to 1000"),
        eps="1e-10 to 1e-6",
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        gamma1: Number = 0.7,
        gamma2: Number = 0.9,
        theta: Number = 0.999,
        weight_decay: Number = 0,
        update_proj_gap: Number = 1000,
        eps: Number = 1e-8,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            dict(
                lr=lr,
                betas=betas,
                gamma1=gamma1,
                gamma2=gamma2,
                theta=theta,
                weight_decay=weight_decay,
                update_proj_gap=update_proj_gap,
                eps=eps,
            ),
            **options,
        )

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        beta1, beta2 = h.betas
        largest = max_abs(g)
        s.m_max_t = mean_of(s.m_max_t, largest, h.theta)
        most = s.m_max_t / (1 - h.theta**s.step)
        cut = where(abs(g) > most, g / largest * most, g)
        size = norm(cut)
        s.m_norm_t = mean_of(s.m_norm_t, size, h.gamma1)
        s.v_norm_t = mean_of(s.v_norm_t, size * size, h.gamma2)
        even = s.m_norm_t / (1 - h.gamma1**s.step) / (sqrt(s.v_norm_t / (1 - h.gamma2**s.step)) + h.eps)
        g = where(size > 0, cut / size * even, 0.0)
        anew, passed = s.step % h.update_proj_gap == 0, s.step % h.update_proj_gap + 1
        passed = where(s.step < h.update_proj_gap, s.step, passed)
        s.exp_avg = mean_of(where(anew, 0.0, s.exp_avg), g, beta1)
        s.exp_avg_sq = mean_square_of(where(anew, 0.0, s.exp_avg_sq), g, beta2)
        denominator = sqrt(s.exp_avg_sq) * (1 / sqrt(1 - beta2**passed)) + h.eps
        return p * (1 - h.lr * h.weight_decay) - h.lr / (1 - beta1**passed) * s.exp_avg / denominator
