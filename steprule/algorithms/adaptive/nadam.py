from __future__ import annotations

from typing import Any, ClassVar

from steprule.algorithms.arguments import PENALTY, Number, Options, Params, Ranges, Slots, Unpack, usually
from steprule.algorithms.moments import mean_of, mean_square_of
from steprule.algorithms.weight_decay import decayed
from steprule.optimizer import SWITCHES, Optimizer
from steprule.rule import scalar, sqrt, stored

__all__ = ["NAdam"]


class NAdam(Optimizer):
    r"""Adam with Nesterov's look ahead, and a momentum that warms up.

    .. math::
        \mu_t &= \beta_1 \left(1 - \tfrac12 \, 0.96^{t \psi}\right) \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        \hat m_t &= \frac{(1 - \mu_t)\, g_t}{1 - \prod_{i \le t} \mu_i}
            + \frac{\mu_{t+1}\, m_t}{1 - \prod_{i \le t+1} \mu_i} \\
        \theta_t &= \theta_{t-1} - \gamma \, \frac{\hat m_t}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    `Incorporating Nesterov Momentum into Adam <https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ>`_, Dozat, 2016.

    Choose it where Adam is used and gradients are not too noisy: it often needs somewhat fewer steps.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate: the size of a step in the parameter's own unit; usually 1e-5 to
            1e-2.
        betas (tuple of two floats): how much of the running means of the gradient and of its square is kept from step
            to step, without unit; usually 0.9 and 0.99 to 0.9999.
        eps (float): added to the denominator, in the gradient's unit; usually 1e-10 to 1e-6.
        weight_decay (float): strength of the L2 penalty, in units of the loss over the parameter squared (decoupled:
            the part lost at each step, over the rate); 0, or 1e-6 to 1e-2.
        momentum_decay (float): how fast the momentum warms up, in units of one over a step; usually 0.004.
        decoupled_weight_decay (bool): shrink the parameter itself, as :class:`AdamW` does.
        options: ``foreach``, ``maximize``, ``capturable``, ``differentiable`` and what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import NAdam
        >>> weight = torch.tensor([1.0, -2.0], requires_grad=True)
        >>> optimizer = NAdam([weight], lr=0.1)
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     weight.square().sum().backward()
        ...     optimizer.step()
        >>> bool(weight.abs().max() < 0.01)
        True
    """

    switches = SWITCHES - {"fused"}
    slots: ClassVar[Slots] = {"mu_product": scalar(1.0)}
    ranges: ClassVar[Ranges] = usually(
        lr="1e-5 to 1e-2",
        eps="1e-10 to 1e-6",
        betas=("0.9", "0.99 to 0.9999"),
        weight_decay=PENALTY,
        momentum_decay="0.004",
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 2e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 0,
        momentum_decay: Number = 4e-3,
        decoupled_weight_decay: bool = False,
        **options: Unpack[Options],
    ) -> None:
        defaults = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, momentum_decay=momentum_decay)
        super().__init__(params, dict(defaults, decoupled_weight_decay=decoupled_weight_decay), **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        beta1, beta2 = h.betas
        p, g = decayed(p, g, h)
        mu, mu_next = (beta1 * (1 - 0.5 * 0.96 ** (step * h.momentum_decay)) for step in (s.step, s.step + 1))
        product = s.mu_product = stored(s.mu_product * stored(mu))
        s.exp_avg = mean_of(s.exp_avg, g, beta1)
        s.exp_avg_sq = mean_square_of(s.exp_avg_sq, g, beta2)
        denominator = sqrt(s.exp_avg_sq * (1 / (1 - beta2**s.step))) + h.eps
        of_gradient = h.lr * (1 - mu) / (1 - product)
        of_mean = h.lr * mu_next / (1 - product * mu_next)
        return p - (of_gradient * g + of_mean * s.exp_avg) / denominator
