from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from steprule.algorithms.adaptive.adamw import AdamW
from steprule.algorithms.arguments import Choice, MatrixOptions, Number, Params, Range, Ranges, Unpack, should_be
from steprule.algorithms.moments import mean_of
from steprule.rule import lerp, maximum, norm, size, sqrt

from .hidden import _HiddenMatrices
from .newton_schulz import PRODUCTS, STEPS, Coefficients, check_coefficients, orthogonal

__all__ = ["ADJUST", "Muon", "matched", "momentum", "rate_for"]

ADJUST = Choice(
    choices=(None, "original", "match_rms_adamw"),
    message="Adjust learning rate function {value} is not supported",
)
"""How a rate may depend on the shape."""


class Muon(_HiddenMatrices):
    r"""Momentum whose matrices are orthogonalized: every direction of a layer moves equally far.

    .. math::
        B_t &= \mu B_{t-1} + (1 - \mu)\, g_t \\
        O_t &= \operatorname{NS}\left((1 - \mu)\, g_t + \mu B_t\right)
            \qquad\text{(without nesterov: } \operatorname{NS}(B_t) \text{)} \\
        \theta_t &= (1 - \gamma\lambda)\, \theta_{t-1} - \gamma \, \sqrt{\max(1, \text{rows} / \text{columns})} \; O_t

    where NS are a few iterations of :math:`X \leftarrow a X + b (X X^T) X + c (X X^T)^2 X`, which bring all singular
    values near 1. `Muon: An optimizer for hidden layers in neural networks
    <https://kellerjordan.github.io/posts/muon/>`_, Jordan et al., 2024; ``adjust_lr_fn="match_rms_adamw"`` is of
    `Muon is Scalable for LLM Training <https://arxiv.org/abs/2502.16982>`_, Liu et al., 2025 (Moonlight), and
    ``ns_coefficients="polar_express"`` of `The Polar Express <https://arxiv.org/abs/2505.16932>`_, Amsel et al., 2025.

    Choose it for the hidden matrices of transformers, where it needs fewer steps than AdamW at a moderate cost of
    products.

    Only matrices are for Muon. Given an :class:`torch.nn.Module`, it sorts the parameters itself: embeddings, the
    output head (the Linear that is tied to an embedding, else the last Linear), and everything that is not a matrix
    go to AdamW in the same optimizer, as :data:`steprule.hidden_matrices` tells them apart; ``overrides`` puts right
    what it guessed wrong: ``{"tables": dict(use_muon=False)}``. ``print(optimizer)`` shows who is where. A group
    dictionary with ``use_muon=False`` is AdamW's too. Where an override gives an ``algorithm``, nothing is sorted but
    by the overrides.

    Args:
        params: a :class:`torch.nn.Module` to be sorted; or matrices, as :class:`steprule.Optimizer` takes them.
        lr (float, Tensor or Schedule): the rate: the spectral norm of a step, in the parameter's own unit; usually
            0.001 to 0.05.
        weight_decay (float): the part of the parameter lost at each step, over the rate: in units of one over the
            rate; usually 0 to 0.1.
        momentum (float): how much of the running mean of the gradient is kept from step to step, without unit;
            usually 0.9 to 0.98.
        nesterov (bool): look ahead along the mean.
        ns_coefficients (tuple of three floats, or several): a, b and c; a list of them for one iteration after the
            other, of which the last are taken from then on; or ``"polar_express"``: the best ones, of which fewer
            iterations are needed.
        eps (float): the least norm of a matrix that is divided by, in the gradient's unit.
        ns_steps (int): the number of iterations, less than 100; usually 5.
        adjust_lr_fn (str, optional): how the rate depends on the shape: ``"original"`` (the default, Jordan's) as
            above, or ``"match_rms_adamw"`` (Moonlight's): :math:`0.2 \sqrt{\max(\text{rows}, \text{columns})}`, for
            rates tuned for AdamW.
        ns_dtype (str): what products are computed in, by default in ``"bfloat16"``.
        adamw (dict, optional): ``lr``, ``betas``, ``eps`` and ``weight_decay`` of the parameters that are AdamW's,
            where they differ from :class:`AdamW`'s defaults.
        convolutions (bool): take a parameter of more than two dimensions as a matrix (size(0), everything else).
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range, or a parameter for Muon is not a matrix.
        RuntimeError: in a step, if a parameter for Muon is complex.

    Example:
        >>> import torch
        >>> from steprule import Muon
        >>> model = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 6), torch.nn.Linear(6, 9))
        >>> optimizer = Muon(model, lr=0.02, adamw=dict(lr=3e-4))
        >>> for group in optimizer.param_groups:
        ...     print(group["use_muon"], group["lr"], group["param_names"])
        False 0.0003 ['0.weight', '1.bias', '2.weight', '2.bias']
        True 0.02 ['1.weight']
    """

    ranges: ClassVar[Ranges] = {
        "lr": should_be("Learning rate", "0.001 to 0.05", least=0),
        "momentum": should_be("momentum", "0.9 to 0.98", least=0),
        "weight_decay": should_be("weight decay", "0 to 0.1", least=0),
        "adjust_lr_fn": ADJUST,
        "ns_steps": STEPS,
        "ns_dtype": PRODUCTS,
        "eps": Range(),
        "betas": AdamW.ranges["betas"],
    }

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-3,
        weight_decay: Number = 0.1,
        momentum: Number = 0.95,
        nesterov: bool = True,
        ns_coefficients: Coefficients = (3.4445, -4.7750, 2.0315),
        eps: Number = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        ns_dtype: str = "bfloat16",
        adamw: Mapping[str, Any] | None = None,
        convolutions: bool = False,
        overrides: Mapping[Any, Mapping[str, Any]] | None = None,
        **options: Unpack[MatrixOptions],
    ) -> None:
        hyper: dict[str, Any] = dict(lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov, eps=eps)
        hyper |= dict(ns_coefficients=ns_coefficients, ns_steps=ns_steps, adjust_lr_fn=adjust_lr_fn, ns_dtype=ns_dtype)
        super().__init__(params, hyper, adamw, convolutions, overrides, **options)

    def validate(self, h: Mapping[str, Any]) -> None:
        super().validate(h)
        check_coefficients(h["ns_coefficients"])

    def direction(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        return rate_for(p, h.adjust_lr_fn) * orthogonal(momentum(g, s, h), h)


def momentum(g: Any, s: Any, h: Any) -> Any:
    """The running mean of the gradient, and with nesterov a look ahead along it."""
    s.momentum_buffer = mean_of(s.momentum_buffer, g, h.momentum)
    return lerp(g, s.momentum_buffer, h.momentum) if h.nesterov else s.momentum_buffer


def matched(p: Any, x: Any, eps: Any) -> Any:
    """A matrix with AdamW's usual root mean square of 0.2."""
    return 0.2 * sqrt(size(p)) / (norm(x) + eps) * x


def rate_for(p: Any, adjust: str | None) -> Any:
    """How much larger a step is for the shape of a matrix."""
    rows, columns = size(p, 0), size(p) / size(p, 0)
    if adjust == "match_rms_adamw":
        return 0.2 * sqrt(maximum(rows, columns))
    return sqrt(maximum(1, rows / columns))
