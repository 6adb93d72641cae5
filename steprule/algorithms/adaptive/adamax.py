from __future__ import annotations

from typing import Any, ClassVar

from steprule.algorithms.arguments import PENALTY, KeywordOptions, Number, Params, Ranges, Unpack, usually
from steprule.algorithms.moments import mean_of
from steprule.algorithms.weight_decay import penalized
from steprule.optimizer import SWITCHES, Optimizer
from steprule.rule import abs, maximum

__all__ = ["Adamax"]


class Adamax(Optimizer):
    r"""Adam with the largest recent gradient in place of the root mean square.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        u_t &= \max(\beta_2 u_{t-1},\ |g_t| + \epsilon) \\
        \theta_t &= \theta_{t-1} - \frac{\gamma}{1 - \beta_1^t} \, \frac{m_t}{u_t}

    `Adam: A Method for Stochastic Optimization <https://arxiv.org/abs/1412.6980>`_, Kingma and Ba, 2015, section 7.

    Choose it when rare large gradients make Adam's steps jump: no step is ever larger than the rate.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate: the largest step in the parameter's own unit; usually 1e-4 to 1e-2.
        betas (tuple of two floats): how much of the running mean and of the running maximum is kept from step to
            step, without unit; usually 0.9 and 0.99 to 0.9999.
        eps (float): added to the gradient's absolute value, in its unit; usually 1e-10 to 1e-6.
        weight_decay (float): strength of the L2 penalty, in units of the loss over the parameter squared; 0, or
            1e-6 to 1e-2.
        foreach (bool, optional): accepted for torch's sake; every step is fused.
        options: ``maximize``, ``differentiable``, ``capturable`` and what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import Adamax
        >>> weight = torch.tensor([1.0, -200.0], requires_grad=True)
        >>> optimizer = Adamax([weight], lr=0.25)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> weight.detach()
        tensor([   0.7500, -199.7500])
    """

    switches = SWITCHES - {"fused"}
    ranges: ClassVar[Ranges] = usually(
        lr="1e-4 to 1e-2", eps="1e-10 to 1e-6", betas=("0.9", "0.99 to 0.9999"), weight_decay=PENALTY
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 2e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 0,
        foreach: bool | None = None,
        **options: Unpack[KeywordOptions],
    ) -> None:
        defaults = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        super().__init__(params, defaults, foreach=foreach, **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        beta1, beta2 = h.betas
        g = penalized(g, p, h)
        s.exp_avg = mean_of(s.exp_avg, g, beta1)
        s.exp_inf = maximum(beta2 * s.exp_inf, abs(g) + h.eps)
        return p - h.lr / (1 - beta1**s.step) * s.exp_avg / s.exp_inf
