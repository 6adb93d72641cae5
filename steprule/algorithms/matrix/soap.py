from __future__ import annotations

from typing import Any, ClassVar

import torch

from steprule.algorithms.arguments import Number, Options, Params, Range, Ranges, Slots, Unpack, usually
from steprule.algorithms.moments import mean_of, mean_square_of
from steprule.optimizer import Optimizer
from steprule.rule import matrix, mean, ndim, sqrt, square, table, where

from .square_tables import is_whole, sound, take_in_products, turned

__all__ = ["SOAP"]


class SOAP(Optimizer):
    r"""Adam in the eigenbases of Shampoo: each matrix is turned so that its coordinates differ the most.

    .. math::
        G'_t &= Q_L^T g_t Q_R, \qquad m_t = \beta_1 m_{t-1} + (1 - \beta_1)\, g_t, \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2)\, G'^2_t \\
        \theta_t &= (1 - \gamma\lambda) \left(\theta_{t-1} - \gamma \frac{\sqrt{1 - \beta_2^{t}}}{1 - \beta_1^{t}} \;
            Q_L \frac{Q_L^T m_t Q_R}{\sqrt{v_t} + \epsilon} Q_R^T\right) \\
        L_t &= \beta_3 L_{t-1} + (1 - \beta_3)\, g_t g_t^T, \qquad R_t = \beta_3 R_{t-1} + (1 - \beta_3)\, g_t^T g_t

    where in every ``precondition_frequency``-th step :math:`Q_L` and :math:`Q_R` become what a step of the power
    iteration and a QR decomposition make of them; in the first step they are the eigenvectors, and no parameter moves,
    which is why :math:`t` counts from the second. A parameter of more than two dimensions is the matrix (size(0),
    everything else); one of fewer is Adam's. `SOAP: Improving and Stabilizing Shampoo using Adam
    <https://arxiv.org/abs/2409.11321>`_, Vyas et al., 2024; defaults of the authors' code.

    Choose it for language models where steps are dear (large models, small batches): it needs fewer of them than
    AdamW, at the price of two square tables for each side of a matrix.

    Args:
        params: see :class:`steprule.Optimizer`; real.
        lr (float, Tensor or Schedule): the rate: about how far a coordinate of the turned matrix moves in a step, in
            the parameter's own unit; usually 1e-3 to 1e-2.
        betas (tuple of two floats): how much of the running means of the gradient and of the turned gradient's square
            is kept from step to step, without unit; usually 0.9 to 0.95 and 0.95 to 0.99.
        shampoo_beta (float, optional): how much of the running means of the tables is kept, without unit, or None: the
            second of ``betas``.
        eps (float): added to the denominator, in the gradient's unit; usually 1e-8.
        weight_decay (float): the part of the parameter lost at each step, over the rate; usually 0 to 0.1.
        precondition_frequency (int): in every how many-th step the bases are refined; usually 10 to 100.
        max_precond_dim (int): a side of more rows or columns is not turned; usually 10000.
        normalize_grads (bool): bring the step of each parameter to the root mean square 1, times the rate.
        correct_bias (bool): correct the running means for their start from zero, as Adam does.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range.
        RuntimeError: in a step, if a matrix is complex or its gradient sparse, or if it is a DTensor that is cut.

    Example:
        >>> import torch
        >>> from steprule import SOAP
        >>> weight = torch.zeros(2, 2, requires_grad=True)
        >>> optimizer = SOAP([weight], lr=0.5, betas=(0.0, 0.0), weight_decay=0)
        >>> for _ in range(2):
        ...     weight.grad = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
        ...     optimizer.step()
        >>> weight.detach()  # the basis of this gradient is the axes', so every coordinate moves by the rate
        tensor([[ 0.0000, -0.5000],
                [-0.5000,  0.0000]])
    """

    switches: ClassVar[frozenset[str]] = frozenset()
    slots: ClassVar[Slots] = {
        name: table(*sides, initial="identity" if name.startswith("Q") else 0.0, most="max_precond_dim")
        for sides in (("rows", "rows"), ("columns", "columns"))
        for name in (f"GG_{sides[0]}", f"Q_{sides[0]}")
    }
    ranges: ClassVar[Ranges] = usually(
        lr="1e-3 to 1e-2",
        betas=("0.9 to 0.95", "0.95 to 0.99"),
        shampoo_beta=Range(least=0, below=1, optional=True),
        eps="1e-8",
        weight_decay="0 to 0.1",
        precondition_frequency=Range(least=1, usual="10 to 100"),
        max_precond_dim=Range(least=1, usual="10000"),
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 3e-3,
        betas: tuple[Number, Number] = (0.95, 0.95),
        shampoo_beta: Number | None = None,
        eps: Number = 1e-8,
        weight_decay: Number = 1e-2,
        precondition_frequency: int = 10,
        max_precond_dim: int = 10000,
        normalize_grads: bool = False,
        correct_bias: bool = True,
        **options: Unpack[Options],
    ) -> None:
        defaults: dict[str, Any] = dict(lr=lr, betas=betas, shampoo_beta=shampoo_beta, eps=eps)
        defaults |= dict(weight_decay=weight_decay, precondition_frequency=precondition_frequency)
        defaults |= dict(max_precond_dim=max_precond_dim, normalize_grads=normalize_grads, correct_bias=correct_bias)
        super().__init__(params, defaults, **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        beta1, beta2 = h.betas
        m = mean_of(s.exp_avg, g, beta1)
        turned_g, turned_m = g, m
        if ndim(p) > 1:
            beta = beta2 if h.shampoo_beta is None else h.shampoo_beta
            bases = s.Q_rows, s.Q_columns
            grams = s.GG_rows, s.GG_columns
            turned_g, turned_m, *grams = matrix(looked_at, g, m, *bases, *grams, beta, returns=(g, g, *grams))
            s.GG_rows, s.GG_columns = grams
            new = where(s.is_new, 1.0, 0.0)
            for name, gram, basis in zip(("Q_rows", "Q_columns"), grams, bases, strict=True):
                known = matrix(refined, basis, gram, new, returns=basis, every=h.precondition_frequency)
                setattr(s, name, known)
        v = mean_square_of(s.exp_avg_sq, turned_g, beta2)
        u = turned_m / (sqrt(v) + h.eps)
        if ndim(p) > 1:
            u = matrix(turned_back, u, *bases, returns=g)
        if h.normalize_grads:
            u = u / (sqrt(mean(square(u))) + h.eps)
        count = s.step - 1
        rate = h.lr * sqrt(1 - beta2**count) / (1 - beta1**count) if h.correct_bias else h.lr
        # the first gradient only makes the bases, which it would fit too well
        s.exp_avg, s.exp_avg_sq = where(s.is_new, s.exp_avg, m), where(s.is_new, s.exp_avg_sq, v)
        return where(s.is_new, p, (p - rate * u) * (1 - h.lr * h.weight_decay))


def looked_at(
    g: torch.Tensor,
    m: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor,
    gram_rows: torch.Tensor,
    gram_columns: torch.Tensor,
    beta: float,
) -> tuple[torch.Tensor, ...]:
    """Gradients and their means in the bases as they are, and the tables that these are made of next."""
    take_in_products(gram_rows, gram_columns, g, beta, 1 - beta)
    return turned(rows, g, columns), turned(rows, m, columns), gram_rows, gram_columns


def turned_back(u: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    return turned(rows.mT if is_whole(rows) else rows, u, columns.mT if is_whole(columns) else columns)


def refined(basis: torch.Tensor, gram: torch.Tensor, new: float) -> torch.Tensor:
    """The eigenvectors of each table, the largest first; later one step of the power iteration, of which every column
    keeps its place, so that what is known of a coordinate stays with it."""
    if not is_whole(basis):
        return basis
    if new:
        gram, mark = sound(gram)
        vectors: torch.Tensor = torch.linalg.eigh(gram).eigenvectors
        return vectors.flip(-1) + mark
    product, mark = sound(gram @ basis)
    order = (basis * product).sum(-2, keepdim=True).argsort(dim=-1, descending=True).expand_as(product)
    turned = torch.linalg.qr(product.gather(-1, order)).Q
    return torch.empty_like(turned).scatter_(-1, order, turned) + mark
