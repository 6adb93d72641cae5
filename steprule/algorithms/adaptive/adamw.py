from __future__ import annotations

from typing import Any, ClassVar

from steprule.algorithms.arguments import Number, Options, Params, Ranges, Unpack, usually

from .adam import Adam

__all__ = ["AdamW"]


class AdamW(Adam):
    r"""Adam with weight decay that shrinks the parameter itself and does not pass through the moments.

    .. math::
        \theta_t = (1 - \gamma\lambda)\, \theta_{t-1} - \gamma \,
            \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    with the moments :math:`m` and :math:`v` of :class:`Adam`. `Decoupled Weight Decay Regularization
    <https://arxiv.org/abs/1711.05101>`_, Loshchilov and Hutter, 2019.

    Choose it for transformers, and wherever Adam is used with weight decay: every weight decays at the same rate,
    however large its gradients are.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate: the size of a step in the parameter's own unit; usually 1e-5 to
            1e-2.
        betas (tuple of two floats or two Tensors): how much of the running means of the gradient and of its square is
            kept from step to step, without unit; usually 0.9 and 0.95 to 0.999.
        eps (float): added to the denominator, in the gradient's unit; usually 1e-10 to 1e-6.
        weight_decay (float): the part of the parameter lost at each step, over the rate: in units of one over the
            rate; usually 0 to 0.3.
        amsgrad (bool): never let the denominator shrink; one more slot.
        options: ``maximize``, ``foreach``, ``capturable``, ``differentiable``, ``fused`` and what every algorithm
            takes.

    Raises:
        ValueError: if a hyperparameter is out of range, or a combination is one that torch refuses.

    Example:
        >>> import torch
        >>> from steprule import AdamW
        >>> weight = torch.tensor([1.0, -200.0], requires_grad=True)
        >>> optimizer = AdamW([weight], lr=0.25, weight_decay=0.4)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> weight.detach()
        tensor([   0.6500, -179.7500])
    """

    ranges: ClassVar[Ranges] = usually(
        lr="1e-5 to 1e-2", eps="1e-10 to 1e-6", betas=("0.9", "0.95 to 0.999"), weight_decay="0 to 0.3"
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 1e-2,
        amsgrad: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, decoupled_weight_decay=True, **options)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            if group.get("algorithm", type(self).__name__) == type(self).__name__:
                group["decoupled_weight_decay"] = True
