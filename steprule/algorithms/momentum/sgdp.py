from __future__ import annotations

from typing import Any, ClassVar

from steprule.algorithms.arguments import Number, Options, Params, Range, Ranges, Unpack, usually
from steprule.algorithms.tangent import tangential
from steprule.optimizer import Optimizer

__all__ = ["SGDP"]


class SGDP(Optimizer):
    r"""SGD that leaves out the part of a step along weights whose scale does not matter.

    .. math::
        b_t &= \mu b_{t-1} + (1 - \tau) g_t \\
        u_t &= b_t - \theta_{t-1} \frac{\theta_{t-1} \cdot b_t}{\lVert \theta_{t-1} \rVert^2}
            \quad\text{where } \cos(\theta_{t-1}, g_t) < \delta / \sqrt{\dim \theta}, \quad\text{else } b_t \\
        \theta_t &= \left(1 - \frac{\gamma\lambda}{1 - \mu}\right) \theta_{t-1} - \gamma u_t

    A normalization that follows makes gradients orthogonal to weights, by which such weights are told: in all
    channels (indices of the first dimension) or else over the whole parameter. They decay by ``wd_ratio`` of the
    decay. Vectors are left alone. `AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant
    Weights <https://arxiv.org/abs/2006.08217>`_, Heo et al., 2021.

    Choose it in place of SGD with momentum for convolutional networks with batch normalization.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate, in units of the parameter squared over the loss; usually 0.001
            to 1.
        momentum (float): the part of the velocity kept from step to step, without unit; 0, or 0.8 to 0.99.
        dampening (float): the part of each new gradient kept out of the velocity, without unit; usually 0.
        weight_decay (float): the part of the parameter lost at each step, over the rate: in units of one over
            the rate times one less the momentum; usually 0 to 1e-3.
        nesterov (bool): look ahead along the velocity.
        eps (float): added to the norms, in the parameter's unit; usually 1e-10 to 1e-6.
        delta (float): how near to orthogonal, without unit; usually 0.1.
        wd_ratio (float): how much of the decay counts for them, without unit; usually 0.1.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import SGDP
        >>> weight = torch.tensor([1.0, -200.0], requires_grad=True)
        >>> optimizer = SGDP([weight], lr=0.125)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> weight.detach()
        tensor([   0.7500, -150.0000])
    """

    ranges: ClassVar[Ranges] = usually(
        lr="0.001 to 1",
        momentum=Range(least=0, below=1, usual="0, or 0.8 to 0.99"),
        dampening=Range(usual="0"),
        weight_decay="0 to 1e-3",
        eps="1e-10 to 1e-6",
        delta="0.1",
        wd_ratio="0.1",
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-3,
        momentum: Number = 0,
        dampening: Number = 0,
        weight_decay: Number = 0,
        nesterov: bool = False,
        eps: Number = 1e-8,
        delta: Number = 0.1,
        wd_ratio: Number = 0.1,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            dict(
                lr=lr,
                momentum=momentum,
                dampening=dampening,
                weight_decay=weight_decay,
                nesterov=nesterov,
                eps=eps,
                delta=delta,
                wd_ratio=wd_ratio,
            ),
            **options,
        )

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        s.momentum_buffer = h.momentum * s.momentum_buffer + (1 - h.dampening) * g
        u, ratio = tangential(p, g, g + h.momentum * s.momentum_buffer if h.nesterov else s.momentum_buffer, h)
        return p * (1 - h.lr * h.weight_decay * ratio / (1 - h.momentum)) - h.lr * u
