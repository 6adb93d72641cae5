from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from steprule.algorithms.adaptive.adamw import AdamW
from steprule.algorithms.arguments import Choice, MatrixOptions, Number, Params, Range, Ranges, Slots, Unpack, usually
from steprule.algorithms.moments import mean_of
from steprule.rule import channel, mean, norm, sqrt, square

from .hidden import _HiddenMatrices
from .muon import ADJUST, matched, momentum, rate_for
from .newton_schulz import PRODUCTS, STEPS, Coefficients, check_coefficients, orthogonal

__all__ = ["NorMuon"]


class NorMuon(_HiddenMatrices):
    r"""Muon whose rows are brought to one size too: each neuron has a second moment of its own.

    .. math::
        O_t &= \operatorname{NS}\left((1 - \mu)\, g_t + \mu B_t\right), \qquad B_t = \mu B_{t-1} + (1 - \mu)\, g_t \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) \operatorname{mean}_{\text{row}} O_t^2, \qquad
            \hat O_t = O_t / (\sqrt{v_t} + \epsilon) \\
        \theta_t &= (1 - \gamma\lambda)\, \theta_{t-1}
            - \gamma \sqrt{\max(1, \text{rows} / \text{columns})} \;
            \frac{\lVert O_t \rVert}{\lVert \hat O_t \rVert} \hat O_t

    with Muon's iterations NS. `NorMuon: Making Muon more efficient and scalable <https://arxiv.org/abs/2510.05491>`_,
    Li et al., 2025; ``update_scale="match_rms"`` is the paper's algorithm 1, the default what the authors' code does.

    Choose it in place of :class:`Muon`, where some neurons move much farther than others: it costs one number for each
    row.

    Only matrices are for it; a :class:`torch.nn.Module` is sorted as :class:`Muon` sorts it, with AdamW for the rest.

    Args:
        params: a :class:`torch.nn.Module` to be sorted; or matrices, as :class:`steprule.Optimizer` takes them.
        lr (float, Tensor or Schedule): the rate, in the parameter's own unit; usually 0.001 to 0.05.
        momentum (float): how much of the running mean of the gradient is kept from step to step, without unit; usually
            0.9 to 0.98.
        beta2 (float): how much of the running mean of the rows' squares is kept, without unit; usually 0.9 to 0.99.
        weight_decay (float): the part of the parameter lost at each step, over the rate; usually 0 to 0.1.
        nesterov (bool): look ahead along the mean.
        ns_coefficients (tuple of three floats, or several): see :class:`Muon`.
        eps (float): added to denominators, without unit, and the least norm of a matrix that is divided by; usually
            1e-10.
        ns_steps (int): the number of iterations, less than 100; usually 5.
        adjust_lr_fn (str, optional): how the rate depends on the shape, as in :class:`Muon`.
        update_scale (str): ``"preserve_norm"`` leaves a step as long as it was before rows were divided;
            ``"match_rms"`` gives it the root mean square 0.2, for rates tuned for AdamW, whatever ``adjust_lr_fn``.
        ns_dtype (str): what products are computed in, by default in ``"bfloat16"``.
        adamw (dict, optional): see :class:`Muon`.
        convolutions (bool): take a parameter of more than two dimensions as a matrix (size(0), everything else).
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range, or a parameter for NorMuon is not a matrix.
        RuntimeError: in a step, if a parameter for NorMuon is complex.

    Example:
        >>> import torch
        >>> from steprule import NorMuon
        >>> weight = torch.zeros(2, 2, requires_grad=True)
        >>> optimizer = NorMuon([weight], lr=1.0, update_scale="match_rms", ns_dtype="float32")
        >>> weight.grad = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
        >>> optimizer.step()
        >>> weight.detach().round(decimals=4) + 0
        tensor([[ 0.0000, -0.2828],
                [-0.2828,  0.0000]])
    """

    slots: ClassVar[Slots] = {"second_momentum_buffer": channel()}
    ranges: ClassVar[Ranges] = usually(
        lr="0.001 to 0.05",
        momentum=Range(least=0, below=1, usual="0.9 to 0.98"),
        beta2=Range(least=0, below=1, usual="0.9 to 0.99"),
        weight_decay="0 to 0.1",
        eps="1e-10",
        ns_steps=STEPS,
        adjust_lr_fn=ADJUST,
        update_scale=Choice(choices=("preserve_norm", "match_rms")),
        ns_dtype=PRODUCTS,
        betas=AdamW.ranges["betas"],
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 2e-2,
        momentum: Number = 0.95,
        beta2: Number = 0.95,
        weight_decay: Number = 0.0,
        nesterov: bool = True,
        ns_coefficients: Coefficients = (3.4445, -4.7750, 2.0315),
        eps: Number = 1e-10,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        update_scale: str = "preserve_norm",
        *,
        ns_dtype: str = "bfloat16",
        adamw: Mapping[str, Any] | None = None,
        convolutions: bool = False,
        overrides: Mapping[Any, Mapping[str, Any]] | None = None,
        **options: Unpack[MatrixOptions],
    ) -> None:
        hyper: dict[str, Any] = dict(lr=lr, momentum=momentum, beta2=beta2, weight_decay=weight_decay, eps=eps)
        hyper |= dict(nesterov=nesterov, ns_coefficients=ns_coefficients, ns_steps=ns_steps, ns_dtype=ns_dtype)
        hyper |= dict(adjust_lr_fn=adjust_lr_fn, update_scale=update_scale)
        super().__init__(params, hyper, adamw, convolutions, overrides, **options)

    def validate(self, h: Mapping[str, Any]) -> None:
        super().validate(h)
        check_coefficients(h["ns_coefficients"])

    def direction(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        o = orthogonal(momentum(g, s, h), h)
        s.second_momentum_buffer = mean_of(s.second_momentum_buffer, mean(square(o), scope="channel"), h.beta2)
        scaled = o / (sqrt(s.second_momentum_buffer) + h.eps)
        if h.update_scale == "match_rms":
            return matched(p, scaled, h.eps)
        return rate_for(p, h.adjust_lr_fn) * (norm(o) / (norm(scaled) + h.eps)) * scaled
