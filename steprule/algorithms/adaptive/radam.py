from __future__ import annotations

from typing import Any, ClassVar

from steprule.algorithms.arguments import PENALTY, Number, Options, Params, Ranges, Unpack, usually
from steprule.algorithms.moments import radam_step
from steprule.algorithms.weight_decay import decayed
from steprule.optimizer import SWITCHES, Optimizer

__all__ = ["RAdam"]


class RAdam(Optimizer):
    r"""Adam that waits to divide by the gradient's size until it has seen enough gradients to know it.

    .. math::
        \rho_\infty &= 2 / (1 - \beta_2) - 1, \qquad
        \rho_t = \rho_\infty - 2 t \beta_2^t / (1 - \beta_2^t) \\
        r_t &= \sqrt{\frac{(\rho_t - 4)(\rho_t - 2) \rho_\infty}{(\rho_\infty - 4)(\rho_\infty - 2) \rho_t}} \\
        \theta_t &= \theta_{t-1} - \gamma \, \frac{m_t}{1 - \beta_1^t} \begin{cases}
            r_t \sqrt{1 - \beta_2^t} \, / \, (\sqrt{v_t} + \epsilon) & \text{if } \rho_t > 5 \\
            1 & \text{else}\end{cases}

    with the moments :math:`m` and :math:`v` of :class:`Adam`. `On the Variance of the Adaptive Learning Rate and
    Beyond <https://arxiv.org/abs/1908.03265>`_, Liu et al., 2020.

    Choose it in place of Adam with a warm-up whose length is not known.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate: the size of a step in the parameter's own unit; usually 1e-5 to
            1e-2.
        betas (tuple of two floats): how much of the running means of the gradient and of its square is kept from step
            to step, without unit; usually 0.9 and 0.99 to 0.9999.
        eps (float): added to the denominator, in the gradient's unit; usually 1e-10 to 1e-6.
        weight_decay (float): strength of the L2 penalty, in units of the loss over the parameter squared (decoupled:
            the part lost at each step, over the rate); 0, or 1e-6 to 1e-2.
        decoupled_weight_decay (bool): shrink the parameter itself, as :class:`AdamW` does.
        options: ``foreach``, ``maximize``, ``capturable``, ``differentiable`` and what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import RAdam
        >>> weight = torch.tensor([1.0, -2.0], requires_grad=True)
        >>> optimizer = RAdam([weight], lr=0.25)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> weight.detach()
        tensor([ 0.5000, -1.0000])
    """

    switches = SWITCHES - {"fused"}
    ranges: ClassVar[Ranges] = usually(
        lr="1e-5 to 1e-2", eps="1e-10 to 1e-6", betas=("0.9", "0.99 to 0.9999"), weight_decay=PENALTY
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 0,
        decoupled_weight_decay: bool = False,
        **options: Unpack[Options],
    ) -> None:
        defaults = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        super().__init__(params, dict(defaults, decoupled_weight_decay=decoupled_weight_decay), **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        p, g = decayed(p, g, h)
        return p - radam_step(g, s, h)
