from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from steprule.algorithms.adaptive.adamw import AdamW
from steprule.algorithms.arguments import Choice, Number, Params, Range, should_be
from steprule.algorithms.moments import adam_step, mean_of
from steprule.grouping.selectors import NamedParameter, Selector, dimensions, entries, outer_weights
from steprule.optimizer import Optimizer
from steprule.rule import lerp, matrix, maximum, size, sqrt

from .newton_schulz import orthogonalized

__all__ = ["Muon"]

ADAMW: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}


class Muon(Optimizer):
    r"""Momentum whose matrices are orthogonalized: every direction of a layer moves equally far.

    .. math::
        B_t &= \mu B_{t-1} + (1 - \mu)\, g_t \\
        O_t &= \operatorname{NS}\left((1 - \mu)\, g_t + \mu B_t\right)
            \qquad\text{(without nesterov: } \operatorname{NS}(B_t) \text{)} \\
        \theta_t &= (1 - \gamma\lambda)\, \theta_{t-1} - \gamma \, \sqrt{\max(1, \text{rows} / \text{columns})} \; O_t

    where NS are a few iterations of :math:`X \leftarrow a X + b (X X^T) X + c (X X^T)^2 X`, which bring all singular
    values near 1. `Muon: An optimizer for hidden layers in neural networks
    <https://kellerjordan.github.io/posts/muon/>`_, Jordan et al., 2024; ``adjust_lr_fn="match_rms_adamw"`` is of
    `Muon is Scalable for LLM Training <https://arxiv.org/abs/2502.16982>`_, Liu et al., 2025.

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
        ns_coefficients (tuple of three floats): a, b and c.
        eps (float): the least norm of a matrix that is divided by, in the gradient's unit.
        ns_steps (int): the number of iterations, less than 100; usually 5.
        adjust_lr_fn (str, optional): how the rate depends on the shape: ``"original"`` (the default) as above, or
            ``"match_rms_adamw"``: :math:`0.2 \sqrt{\max(\text{rows}, \text{columns})}`, for rates tuned for AdamW.
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

    switches: ClassVar[frozenset[str]] = frozenset()
    ranges: ClassVar = {
        "lr": should_be("Learning rate", "0.001 to 0.05", least=0),
        "momentum": should_be("momentum", "0.9 to 0.98", least=0),
        "weight_decay": should_be("weight decay", "0 to 0.1", least=0),
        "adjust_lr_fn": Choice(
            choices=(None, "original", "match_rms_adamw"),
            message="Adjust learning rate function {value} is not supported",
        ),
        "ns_steps": Range(
            below=100, usual="5", message="Number of steps must be less than 100 for computational efficiency"
        ),
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
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
        eps: Number = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        adamw: Mapping[str, Any] | None = None,
        convolutions: bool = False,
        overrides: Mapping[Any, Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> None:
        if strange := sorted(set(adamw or {}) - set(ADAMW)):
            raise TypeError(f"adamw takes {', '.join(ADAMW)}, not {', '.join(strange)}")
        self._sides: dict[Any, dict[str, Any]] = {
            True: dict(lr=lr, weight_decay=weight_decay, eps=eps),
            False: {**ADAMW, **(adamw or {})},
        }
        defaults: dict[str, Any] = dict(lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov, eps=eps)
        defaults |= dict(ns_coefficients=ns_coefficients, ns_steps=ns_steps, adjust_lr_fn=adjust_lr_fn)
        defaults |= dict(use_muon=True, convolutions=convolutions, betas=self._sides[False]["betas"])
        chosen = {what: self._of_side(hyper) for what, hyper in (overrides or {}).items()}
        said = any("algorithm" in hyper for hyper in chosen.values())
        if isinstance(params, nn.Module) and not said:
            rest = others(params, convolutions)
            chosen = {**({rest: self._of_side({"use_muon": False})} if rest else {}), **chosen}
        elif isinstance(params, (list, tuple)):
            params = [self._of_side(item) if isinstance(item, dict) else item for item in params]
        super().__init__(params, defaults, overrides=chosen, **options)
        if isinstance(params, nn.Module) and not said and not any(group["use_muon"] for group in self.param_groups):
            guessed = "".join(f" ({words})" for words in self._guesses)
            warnings.warn(
                f"Muon found no hidden matrix in {type(params).__name__}{guessed}: AdamW trains all of it, with the "
                "rate in adamw=, and nothing follows lr; overrides={...: dict(use_muon=True)} names one",
                stacklevel=2,
            )

    def _of_side(self, hyper: Mapping[str, Any]) -> dict[str, Any]:
        """Hyperparameters that say who a parameter belongs to, with the numbers that go with it."""
        return {**self._sides.get(hyper.get("use_muon"), {}), **hyper}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_sides": self._sides}

    def validate(self, h: Mapping[str, Any]) -> None:
        super().validate(h)
        if len(h["ns_coefficients"]) != 3:
            raise ValueError("Coefficients must be a tuple of exactly 3 values")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(self._of_side(param_group) if isinstance(param_group, dict) else param_group)

    def accept(self, group: Mapping[str, Any]) -> None:
        for p in group["params"] if group["use_muon"] else ():
            ndim = dimensions("of a lazy module", p)
            if ndim != 2 and not (group["convolutions"] and ndim > 2):
                raise ValueError(f"Muon only supports 2D parameters whereas we found a parameter with size: {p.size()}")

    def refuse(self, p: torch.Tensor) -> None:
        if p.is_complex() and any(p is q for g in self.param_groups if g["use_muon"] for q in g["params"]):
            raise RuntimeError("Muon does not support complex parameters")

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        decayed = p * (1 - h.lr * h.weight_decay)
        if not h.use_muon:
            return decayed - adam_step(g, s, h, h.lr)
        s.momentum_buffer = mean_of(s.momentum_buffer, g, h.momentum)
        x = lerp(g, s.momentum_buffer, h.momentum) if h.nesterov else s.momentum_buffer
        o = matrix(orthogonalized, x, *h.ns_coefficients, h.eps, h.ns_steps, dtype="bfloat16")
        rows, columns = size(p, 0), size(p) / size(p, 0)
        matched = h.adjust_lr_fn == "match_rms_adamw"
        ratio = 0.2 * sqrt(maximum(rows, columns)) if matched else sqrt(maximum(1, rows / columns))
        return decayed - h.lr * ratio * o


def others(model: nn.Module, convolutions: bool) -> Selector | None:
    """Selects those of a model's parameters that are not for Muon; None where there are none."""
    outer, guessed = outer_weights(model)

    def rest(entry: NamedParameter) -> bool:
        ndim = dimensions(entry.name, entry.parameter)
        is_matrix = ndim == 2 or (convolutions and ndim > 2)
        return not is_matrix or id(entry.parameter) in outer

    found = any(map(rest, entries(model)))
    return Selector("what is no hidden matrix", rest, guess=lambda _: guessed) if found else None
