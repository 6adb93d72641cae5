from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from steprule.algorithms.arguments import Number, Options, Params, Parts, Range, Ranges, Unpack, usually
from steprule.algorithms.moments import radam_step
from steprule.modifiers.lookahead import Lookahead
from steprule.optimizer import Optimizer

__all__ = ["Ranger"]


class Ranger(Optimizer):
    r"""RAdam with slow weights that go a part of the way after the fast ones.

    .. math::
        \theta_t &= (1 - \gamma\lambda)\, \theta_{t-1} - \gamma u_t \\
        \phi_t &= \phi_{t-1} + \alpha (\theta_t - \phi_{t-1}), \qquad \theta_t \leftarrow \phi_t
        \qquad\text{in every } k\text{-th step}

    with the step :math:`u` of :class:`RAdam`: :class:`steprule.modifiers.Lookahead` around RAdam. Its code
    centralizes gradients too, which ``modifiers=[Centralize()]`` does. `New Deep Learning Optimizer, Ranger
    <https://github.com/lessw2020/Ranger-Deep-Learning-Optimizer>`_, Wright, 2019, of `RAdam
    <https://arxiv.org/abs/1908.03265>`_ and `Lookahead <https://arxiv.org/abs/1907.08610>`_.

    Choose it for images and small data, where it is not sensitive to its rate; ``with optimizer.evaluating():``
    brings the slow weights into the model.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate: the size of a step in the parameter's own unit; usually 1e-4
            to 1e-2.
        betas (tuple of two floats): how much of the running means of the gradient and of its square is kept
            from step to step, without unit; usually 0.9 to 0.95 and 0.99 to 0.999.
        eps (float): added to the denominator, in the gradient's unit; usually 1e-8 to 1e-5.
        weight_decay (float): the part of the parameter lost at each step, over the rate: in units of one over
            the rate; usually 0 to 0.3.
        k (int): after how many steps the slow weights go on, by the parameter's own count; usually 5 to 10.
        alpha (float): the part of the way, without unit; usually 0.5 to 0.8.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import Ranger
        >>> weight = torch.tensor([1.0, -2.0], requires_grad=True)
        >>> optimizer = Ranger([weight], lr=0.1)
        >>> for _ in range(300):
        ...     optimizer.zero_grad()
        ...     weight.square().sum().backward()
        ...     optimizer.step()
        >>> bool(weight.abs().max() < 0.01)
        True
    """

    ranges: ClassVar[Ranges] = usually(
        lr="1e-4 to 1e-2",
        betas=("0.9 to 0.95", "0.99 to 0.999"),
        eps="1e-8 to 1e-5",
        weight_decay="0 to 0.3",
        k=Range(least=1, usual="5 to 10"),
        alpha=Range(above=0, most=1, usual="0.5 to 0.8"),
    )
    parts: ClassVar[Parts] = (Lookahead().within(),)

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.95, 0.999),
        eps: Number = 1e-5,
        weight_decay: Number = 0,
        k: Number = 6,
        alpha: Number = 0.5,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, k=k, alpha=alpha), **options
        )

    def validate(self, h: Mapping[str, Any]) -> None:
        super().validate(h)
        if h["k"] != int(h["k"]):
            raise ValueError(f"k must be a whole number of steps, got {h['k']}")

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        return p * (1 - h.lr * h.weight_decay) - radam_step(g, s, h)
