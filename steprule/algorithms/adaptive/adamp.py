from __future__ import annotations

from typing import Any, ClassVar

from steprule.algorithms.arguments import Number, Options, Params, Ranges, Unpack, usually
from steprule.algorithms.moments import corrected_root, mean_of, mean_square_of
from steprule.algorithms.tangent import tangential
from steprule.optimizer import Optimizer

__all__ = ["AdamP"]


class AdamP(Optimizer):
    r"""Adam that leaves out the part of a step along weights whose scale does not matter.

    .. math::
        u_t &= \frac{m_t}{1 - \beta_1^t} \Big/ \left(\sqrt{v_t / (1 - \beta_2^t)} + \epsilon\right) \\
        u_t &\leftarrow u_t - \theta_{t-1} \frac{\theta_{t-1} \cdot u_t}{\lVert \theta_{t-1} \rVert^2}
            \quad\text{where } \cos(\theta_{t-1}, g_t) < \delta / \sqrt{\dim \theta} \\
        \theta_t &= (1 - \gamma\lambda)\, \theta_{t-1} - \gamma u_t

    with the moments :math:`m` and :math:`v` of :class:`Adam`. A normalization that follows makes gradients
    orthogonal to weights, by which such weights are told: in all channels (indices of the first dimension) or else
    over the whole parameter. They decay by ``wd_ratio`` of the decay. Vectors are left alone. `AdamP: Slowing Down
    the Slowdown for Momentum Optimizers on Scale-invariant Weights <https://arxiv.org/abs/2006.08217>`_, Heo et
    al., 2021.

    Choose it for convolutional networks with batch normalization, whose weights would grow and so slow down.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate: the size of a step in the parameter's own unit; usually 1e-5
            to 1e-2.
        betas (tuple of two floats): how much of the running means of the gradient and of its square is kept
            from step to step, without unit; usually 0.9 and 0.99 to 0.999.
        eps (float): added to the denominator, in the gradient's unit; usually 1e-10 to 1e-6.
        weight_decay (float): the part of the parameter lost at each step, over the rate: in units of one over
            the rate; usually 0 to 0.3.
        delta (float): how near to orthogonal, without unit; usually 0.1.
        wd_ratio (float): how much of the decay counts for them, without unit; usually 0.1.
        nesterov (bool): look ahead along the momentum.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import AdamP
        >>> weight = torch.tensor([1.0, -200.0], requires_grad=True)
        >>> optimizer = AdamP([weight], lr=0.25)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> weight.detach()
        tensor([   0.7500, -199.7500])
    """

    ranges: ClassVar[Ranges] = usually(
        lr="1e-5 to 1e-2",
        betas=("0.9", "0.99 to 0.999"),
        eps="1e-10 to 1e-6",
        weight_decay="0 to 0.3",
        delta="0.1",
        wd_ratio="0.1",
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 0,
        delta: Number = 0.1,
        wd_ratio: Number = 0.1,
        nesterov: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            dict(
                lr=lr,
                betas=betas,
                eps=eps,
                weight_decay=weight_decay,
                delta=delta,
                wd_ratio=wd_ratio,
                nesterov=nesterov,
            ),
            **options,
        )

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        beta1, beta2 = h.betas
        s.exp_avg = mean_of(s.exp_avg, g, beta1)
        s.exp_avg_sq = mean_square_of(s.exp_avg_sq, g, beta2)
        ahead = mean_of(s.exp_avg, g, beta1) if h.nesterov else s.exp_avg
        u, ratio = tangential(p, g, ahead / corrected_root(s.exp_avg_sq, beta2, s, h), h)
        return p * (1 - h.lr * h.weight_decay * ratio) - h.lr / (1 - beta1**s.step) * u
