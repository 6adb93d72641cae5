from __future__ import annotations

from typing import Any, ClassVar

from steprule.algorithms.arguments import Number, Options, Params, Parts, Ranges, Unpack, usually
from steprule.algorithms.moments import adam_step
from steprule.modifiers.mars import Mars
from steprule.optimizer import Optimizer

__all__ = ["MARS"]


class MARS(Optimizer):
    r"""AdamW on gradients of less variance: each is corrected by its change since the step before.

    .. math::
        c_t &= g_t + \gamma_m \frac{\beta_1}{1 - \beta_1} (g_t - g_{t-1}), \qquad
        \hat c_t = c_t / \max(1, \lVert c_t \rVert) \\
        \theta_t &= (1 - \gamma\lambda)\, \theta_{t-1} - \gamma \,
            \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    with :math:`\gamma_m` the argument ``gamma`` and the moments :math:`m` and :math:`v` of :class:`Adam`, of
    :math:`\hat c`: :class:`steprule.modifiers.Mars` around AdamW, over parameters of all shapes. `MARS: Unleashing
    the Power of Variance Reduction for Training Large Models <https://arxiv.org/abs/2411.10438>`_, Yuan et al.,
    2024, in the approximate form, which takes the gradient of each batch once.

    Choose it for the pretraining of language models with large batches.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate: the size of a step in the parameter's own unit; usually 1e-4
            to 1e-2.
        betas (tuple of two floats): how much of the running means of the gradient and of its square is kept
            from step to step, without unit; usually 0.95 and 0.99.
        eps (float): added to the denominator, in the gradient's unit; usually 1e-10 to 1e-6.
        weight_decay (float): the part of the parameter lost at each step, over the rate: in units of one over
            the rate; usually 0 to 0.3.
        gamma (float): how much the change counts, without unit; usually 0.01 to 0.05.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import MARS
        >>> weight = torch.tensor([1.0, -200.0], requires_grad=True)
        >>> optimizer = MARS([weight], lr=0.25)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> weight.detach()
        tensor([   0.7500, -199.7500])
    """

    ranges: ClassVar[Ranges] = usually(
        lr="1e-4 to 1e-2", betas=("0.95", "0.99"), eps="1e-10 to 1e-6", weight_decay="0 to 0.3", gamma="0.01 to 0.05"
    )
    parts: ClassVar[Parts] = (Mars().within(beta1=lambda s, h: h.betas[0]),)

    def __init__(
        self,
        params: Params,
        lr: Number = 3e-3,
        betas: tuple[Number, Number] = (0.95, 0.99),
        eps: Number = 1e-8,
        weight_decay: Number = 0,
        gamma: Number = 0.025,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, gamma=gamma), **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        return p * (1 - h.lr * h.weight_decay) - adam_step(g, s, h, h.lr)
