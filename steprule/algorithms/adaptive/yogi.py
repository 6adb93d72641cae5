from __future__ import annotations

from typing import Any, ClassVar

from steprule.algorithms.arguments import Number, Options, Params, Ranges, Slots, Unpack, usually
from steprule.algorithms.moments import corrected_root, mean_of
from steprule.optimizer import Optimizer
from steprule.rule import array, sign

__all__ = ["Yogi"]


class Yogi(Optimizer):
    r"""Adam whose mean square changes by steps of the gradient's square, and so never falls all at once.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        v_t &= v_{t-1} - (1 - \beta_2) \operatorname{sign}(v_{t-1} - g_t^2) \, g_t^2 \\
        \theta_t &= (1 - \gamma\lambda)\, \theta_{t-1} - \gamma \,
            \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    with :math:`m_0 = v_0` the initial accumulator. `Adaptive Methods for Nonconvex Optimization
    <https://papers.nips.cc/paper/8186-adaptive-methods-for-nonconvex-optimization>`_, Zaheer et al., 2018.

    Choose it in place of Adam where gradients are sparse in time: rare large ones are not forgotten at once. Its
    rate is about ten times Adam's.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate: the size of a step in the parameter's own unit; usually 1e-4
            to 1e-2.
        betas (tuple of two floats): how much of the running means of the gradient and of its square is kept
            from step to step, without unit; usually 0.9 and 0.99 to 0.999.
        eps (float): added to the denominator, in the gradient's unit; usually 1e-8 to 1e-3.
        weight_decay (float): the part of the parameter lost at each step, over the rate: in units of one over
            the rate; usually 0 to 0.3.
        initial_accumulator (float): what both means begin with, in the gradient's unit and its square; usually
            1e-6 to 1e-3.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import Yogi
        >>> weight = torch.tensor([1.0, -2.0], requires_grad=True)
        >>> optimizer = Yogi([weight], lr=0.1)
        >>> for _ in range(300):
        ...     optimizer.zero_grad()
        ...     weight.square().sum().backward()
        ...     optimizer.step()
        >>> bool(weight.abs().max() < 0.01)
        True
    """

    slots: ClassVar[Slots] = {"exp_avg": array("initial_accumulator"), "exp_avg_sq": array("initial_accumulator")}
    ranges: ClassVar[Ranges] = usually(
        lr="1e-4 to 1e-2",
        betas=("0.9", "0.99 to 0.999"),
        eps="1e-8 to 1e-3",
        weight_decay="0 to 0.3",
        initial_accumulator="1e-6 to 1e-3",
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-2,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-3,
        weight_decay: Number = 0,
        initial_accumulator: Number = 1e-6,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, initial_accumulator=initial_accumulator),
            **options,
        )

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        beta1, beta2 = h.betas
        s.exp_avg = mean_of(s.exp_avg, g, beta1)
        s.exp_avg_sq = s.exp_avg_sq - (1 - beta2) * sign(s.exp_avg_sq - g * g) * (g * g)
        u = s.exp_avg / (1 - beta1**s.step) / corrected_root(s.exp_avg_sq, beta2, s, h)
        return p * (1 - h.lr * h.weight_decay) - h.lr * u
