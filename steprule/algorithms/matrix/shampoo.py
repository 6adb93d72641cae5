from __future__ import annotations

from typing import Any, ClassVar

import torch

from steprule.algorithms.arguments import Choice, Number, Options, Params, Range, Ranges, Slots, Unpack, usually
from steprule.algorithms.moments import mean_square_of
from steprule.optimizer import Optimizer
from steprule.rule import lerp, matrix, ndim, norm, sign, sqrt, square, table, where

from .square_tables import sound, take_in_products

__all__ = ["Shampoo"]


class Shampoo(Optimizer):
    r"""Both sides of a matrix are divided by roots of their own second moments; another algorithm says how far to go.

    .. math::
        L_t &= \beta_2 L_{t-1} + (1 - \beta_2)\, g_t g_t^T, \qquad R_t = \beta_2 R_{t-1} + (1 - \beta_2)\, g_t^T g_t,
        \qquad
            L_0 = R_0 = \epsilon I \\
        s_t &= \operatorname{graft}(g_t), \qquad
            u_t = (L_t + \epsilon \lambda_{\max} I)^{-1/4}\, g_t\, (R_t + \epsilon \lambda_{\max} I)^{-1/4} \\
        m_t &= \beta_1 m_{t-1} + \frac{\lVert s_t \rVert}{\lVert u_t \rVert}\, u_t, \qquad
            \theta_t = \theta_{t-1} - \gamma \left(\beta_1 m_t + \frac{\lVert s_t \rVert}{\lVert u_t \rVert}\,
            u_t\right)

    where :math:`\lambda_{\max}` is the largest eigenvalue of each table. The step has the direction of Shampoo and the
    length of the algorithm that is grafted, which takes the first steps alone. Matrices are cut into blocks; a
    parameter of more than two dimensions is the matrix (size(0), everything else), and one of fewer is the grafted
    algorithm's. `Scalable Second Order Optimization for Deep Learning <https://arxiv.org/abs/2002.09018>`_, Anil et
    al., 2020, in the form and with the defaults of the authors' distributed Shampoo; dimensions are not merged to
    other shapes.

    Choose it where steps are dear and memory is not: in every direction of a layer it needs no rate of its own; with
    roots in every tenth to hundredth step, which are what it costs.

    Args:
        params: see :class:`steprule.Optimizer`; real.
        lr (float, Tensor or Schedule): the rate, in the unit of that of the grafted algorithm; usually 1e-3 to 1e-1.
        betas (tuple of two floats): how much of the momentum and of the second moments is kept from step to step,
            without unit; the second may be 1: then they are sums; usually 0.9 and 0.99 to 1.
        eps (float): what the tables begin with, in the unit of the gradient's square, and how much of their largest
            eigenvalue is added to them; usually 1e-6.
        weight_decay (float): how much of the parameter is added to the step, in units of one over the parameter;
            usually 0 to 0.1.
        graft (str, optional): whose length a step has: ``"sgd"``, ``"adagrad"``, ``"rmsprop"`` or ``"sqrt_n"``, the
            sign; or None, for its own.
        graft_eps (float): added to the denominator of the grafted algorithm, in the gradient's unit; usually 1e-10.
        nesterov (bool): look ahead along the momentum.
        moving_average_for_momentum (bool): let the momentum be a running mean, and not a sum.
        decoupled_weight_decay (bool): shrink the parameter by itself.
        start_preconditioning_step (int): the first step that is Shampoo's; usually 1 to 100.
        preconditioning_compute_steps (int): in every how many-th step roots are computed; usually 1 to 100.
        block_size (int): the largest side of a block; usually 128 to 1024.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.
        RuntimeError: in a step, if a matrix is complex or its gradient sparse, or if it is a DTensor that is cut.

    Example:
        >>> import torch
        >>> from steprule import Shampoo
        >>> weight = torch.zeros(2, 2, requires_grad=True)
        >>> optimizer = Shampoo([weight], lr=1.0, betas=(0.0, 1.0), graft=None, start_preconditioning_step=1)
        >>> weight.grad = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
        >>> optimizer.step()  # the orthogonal matrix nearest to the gradient
        >>> weight.detach().round(decimals=4) + 0
        tensor([[ 0., -1.],
                [-1.,  0.]])
    """

    switches: ClassVar[frozenset[str]] = frozenset()
    slots: ClassVar[Slots] = {
        "left": table("rows", "rows", block="block_size"),
        "right": table("columns", "columns", block="block_size"),
        "left_root": table("rows", "rows", "identity", block="block_size"),
        "right_root": table("columns", "columns", "identity", block="block_size"),
    }
    ranges: ClassVar[Ranges] = usually(
        lr="1e-3 to 1e-1",
        betas=("0.9", Range(least=0, most=1, called="beta parameter at index 1", usual="0.99 to 1")),
        eps="1e-6",
        weight_decay="0 to 0.1",
        graft=Choice(choices=(None, "sgd", "adagrad", "rmsprop", "sqrt_n")),
        graft_eps="1e-10",
        start_preconditioning_step=Range(least=1, usual="1 to 100"),
        preconditioning_compute_steps=Range(least=1, usual="1 to 100"),
        block_size=Range(least=1, usual="128 to 1024"),
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-6,
        weight_decay: Number = 0.0,
        graft: str | None = "sgd",
        graft_eps: Number = 1e-10,
        nesterov: bool = True,
        moving_average_for_momentum: bool = False,
        decoupled_weight_decay: bool = False,
        start_preconditioning_step: int = 5,
        preconditioning_compute_steps: int = 1,
        block_size: int = 512,
        **options: Unpack[Options],
    ) -> None:
        defaults: dict[str, Any] = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        defaults |= dict(graft=graft, graft_eps=graft_eps, nesterov=nesterov, block_size=block_size)
        defaults |= dict(moving_average_for_momentum=moving_average_for_momentum)
        defaults |= dict(decoupled_weight_decay=decoupled_weight_decay)
        defaults |= dict(start_preconditioning_step=start_preconditioning_step)
        defaults |= dict(preconditioning_compute_steps=preconditioning_compute_steps)
        super().__init__(params, defaults, **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        graft = self.grafted(g, s, h)
        u = graft
        if ndim(p) > 1:
            u = self.preconditioned(g, s, h)
            if h.graft is not None:
                u = norm(graft) / (norm(u) + 1e-16) * u
        if h.decoupled_weight_decay:
            p = p * (1 - h.lr * h.weight_decay)
        elif h.weight_decay:
            graft, u = graft + h.weight_decay * p, u + h.weight_decay * p
        if ndim(p) > 1:
            early = self.ahead(graft, s, h, "graft_momentum_buffer")
            late = self.ahead(u, s, h, "momentum_buffer")
            return p - h.lr * where(s.step < h.start_preconditioning_step, early, late)
        return p - h.lr * self.ahead(u, s, h, "momentum_buffer")

    def grafted(self, g: Any, s: Any, h: Any) -> Any:
        """The step of the algorithm whose length Shampoo's gets."""
        if h.graft == "sqrt_n":
            return sign(g)
        if h.graft == "adagrad":
            s.sum = s.sum + square(g)
            return g / (sqrt(s.sum) + h.graft_eps)
        if h.graft == "rmsprop":
            s.square_avg = mean_square_of(s.square_avg, g, h.betas[1])
            return g / (sqrt(s.square_avg) + h.graft_eps)
        return g

    def preconditioned(self, g: Any, s: Any, h: Any) -> Any:
        """The gradient between the roots of both tables."""
        beta2, block = h.betas[1], h.block_size
        weight = where(beta2 < 1, 1 - beta2, 1.0)
        tables = s.left, s.right
        s.left, s.right = matrix(taken_in, *tables, g, beta2, weight, returns=tables, block=block)
        # what is left of the identity that the tables began with
        start = h.eps * beta2**s.step
        for side in ("left", "right"):
            known, every = getattr(s, f"{side}_root"), h.preconditioning_compute_steps
            root = matrix(inverse_root, getattr(s, side), start, h.eps, returns=known, every=every, block=block)
            setattr(s, f"{side}_root", root)
        return matrix(preconditioned, s.left_root, g, s.right_root, returns=g, block=block)

    def ahead(self, u: Any, s: Any, h: Any, name: str) -> Any:
        """Momentum of a slot."""
        beta, mean = h.betas[0], h.moving_average_for_momentum
        m = lerp(getattr(s, name), u, 1 - beta) if mean else beta * getattr(s, name) + u
        setattr(s, name, m)
        if h.nesterov:
            return lerp(m, u, 1 - beta) if mean else beta * m + u
        return m


def taken_in(
    left: torch.Tensor, right: torch.Tensor, g: torch.Tensor, beta: float, weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    take_in_products(left, right, g, beta, weight)
    return left, right


def inverse_root(stack: torch.Tensor, start: float, eps: float) -> torch.Tensor:
    """Each table to the power -1/4, after adding ``start``, and ``eps`` times the largest eigenvalue, to the others."""
    if stack.numel() == 0:
        return stack
    stack, mark = sound(stack)
    values, vectors = torch.linalg.eigh(stack)
    values = values.clamp(min=0) + start
    values += eps * values.amax(-1, keepdim=True).clamp(min=1e-6)
    root: torch.Tensor = (vectors * values.pow(-0.25).unsqueeze(-2)) @ vectors.mT + mark
    return root


def preconditioned(left: torch.Tensor, g: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return left @ g @ right
