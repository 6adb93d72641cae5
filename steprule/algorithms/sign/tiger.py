from __future__ import annotations

from typing import Any, ClassVar

from steprule.algorithms.arguments import Number, Options, Params, Range, Ranges, Unpack, usually
from steprule.algorithms.moments import sign_of_mean
from steprule.optimizer import Optimizer

__all__ = ["Tiger"]


class Tiger(Optimizer):
    r"""Every coordinate moves by the rate, against the sign of a long running mean, as Lion would with one beta.

    .. math::
        m_t &= \beta m_{t-1} + (1 - \beta) g_t \\
        \theta_t &= (1 - \gamma\lambda)\, \theta_{t-1} - \gamma \operatorname{sign}(m_t)

    The rule of :class:`Signum`, with Lion's memory and a decay. `Tiger: A Tight-fisted Optimizer
    <https://github.com/bojone/tiger>`_, Su, 2023.

    Choose it in place of AdamW where memory is short: one slot; against AdamW's, take a rate 3 to 10 times smaller.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate: the size of every step in the parameter's own unit; usually
            1e-5 to 1e-3.
        beta (float): how much of the running mean is kept from step to step, without unit; usually 0.945 to
            0.965.
        weight_decay (float): the part of the parameter lost at each step, over the rate: in units of one over
            the rate; usually 0 to 0.1.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import Tiger
        >>> weight = torch.tensor([1.0, -200.0], requires_grad=True)
        >>> optimizer = Tiger([weight], lr=0.25, weight_decay=0)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> weight.detach()
        tensor([   0.7500, -199.7500])
    """

    ranges: ClassVar[Ranges] = usually(
        lr="1e-5 to 1e-3", beta=Range(least=0, below=1, usual="0.945 to 0.965"), weight_decay="0 to 0.1"
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-3,
        beta: Number = 0.965,
        weight_decay: Number = 0.01,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, dict(lr=lr, beta=beta, weight_decay=weight_decay), **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        return p * (1 - h.lr * h.weight_decay) - h.lr * sign_of_mean(g, s, h.beta)
