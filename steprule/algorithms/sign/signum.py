from __future__ import annotations

from typing import Any, ClassVar

from steprule.algorithms.arguments import Number, Options, Params, Range, Ranges, Unpack, usually
from steprule.algorithms.moments import sign_of_mean
from steprule.optimizer import Optimizer

__all__ = ["Signum"]


class Signum(Optimizer):
    r"""Every coordinate moves by the rate, against the sign of the gradient's running mean.

    .. math::
        m_t &= \mu m_{t-1} + (1 - \mu) g_t \\
        \theta_t &= (1 - \gamma\lambda)\, \theta_{t-1} - \gamma \operatorname{sign}(m_t)

    Without momentum it is signSGD. `signSGD: Compressed Optimisation for Non-Convex Problems
    <https://arxiv.org/abs/1802.04434>`_, Bernstein et al., 2018.

    Choose it as the simplest of its kind: one slot, or none without momentum; Lion leans on the newest gradient
    besides.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate: the size of every step in the parameter's own unit; usually
            1e-5 to 1e-3.
        momentum (float): how much of the running mean is kept from step to step, without unit; 0, or 0.9 to
            0.99.
        weight_decay (float): the part of the parameter lost at each step, over the rate: in units of one over
            the rate; usually 0 to 1.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import Signum
        >>> weight = torch.tensor([1.0, -200.0], requires_grad=True)
        >>> optimizer = Signum([weight], lr=0.25)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> weight.detach()
        tensor([   0.7500, -199.7500])
    """

    ranges: ClassVar[Ranges] = usually(
        lr="1e-5 to 1e-3", momentum=Range(least=0, below=1, usual="0, or 0.9 to 0.99"), weight_decay="0 to 1"
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-3,
        momentum: Number = 0.9,
        weight_decay: Number = 0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay), **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        return p * (1 - h.lr * h.weight_decay) - h.lr * sign_of_mean(g, s, h.momentum)
