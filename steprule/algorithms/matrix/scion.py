from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from steprule.algorithms.arguments import Choice, Number, Options, Params, Range, Ranges, Unpack, usually
from steprule.grouping.selectors import dimensions
from steprule.optimizer import Optimizer
from steprule.rule import lerp, mean, ndim, norm, sign, size, sqrt, square

from .newton_schulz import PRODUCTS, STEPS, Coefficients, check_coefficients, orthogonal

__all__ = ["Scion"]


class Scion(Optimizer):
    r"""Every layer steps to the farthest point of a ball, against the gradient: each kind of layer has its own norm.

    .. math::
        d_t &= (1 - \alpha)\, d_{t-1} + \alpha\, g_t \\
        \theta_t &= (1 - \gamma)\, \theta_{t-1} - \gamma \rho \operatorname{lmo}(d_t) \qquad
            \text{(unconstrained: } \theta_{t-1} - \gamma \rho \operatorname{lmo}(d_t) \text{)}

    where lmo is, by ``norm``,

    - ``"spectral"``: :math:`\sqrt{\text{rows} / \text{columns}} \operatorname{NS}(d)`, with Muon's iterations NS; of a
      convolution :math:`\sqrt{\text{out} / \text{in}} \operatorname{NS}(d)` over the number of its kernel's places;
    - ``"sign"``: :math:`\operatorname{sign}(d) / \text{columns}`;
    - ``"row"``: each row over its norm and over :math:`\sqrt{\text{columns}}`;
    - ``"column"``: each column over its root mean square;
    - ``"rms"``: everything over its root mean square;
    - ``"auto"``: spectral for what has two dimensions or more, rms for the rest.

    `Training Deep Learning Models with Norm-Constrained LMOs <https://arxiv.org/abs/2502.07529>`_, Pethick et al.,
    2025; defaults of the authors' code.

    Choose it where rates are tuned on a narrow model and taken over by a wide one, and where weights are to stay
    bounded: in the constrained form they never leave the ball of ``scale``.

    Args:
        params: see :class:`steprule.Optimizer`; real.
        lr (float, Tensor or Schedule): the rate: what part of the way to the ball's edge a step goes, without unit;
            usually 1e-4 to 1e-2.
        momentum (float): the weight of the newest gradient in the running mean, one minus what torch calls so, without
            unit; 1 keeps no state; usually 0.05 to 1.
        norm (str): which norm, as above.
        scale (float): the radius of the ball, in the parameter's own unit; usually 1 to 3000.
        unconstrained (bool): leave the parameter as large as it is.
        normalized (bool, optional): divide by the number of inputs (``"spectral"``, ``"sign"``, ``"row"``,
            ``"column"``), or None: all but ``"column"`` do.
        ns_coefficients (tuple of three floats, or several): see :class:`Muon`.
        eps (float): the least norm of a matrix that is divided by, in the gradient's unit; usually 1e-7.
        ns_steps (int): the number of iterations, less than 100; usually 5.
        ns_dtype (str): what products are computed in, by default in ``"bfloat16"``.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range, or ``norm`` is not for parameters of so many dimensions.
        RuntimeError: in a step, if a parameter is complex.

    Example:
        >>> import torch
        >>> from steprule import Scion
        >>> weight = torch.zeros(2, 2, requires_grad=True)
        >>> optimizer = Scion([weight], lr=0.5, norm="sign", scale=8.0)
        >>> weight.grad = torch.tensor([[1.0, -2.0], [0.0, 3.0]])
        >>> optimizer.step()
        >>> weight.detach()
        tensor([[-2.,  2.],
                [ 0., -2.]])
    """

    switches: ClassVar[frozenset[str]] = frozenset()
    ranges: ClassVar[Ranges] = usually(
        lr="1e-4 to 1e-2",
        momentum=Range(above=0, most=1, usual="0.05 to 1"),
        norm=Choice(choices=("auto", "spectral", "sign", "row", "column", "rms")),
        scale=Range(above=0, usual="1 to 3000"),
        eps="1e-7",
        ns_steps=STEPS,
        ns_dtype=PRODUCTS,
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-3,
        momentum: Number = 1.0,
        norm: str = "auto",
        scale: Number = 1.0,
        unconstrained: bool = False,
        normalized: bool | None = None,
        ns_coefficients: Coefficients = (3.4445, -4.7750, 2.0315),
        eps: Number = 1e-7,
        ns_steps: int = 5,
        ns_dtype: str = "bfloat16",
        **options: Unpack[Options],
    ) -> None:
        defaults: dict[str, Any] = dict(lr=lr, momentum=momentum, norm=norm, scale=scale, unconstrained=unconstrained)
        defaults |= dict(normalized=normalized, ns_coefficients=ns_coefficients, eps=eps, ns_steps=ns_steps)
        super().__init__(params, defaults | dict(ns_dtype=ns_dtype), **options)

    def validate(self, h: Mapping[str, Any]) -> None:
        super().validate(h)
        check_coefficients(h["ns_coefficients"])

    def accept(self, group: Mapping[str, Any]) -> None:
        kind = group["norm"]
        for p in group["params"]:
            found = dimensions("of a lazy module", p)
            if (kind in ("sign", "row", "column") and found != 2) or (kind == "spectral" and found < 2):
                what = "matrices" if kind != "spectral" else "matrices and convolutions"
                raise ValueError(
                    f"norm={kind!r} is for {what}, but a parameter has size {p.size()}; norm='auto' is for all"
                )

    def refuse(self, p: torch.Tensor) -> None:
        if p.is_complex():
            raise RuntimeError("Scion does not support complex parameters")

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        d = g
        if 1 - h.momentum:
            d = s.momentum_buffer = lerp(s.momentum_buffer, g, h.momentum)
        kept = p if h.unconstrained else p * (1 - h.lr)
        return kept - h.lr * h.scale * self.lmo(d, p, h)

    def lmo(self, d: Any, p: Any, h: Any) -> Any:
        """The point of the unit ball that is farthest along ``d``."""
        kind = h.norm if h.norm != "auto" else ("spectral" if ndim(p) > 1 else "rms")
        normalized = kind != "column" if h.normalized is None else h.normalized
        if kind == "rms":
            return d / (sqrt(mean(square(d))) + 1e-8)
        if kind == "sign":
            return sign(d) / size(p, 1) if normalized else sign(d)
        if kind == "row":
            return d / (norm(d, dim=-1) * (sqrt(size(p, 1)) if normalized else 1.0) + 1e-8)
        if kind == "column":
            return d / (norm(d, dim=-2) / sqrt(size(p, 0)) * (size(p, 1) if normalized else 1.0) + 1e-8)
        places = size(p) / (size(p, 0) * size(p, 1))
        scale = sqrt(size(p, 0) / size(p, 1)) if normalized else sqrt(size(p, 0))
        return scale / places * orthogonal(d, h)
