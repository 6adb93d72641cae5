from __future__ import annotations

from typing import Any, ClassVar

from steprule.algorithms.arguments import Number, Options, Params, Range, Ranges, Slots, Unpack, usually
from steprule.algorithms.moments import mean_of
from steprule.optimizer import Optimizer
from steprule.rule import sign, sqrt

from .estimate import ESTIMATE, estimated

__all__ = ["DAdaptLion"]


class DAdaptLion(Optimizer):
    r"""Lion that finds its rate, by a lower bound of how far the solution is.

    .. math::
        u_t &= \operatorname{sign}(\beta_1 m_{t-1} + (1 - \beta_1) g_t), \qquad
        m_t = \beta_2 m_{t-1} + (1 - \beta_2) \gamma d_t g_t \\
        r_t &= \sqrt{\beta_2}\, r_{t-1} + (1 - \sqrt{\beta_2}) \gamma d_t \langle u_t, s_{t-1} \rangle, \qquad
        s_t = \sqrt{\beta_2}\, s_{t-1} + (1 - \sqrt{\beta_2}) \gamma d_t u_t \\
        d_{t+1} &= \max\left(d_t, \frac{r_t}{(1 - \sqrt{\beta_2}) \lVert s_t \rVert_1}\right) \\
        \theta_t &= (1 - \gamma d_t \lambda)\, \theta_{t-1} - \gamma d_t u_t

    The estimate :math:`d` is one number of the whole optimizer, and groups differ in their rates as factors of it.
    `Learning-Rate-Free Learning by D-Adaptation <https://arxiv.org/abs/2301.07733>`_, Defazio and Mishchenko, 2023,
    in the form of its authors' code.

    Choose it where Lion is wanted and there is no time to tune the rate; its authors call it experimental.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): a factor of the rate that is found: 1, or a schedule up to 1; usually 1.
        betas (tuple of two floats): how much of the momentum counts in the direction, and how much of it is
            kept from step to step, without unit; usually 0.9 to 0.95 and 0.98 to 0.99.
        weight_decay (float): the part of the parameter lost at each step, over the rate that is found; usually
            0 to 1.
        d0 (float): the first estimate of the distance, in the parameter's own unit: small; usually 1e-6 to
            1e-4.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import DAdaptLion
        >>> weight = torch.tensor([1.0, -200.0], requires_grad=True)
        >>> optimizer = DAdaptLion([weight])
        >>> for _ in range(300):
        ...     optimizer.zero_grad()
        ...     weight.square().sum().backward()
        ...     optimizer.step()
        >>> bool(optimizer.state[weight]["d"] > 0.1)  # from a millionth
        True
    """

    slots: ClassVar[Slots] = ESTIMATE
    ranges: ClassVar[Ranges] = usually(
        lr="1", betas=("0.9 to 0.95", "0.98 to 0.99"), weight_decay="0 to 1", d0=Range(above=0, usual="1e-6 to 1e-4")
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1.0,
        betas: tuple[Number, Number] = (0.9, 0.99),
        weight_decay: Number = 0,
        d0: Number = 1e-6,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, weight_decay=weight_decay, d0=d0), **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        (beta1, beta2), kept = h.betas, sqrt(h.betas[1])
        rate = s.d * h.lr
        u = sign(mean_of(s.exp_avg, g, beta1))
        s.exp_avg = beta2 * s.exp_avg + (1 - beta2) * rate * g
        gained = rate * u * s.s
        s.s = kept * s.s + (1 - kept) * rate * u
        estimated(s, kept, gained, s.s)
        return p * (1 - rate * h.weight_decay) - rate * u
