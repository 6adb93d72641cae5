from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from steprule.algorithms.adaptive.adamw import AdamW
from steprule.algorithms.arguments import MatrixOptions, Number, Params, Range, Ranges, Unpack, usually
from steprule.algorithms.moments import mean_square_of
from steprule.rule import sign, sqrt

from .hidden import _HiddenMatrices
from .muon import matched, momentum
from .newton_schulz import PRODUCTS, STEPS, Coefficients, check_coefficients, orthogonal

__all__ = ["AdaMuon"]


class AdaMuon(_HiddenMatrices):
    r"""Muon whose elements have second moments, as Adam's have, and steps as long as Adam's.

    .. math::
        O_t &= \operatorname{NS}\left(\operatorname{sign}((1 - \mu)\, g_t + \mu B_t)\right), \qquad
            B_t = \mu B_{t-1} + (1 - \mu)\, g_t \\
        v_t &= \mu v_{t-1} + (1 - \mu)\, O_t^2, \qquad \hat O_t = O_t / (\sqrt{v_t} + \epsilon) \\
        \theta_t &= (1 - \gamma\lambda)\, \theta_{t-1}
            - \gamma \; 0.2 \sqrt{\text{rows} \cdot \text{columns}} \; \hat O_t / \lVert \hat O_t \rVert

    with Muon's iterations NS. `AdaMuon: Adaptive Muon Optimizer <https://arxiv.org/abs/2507.11005>`_, Si et al., 2025.

    Choose it in place of :class:`Muon` with rates that were tuned for AdamW: every step has the root mean square 0.2,
    times the rate.

    Only matrices are for it; a :class:`torch.nn.Module` is sorted as :class:`Muon` sorts it, with AdamW for the rest.

    Args:
        params: a :class:`torch.nn.Module` to be sorted; or matrices, as :class:`steprule.Optimizer` takes them.
        lr (float, Tensor or Schedule): the rate: five times the root mean square of a step, in the parameter's own
            unit; usually 1e-3 to 2e-2.
        momentum (float): how much of the running means of the gradient and of the squares is kept from step to step,
            without unit; usually 0.9 to 0.98.
        weight_decay (float): the part of the parameter lost at each step, over the rate; usually 0 to 0.1.
        nesterov (bool): look ahead along the mean.
        ns_coefficients (tuple of three floats, or several): see :class:`Muon`.
        eps (float): added to denominators, without unit, and the least norm of a matrix that is divided by; usually
            1e-8.
        ns_steps (int): the number of iterations, less than 100; usually 5.
        sign_stabilized (bool): orthogonalize the signs of the mean, and not the mean itself (the paper's first
            version).
        ns_dtype (str): what products are computed in, by default in ``"bfloat16"``.
        adamw (dict, optional): see :class:`Muon`.
        convolutions (bool): take a parameter of more than two dimensions as a matrix (size(0), everything else).
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range, or a parameter for AdaMuon is not a matrix.
        RuntimeError: in a step, if a parameter for AdaMuon is complex.

    Example:
        >>> import torch
        >>> from steprule import AdaMuon
        >>> weight = torch.zeros(2, 3, requires_grad=True)
        >>> optimizer = AdaMuon([weight], lr=1.0)
        >>> weight.grad = torch.tensor([[1.0, -2.0, 3.0], [3.0, 2.0, 1.0]])
        >>> optimizer.step()
        >>> round(weight.detach().square().mean().sqrt().item(), 6)
        0.2
    """

    ranges: ClassVar[Ranges] = usually(
        lr="1e-3 to 2e-2",
        momentum=Range(least=0, below=1, usual="0.9 to 0.98"),
        weight_decay="0 to 0.1",
        eps="1e-8",
        ns_steps=STEPS,
        ns_dtype=PRODUCTS,
        betas=AdamW.ranges["betas"],
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 2e-2,
        momentum: Number = 0.95,
        weight_decay: Number = 0.0,
        nesterov: bool = True,
        ns_coefficients: Coefficients = (3.4445, -4.7750, 2.0315),
        eps: Number = 1e-8,
        ns_steps: int = 5,
        sign_stabilized: bool = True,
        *,
        ns_dtype: str = "bfloat16",
        adamw: Mapping[str, Any] | None = None,
        convolutions: bool = False,
        overrides: Mapping[Any, Mapping[str, Any]] | None = None,
        **options: Unpack[MatrixOptions],
    ) -> None:
        hyper: dict[str, Any] = dict(lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov, eps=eps)
        hyper |= dict(ns_coefficients=ns_coefficients, ns_steps=ns_steps, ns_dtype=ns_dtype)
        hyper |= dict(sign_stabilized=sign_stabilized)
        super().__init__(params, hyper, adamw, convolutions, overrides, **options)

    def validate(self, h: Mapping[str, Any]) -> None:
        super().validate(h)
        check_coefficients(h["ns_coefficients"])

    def direction(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        x = momentum(g, s, h)
        o = orthogonal(sign(x) if h.sign_stabilized else x, h)
        s.v_buffer = mean_square_of(s.v_buffer, o, h.momentum)
        return matched(p, o / (sqrt(s.v_buffer) + h.eps), h.eps)
