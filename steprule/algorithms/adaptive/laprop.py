from __future__ import annotations

from typing import Any, ClassVar

from steprule.algorithms.arguments import Number, Options, Params, Ranges, Unpack, usually
from steprule.algorithms.moments import corrected_root, mean_of, mean_square_of
from steprule.optimizer import Optimizer

__all__ = ["LaProp"]


class LaProp(Optimizer):
    r"""Adam whose momentum is of gradients that have been divided by their size already.

    .. math::
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) \frac{g_t}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon} \\
        \theta_t &= (1 - \gamma\lambda)\, \theta_{t-1} - \gamma \, m_t / (1 - \beta_1^t)

    The rate multiplies the whole momentum, so that a new rate takes effect at once, as in the paper's algorithm;
    its code keeps the rates of former steps in the momentum. `LaProp: Separating Momentum and Adaptivity in Adam
    <https://arxiv.org/abs/2002.04839>`_, Ziyin et al., 2020.

    Choose it in place of Adam with noisy gradients or a small second beta: no step is larger than the gradients of
    the moment allow.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate: the size of a step in the parameter's own unit; usually 1e-5
            to 1e-2.
        betas (tuple of two floats): how much of the running means of the gradient and of its square is kept
            from step to step, without unit; usually 0.8 to 0.95 and 0.9 to 0.999.
        eps (float): added to the denominator, in the gradient's unit; usually 1e-15 to 1e-8.
        weight_decay (float): the part of the parameter lost at each step, over the rate: in units of one over
            the rate; usually 0 to 0.3.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import LaProp
        >>> weight = torch.tensor([1.0, -200.0], requires_grad=True)
        >>> optimizer = LaProp([weight], lr=0.25)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> weight.detach()
        tensor([   0.7500, -199.7500])
    """

    ranges: ClassVar[Ranges] = usually(
        lr="1e-5 to 1e-2", betas=("0.8 to 0.95", "0.9 to 0.999"), eps="1e-15 to 1e-8", weight_decay="0 to 0.3"
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 4e-4,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-15,
        weight_decay: Number = 0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay), **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        beta1, beta2 = h.betas
        s.exp_avg_sq = mean_square_of(s.exp_avg_sq, g, beta2)
        s.exp_avg = mean_of(s.exp_avg, g / corrected_root(s.exp_avg_sq, beta2, s, h), beta1)
        return p * (1 - h.lr * h.weight_decay) - h.lr / (1 - beta1**s.step) * s.exp_avg
