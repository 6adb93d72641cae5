from __future__ import annotations

from typing import Any, ClassVar

from steprule.algorithms.arguments import Choice, Number, Options, Params, Range, Ranges, Unpack, usually
from steprule.algorithms.moments import mean_of
from steprule.optimizer import Optimizer
from steprule.rule import clip, given, maximum, where

__all__ = ["Sophia"]


class Sophia(Optimizer):
    r"""Momentum divided by an estimate of the Hessian's diagonal, with every coordinate held to the rate.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        h_t &= \beta_2 h_{t-1} + (1 - \beta_2) \hat h_t \quad\text{in the first of every } k \text{ steps} \\
        \theta_t &= (1 - \gamma\lambda)\, \theta_{t-1}
            - \gamma \operatorname{clip}\left(m_t / \max(\rho h_t, \epsilon),\ 1\right)

    The estimate :math:`\hat h` is given, as ``optimizer.step(inputs={"hessian": {p: estimate for p in ...}})``, by
    the Gauss-Newton-Bartlett estimator (the squared gradient of a loss whose labels are drawn from the model, times
    the number of labels) or by Hutchinson's: ``hessian="given"``. It is looked at in the first of every ``k``
    steps; in the others the last one may be given again. ``hessian="squared_gradient"`` takes the square of the
    gradient itself, times ``bs``, which is the empirical Fisher matrix and needs nothing. `Sophia: A Scalable
    Stochastic Second-order Optimizer for Language Model Pre-training <https://arxiv.org/abs/2305.14342>`_, Liu et
    al., 2023.

    Choose it for the pretraining of language models, where an estimate every ten steps is a small part of the cost.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate: the size of a step in the parameter's own unit; usually 1e-5
            to 1e-3.
        betas (tuple of two floats): how much of the running means of the gradient and of the estimate is kept
            from step to step, without unit; usually 0.965 and 0.99.
        rho (float): how much of the estimate counts, without unit: such that some coordinates are held; usually
            0.01 to 0.1.
        weight_decay (float): the part of the parameter lost at each step, over the rate: in units of one over
            the rate; usually 0 to 0.3.
        k (int): in the first of how many steps the estimate is looked at; usually 10.
        hessian (str): ``"squared_gradient"`` or ``"given"``.
        bs (int): the number of labels in a batch, over which the loss is a mean; usually the tokens of a batch.
        eps (float): the least denominator, in the gradient's unit; usually 1e-15 to 1e-12.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import Sophia
        >>> weight = torch.tensor([1.0, -2.0], requires_grad=True)
        >>> optimizer = Sophia([weight], lr=0.02, weight_decay=0, hessian="given")
        >>> for _ in range(300):
        ...     optimizer.zero_grad()
        ...     weight.square().sum().backward()
        ...     optimizer.step(inputs={"hessian": {weight: torch.full((2,), 2.0)}})
        >>> bool(weight.abs().max() < 0.1)
        True
    """

    ranges: ClassVar[Ranges] = usually(
        lr="1e-5 to 1e-3",
        betas=("0.965", "0.99"),
        rho="0.01 to 0.1",
        weight_decay="0 to 0.3",
        k=Range(least=1, usual="10"),
        hessian=Choice(choices=("squared_gradient", "given")),
        bs=Range(above=0, usual="the tokens of a batch"),
        eps="1e-15 to 1e-12",
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-4,
        betas: tuple[Number, Number] = (0.965, 0.99),
        rho: Number = 0.04,
        weight_decay: Number = 0.1,
        k: Number = 10,
        hessian: str = "squared_gradient",
        bs: Number = 5120,
        eps: Number = 1e-15,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            dict(lr=lr, betas=betas, rho=rho, weight_decay=weight_decay, k=k, hessian=hessian, bs=bs, eps=eps),
            **options,
        )

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        beta1, beta2 = h.betas
        estimate = given("hessian") if h.hessian == "given" else h.bs * g * g
        s.exp_avg = mean_of(s.exp_avg, g, beta1)
        s.hessian = where((s.step - 1) % h.k == 0, mean_of(s.hessian, estimate, beta2), s.hessian)
        u = clip(s.exp_avg / maximum(h.rho * s.hessian, h.eps), -1.0, 1.0)
        return p * (1 - h.lr * h.weight_decay) - h.lr * u
