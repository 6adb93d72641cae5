"""What takes hidden matrices, and gives every other parameter to AdamW in the same optimizer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from steprule.algorithms.arguments import MatrixOptions, Params, Unpack
from steprule.algorithms.moments import adam_step
from steprule.grouping.selectors import NamedParameter, Selector, dimensions, entries, outer_weights
from steprule.optimizer import Optimizer

__all__: list[str] = []

ADAMW: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}


class _HiddenMatrices(Optimizer):
    """An algorithm for matrices alone. Given a module, it sorts the parameters itself; of a group, the hyperparameter
    :attr:`flag` says whose it is.

    Args:
        params: a module to be sorted; or matrices, as :class:`steprule.Optimizer` takes them.
        hyper: the hyperparameters of the matrices.
        adamw: those of AdamW that differ from its defaults.
        convolutions: whether parameters of more than two dimensions are matrices.
        overrides, options: see :class:`steprule.Optimizer`.
    """

    switches: ClassVar[frozenset[str]] = frozenset()
    flag: ClassVar[str] = "use_muon"

    def __init__(
        self,
        params: Params,
        hyper: Mapping[str, Any],
        adamw: Mapping[str, Any] | None,
        convolutions: bool,
        overrides: Mapping[Any, Mapping[str, Any]] | None,
        **options: Unpack[MatrixOptions],
    ) -> None:
        if strange := sorted(set(adamw or {}) - set(ADAMW)):
            raise TypeError(f"adamw takes {', '.join(ADAMW)}, not {', '.join(strange)}")
        rest: dict[str, Any] = {**ADAMW, **(adamw or {})}
        self._sides: dict[Any, dict[str, Any]] = {
            True: {name: hyper[name] for name in ADAMW if name in hyper},
            False: rest,
        }
        defaults = {**rest, **hyper, self.flag: True, "convolutions": convolutions}
        chosen = {what: self._of_side(given) for what, given in (overrides or {}).items()}
        said = any("algorithm" in given for given in chosen.values())
        if isinstance(params, nn.Module) and not said:
            found = others(params, convolutions)
            chosen = {**({found: self._of_side({self.flag: False})} if found else {}), **chosen}
        elif isinstance(params, (list, tuple)):
            params = [self._of_side(item) if isinstance(item, dict) else item for item in params]
        super().__init__(params, defaults, overrides=chosen, **options)
        if isinstance(params, nn.Module) and not said and not any(group[self.flag] for group in self.param_groups):
            guessed = "".join(f" ({words})" for words in self._workings.guesses)
            warnings.warn(
                f"{type(self).__name__} found no hidden matrix in {type(params).__name__}{guessed}: AdamW trains all "
                f"of it, with the rate in adamw=, and nothing follows lr; overrides={{...: dict({self.flag}=True)}} "
                "names one",
                stacklevel=3,
            )

    def _of_side(self, hyper: Mapping[str, Any]) -> dict[str, Any]:
        """Hyperparameters that say who a parameter belongs to, with the numbers that go with it."""
        return {**self._sides.get(hyper.get(self.flag), {}), **hyper}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_sides": self._sides}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(self._of_side(param_group) if isinstance(param_group, dict) else param_group)

    def accept(self, group: Mapping[str, Any]) -> None:
        for p in group["params"] if group[self.flag] else ():
            ndim = dimensions("of a lazy module", p)
            if ndim != 2 and not (group["convolutions"] and ndim > 2):
                name = type(self).__name__
                raise ValueError(
                    f"{name} only supports 2D parameters whereas we found a parameter with size: {p.size()}; given the "
                    f"model itself, {name}(model) trains its matrices and AdamW the rest"
                )

    def refuse(self, p: torch.Tensor) -> None:
        if p.is_complex() and any(p is q for g in self.param_groups if g[self.flag] for q in g["params"]):
            raise RuntimeError(f"{type(self).__name__} does not support complex parameters")

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        decayed = p * (1 - h.lr * h.weight_decay)
        if not getattr(h, self.flag):
            return decayed - adam_step(g, s, h, h.lr)
        return decayed - h.lr * self.direction(p, g, s, h)

    def direction(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        """What a matrix loses in a step, over the rate; with the state written."""
        raise NotImplementedError


def others(model: nn.Module, convolutions: bool) -> Selector | None:
    """Selects those of a model's parameters that are not for Muon; None where there are none."""
    outer, guessed = outer_weights(model)

    def rest(entry: NamedParameter) -> bool:
        ndim = dimensions(entry.name, entry.parameter)
        is_matrix = ndim == 2 or (convolutions and ndim > 2)
        return not is_matrix or id(entry.parameter) in outer

    found = any(map(rest, entries(model)))
    return Selector("what is no hidden matrix", rest, guess=lambda _: guessed) if found else None
