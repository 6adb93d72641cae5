from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from steprule.algorithms.arguments import PENALTY, Number, Options, Params, Ranges, Unpack, usually
from steprule.algorithms.moments import adam_step
from steprule.algorithms.weight_decay import decayed
from steprule.optimizer import Optimizer

__all__ = ["Adam"]


class Adam(Optimizer):
    r"""Adam: steps of about the rate in every coordinate, whatever the scale of its gradient.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        \theta_t &= \theta_{t-1} - \gamma \,
            \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    `Adam: A Method for Stochastic Optimization <https://arxiv.org/abs/1412.6980>`_, Kingma and Ba, 2015; amsgrad
    is of `On the Convergence of Adam and Beyond <https://arxiv.org/abs/1904.09237>`_, Reddi et al., 2018: the
    largest :math:`v` so far takes the place of :math:`v_t`.

    Choose it when gradients differ in scale from layer to layer or are noisy, and nothing is known about the rate;
    with weight decay, prefer :class:`AdamW`.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate: the size of a step in the parameter's own unit; usually 1e-5 to
            1e-2.
        betas (tuple of two floats or two Tensors): how much of the running means of the gradient and of its square is
            kept from step to step, without unit; usually 0.8 to 0.95 and 0.95 to 0.9999.
        eps (float): added to the denominator, in the gradient's unit; usually 1e-10 to 1e-6.
        weight_decay (float): strength of the L2 penalty, in units of the loss over the parameter squared (decoupled:
            the part lost at each step, over the rate); 0, or 1e-6 to 1e-2.
        amsgrad (bool): never let the denominator shrink; one more slot.
        options: ``foreach``, ``maximize``, ``capturable``, ``differentiable``, ``fused``,
            ``decoupled_weight_decay`` (AdamW's decay) and what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range, or a combination is one that torch refuses.

    Example:
        >>> import torch
        >>> from steprule import Adam
        >>> weight = torch.tensor([1.0, -200.0], requires_grad=True)
        >>> optimizer = Adam([weight], lr=0.25)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> weight.detach()
        tensor([   0.7500, -199.7500])
    """

    ranges: ClassVar[Ranges] = usually(
        lr="1e-5 to 1e-2", eps="1e-10 to 1e-6", betas=("0.8 to 0.95", "0.95 to 0.9999"), weight_decay=PENALTY
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 0,
        amsgrad: bool = False,
        *,
        decoupled_weight_decay: bool = False,
        **options: Unpack[Options],
    ) -> None:
        defaults = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad)
        super().__init__(params, dict(defaults, decoupled_weight_decay=decoupled_weight_decay), **options)

    def validate(self, h: Mapping[str, Any]) -> None:
        super().validate(h)
        if not any(all(isinstance(beta, kind) for beta in h["betas"]) for kind in (float, torch.Tensor)):
            raise ValueError("betas must be either both floats or both Tensors")
        if h["foreach"] and not h["capturable"]:
            for name, value in {"lr": h["lr"], "betas[0]": h["betas"][0]}.items():
                if isinstance(value, torch.Tensor):
                    raise ValueError(f"{name} as a Tensor is not supported for capturable=False and foreach=True")

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        p, g = decayed(p, g, h)
        return p - adam_step(g, s, h, h.lr, h.amsgrad)
