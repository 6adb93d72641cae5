from __future__ import annotations

from typing import Any, ClassVar

from steprule.algorithms.arguments import Number, Options, Params, Ranges, Unpack, usually
from steprule.algorithms.moments import corrected_root, mean_of, mean_square_of
from steprule.optimizer import Optimizer

__all__ = ["AdaBelief"]


class AdaBelief(Optimizer):
    r"""Adam whose step is large where the gradient is as its running mean foretold, and small where it is not.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        s_t &= \beta_2 s_{t-1} + (1 - \beta_2) (g_t - m_t)^2 + \epsilon \\
        \theta_t &= (1 - \gamma\lambda)\, \theta_{t-1} - \gamma \,
            \frac{m_t / (1 - \beta_1^t)}{\sqrt{s_t / (1 - \beta_2^t)} + \epsilon}

    `AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients
    <https://arxiv.org/abs/2010.07468>`_, Zhuang et al., 2020, without the rectification that its code adds.

    Choose it for convolutional networks and GANs, where it is said to generalize like SGD at the speed of Adam.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate: the size of a step in the parameter's own unit; usually 1e-5
            to 1e-2.
        betas (tuple of two floats): how much of the running means of the gradient and of the square of its
            deviation is kept from step to step, without unit; usually 0.9 and 0.99 to 0.9999.
        eps (float): added to the mean square and to the denominator, in the gradient's unit squared and in its
            unit; usually 1e-16 to 1e-8.
        weight_decay (float): the part of the parameter lost at each step, over the rate: in units of one over
            the rate; usually 0 to 0.3.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import AdaBelief
        >>> weight = torch.tensor([1.0, -2.0], requires_grad=True)
        >>> optimizer = AdaBelief([weight], lr=0.1)
        >>> for _ in range(300):
        ...     optimizer.zero_grad()
        ...     weight.square().sum().backward()
        ...     optimizer.step()
        >>> bool(weight.abs().max() < 0.01)
        True
    """

    ranges: ClassVar[Ranges] = usually(
        lr="1e-5 to 1e-2", betas=("0.9", "0.99 to 0.9999"), eps="1e-16 to 1e-8", weight_decay="0 to 0.3"
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-16,
        weight_decay: Number = 0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay), **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        beta1, beta2 = h.betas
        s.exp_avg = mean_of(s.exp_avg, g, beta1)
        s.exp_avg_var = mean_square_of(s.exp_avg_var, g - s.exp_avg, beta2) + h.eps
        u = s.exp_avg / (1 - beta1**s.step) / corrected_root(s.exp_avg_var, beta2, s, h)
        return p * (1 - h.lr * h.weight_decay) - h.lr * u
