from __future__ import annotations

from typing import Any, ClassVar

import torch

from steprule.algorithms.arguments import PENALTY, KeywordOptions, Number, Params, Ranges, Slots, Unpack, usually
from steprule.algorithms.weight_decay import penalized
from steprule.kernels.slots import fresh, scalar_dtype
from steprule.optimizer import SWITCHES, Optimizer
from steprule.rule import array, sqrt

__all__ = ["Adagrad"]


class Adagrad(Optimizer):
    r"""Adagrad: a rate for each coordinate that falls with the squares of all its gradients so far.

    .. math::
        s_t &= s_{t-1} + g_t^2 \\
        \theta_t &= \theta_{t-1} - \frac{\gamma}{1 + (t - 1)\,\eta} \, \frac{g_t}{\sqrt{s_t} + \epsilon}

    `Adaptive Subgradient Methods for Online Learning and Stochastic Optimization
    <https://jmlr.org/papers/v12/duchi11a.html>`_, Duchi, Hazan and Singer, 2011.

    Choose it for convex problems and for sparse features and embeddings, where a rare feature keeps a high rate. On
    long runs its rates fall too far; :class:`RMSprop` and :class:`Adam` forget instead.

    The state is made by the constructor, as in torch. With a sparse gradient only the rows that it holds are
    updated.

    Args:
        params: see :class:`steprule.Optimizer`.
        lr (float, Tensor or Schedule): the rate: the size of the first step in the parameter's own unit; usually
            1e-3 to 1.
        lr_decay (float): how much the rate falls with each step, in units of one over a step; usually 0.
        weight_decay (float): strength of the L2 penalty, in units of the loss over the parameter squared; 0, or
            1e-6 to 1e-2.
        initial_accumulator_value (float): where the sum of squares starts, in the gradient's unit squared; 0 to 0.1.
        eps (float): added to the denominator, in the gradient's unit; usually 1e-10 to 1e-7.
        foreach (bool, optional): accepted for torch's sake; every step is fused.
        options: ``maximize``, ``differentiable``, ``fused`` and what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.

    Example:
        >>> import torch
        >>> from steprule import Adagrad
        >>> weight = torch.tensor([1.0, -200.0], requires_grad=True)
        >>> optimizer = Adagrad([weight], lr=0.25)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> weight.detach(), optimizer.state[weight]["sum"]
        (tensor([   0.7500, -199.7500]), tensor([4.0000e+00, 1.6000e+05]))
    """

    switches = SWITCHES - {"capturable"}
    slots: ClassVar[Slots] = {"sum": array("initial_accumulator_value")}
    ranges: ClassVar[Ranges] = usually(
        lr="1e-3 to 1", lr_decay="0", weight_decay=PENALTY, initial_accumulator_value="0 to 0.1", eps="1e-10 to 1e-7"
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-2,
        lr_decay: Number = 0,
        weight_decay: Number = 0,
        initial_accumulator_value: float = 0,
        eps: Number = 1e-10,
        foreach: bool | None = None,
        **options: Unpack[KeywordOptions],
    ) -> None:
        defaults = dict(lr=lr, lr_decay=lr_decay, eps=eps, weight_decay=weight_decay)
        defaults["initial_accumulator_value"] = initial_accumulator_value
        super().__init__(params, defaults, foreach=foreach, **options)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["step"] = torch.zeros((), dtype=scalar_dtype())
                self.state[p]["sum"] = fresh(self.slots["sum"], p, group)

    def share_memory(self) -> None:
        """Move the sums to shared memory, so that processes can update them together."""
        for state in self.state.values():
            state["sum"].share_memory_()

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        g = penalized(g, p, h)
        s.sum = s.sum + g * g
        return p - h.lr / (1 + (s.step - 1) * h.lr_decay) * g / (sqrt(s.sum) + h.eps)
