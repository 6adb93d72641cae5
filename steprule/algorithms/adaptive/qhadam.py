from __future__ import annotations

from typing import Any, ClassVar

from steprule.algorithms.arguments import PENALTY, Number, Options, Params, Range, Ranges, Unpack, usually
from steprule.algorithms.weight_decay import decayed
from steprule.optimizer import Optimizer
from steprule.rule import lerp, sqrt

__all__ = ["QHAdam"]


class QHAdam(Optimizer):
    r"""Adam whose means count for a part only, beside the newest gradient and its square.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        \theta_t &= \theta_{t-1} - \gamma \, \frac{(1 - \nu_1) g_t + \nu_1 m_t / (1 - \beta_1^t)}
            {\sqrt{(1 - \nu_2) g_t^2 + \nu_2 v_t / (1 - \beta_2^t)} + \epsilon}

    The state keeps both means as they are corrected. `Quasi-hyperbolic momentum and Adam for deep learning
    <https://arxiv.org/abs/1810.06801>`_, Ma and Yarats, 2019.

    Choose it in place of Adam with a long memory: large betas with ``nus`` of 0.7 and 1 do not overshoot as they
    would alone.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate: the size of a step in the parameter's own unit; usually 1e-5
            to 1e-2.
        betas (tuple of two floats): how much of the running means of the gradient and of its square is kept
            from step to step, without unit; usually 0.9 to 0.999 and 0.99 to 0.999.
        nus (tuple of two floats): how much the means count beside the newest gradient and its square, without
            unit; 1 is Adam; usually 0.7 to 1 and 0.99 to 1.
        eps (float): added to the denominator, in the gradient's unit; usually 1e-10 to 1e-6.
        weight_decay (float): strength of the L2 penalty, in units of the loss over the parameter squared
            (decoupled: the part lost at each step, over the rate); 0, or 1e-6 to 1e-2.
        decoupled_weight_decay (bool): shrink the parameter itself, as :class:`AdamW` does.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import QHAdam
        >>> weight = torch.tensor([1.0, -200.0], requires_grad=True)
        >>> optimizer = QHAdam([weight], lr=0.25)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> weight.detach()
        tensor([   0.7500, -199.7500])
    """

    ranges: ClassVar[Ranges] = usually(
        lr="1e-5 to 1e-2",
        betas=("0.9 to 0.999", "0.99 to 0.999"),
        nus=(Range(least=0, usual="0.7 to 1"), Range(least=0, usual="0.99 to 1")),
        eps="1e-10 to 1e-6",
        weight_decay=PENALTY,
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        nus: tuple[Number, Number] = (1.0, 1.0),
        eps: Number = 1e-8,
        weight_decay: Number = 0,
        decoupled_weight_decay: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            dict(
                lr=lr,
                betas=betas,
                nus=nus,
                eps=eps,
                weight_decay=weight_decay,
                decoupled_weight_decay=decoupled_weight_decay,
            ),
            **options,
        )

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        (beta1, beta2), (nu1, nu2) = h.betas, h.nus
        p, g = decayed(p, g, h)
        s.exp_avg = lerp(s.exp_avg, g, (1 - beta1) / (1 - beta1**s.step))
        s.exp_avg_sq = lerp(s.exp_avg_sq, g * g, (1 - beta2) / (1 - beta2**s.step))
        return p - h.lr * lerp(g, s.exp_avg, nu1) / (sqrt(lerp(g * g, s.exp_avg_sq, nu2)) + h.eps)
