from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from ..kernels.launch import arithmetic
from ..optimizer import Optimizer
from ..schedules import write

__all__ = ["Gradient", "OptimizerByTorch"]


class OptimizerByTorch(Optimizer):
    """Base of the algorithms that no update rule describes: they work by torch operations on any device.

    A subclass says in :meth:`update_one` what a step does to a parameter, or has a step of its own.
    """

    _total_norm: torch.Tensor | None = None

    def update_one(self, p: torch.Tensor, gradient: Gradient, state: dict[str, Any], h: Mapping[str, Any]) -> None:
        """Update one parameter in place, and its state.

        Args:
            p: the parameter.
            gradient: its gradient with all options applied.
            state: its state, empty at first.
            h: the hyperparameters of its group.
        """
        raise NotImplementedError

    def refuse(self, p: torch.Tensor) -> None:
        """Raise if a parameter or its gradient is of a kind that the algorithm is not for; nothing has changed yet."""

    def validate(self, h: Mapping[str, Any]) -> None:
        super().validate(h)
        if h["backend"] not in ("auto", "eager"):
            raise ValueError(
                f"{type(self).__name__} works by torch operations; backend={h['backend']!r} can't serve it"
            )

    def explain(self, source: bool = False) -> str:
        """Which kernel serves which parameters: none, here."""
        return f"{type(self).__name__} works by torch operations, on whatever device its parameters are"

    @property
    def grad_norm(self) -> torch.Tensor:
        """The norm of all gradients together in the last step, before clipping: a 0-dim float64 tensor."""
        return super().grad_norm if self._total_norm is None else self._total_norm

    @torch.no_grad()
    def _apply(self) -> None:
        if self._scheduled:
            write(self.param_groups, self._steps)
        work = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for p, _ in work:
            self.refuse(p)
        grad_scale = self.__dict__.get("grad_scale")
        scale: Factor = 1.0 if grad_scale is None else torch.as_tensor(grad_scale).double().reciprocal()
        if work and any(group["clip_norm"] for group in self.param_groups):
            self._total_norm = scale * total_norm([p.grad for p, _ in work])
        for p, group in work:
            factor = -scale if group["maximize"] else scale
            if group["clip_norm"]:
                factor = factor * (group["clip_norm"] / (self.grad_norm + 1e-6)).clamp(max=1.0)
            self.update_one(p, Gradient(p, p.grad, factor, float(group["l1"])), self.state[p], group)
        self._steps += 1


def total_norm(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    norms = [torch.linalg.vector_norm(g, dtype=arithmetic(g.dtype)).double() for g in gradients]
    return torch.stack([norm.to(norms[0].device, non_blocking=True) for norm in norms]).square().sum().sqrt()


Factor: TypeAlias = float | torch.Tensor
"""A number that only the device knows, if it is a tensor of no dimension."""


@dataclass(frozen=True)
class Gradient:
    """A gradient as it counts, a part at a time, in the dtype of the arithmetic."""

    param: torch.Tensor
    grad: torch.Tensor
    factor: Factor
    l1: float

    def __getitem__(self, part: slice) -> torch.Tensor:
        x = self.grad[part].to(arithmetic(self.param.dtype))
        if isinstance(self.factor, torch.Tensor):
            x = x * self.factor.to(x.device, non_blocking=True)
        elif self.factor != 1.0:
            x = x * self.factor
        return x + self.l1 * self.param[part].sign() if self.l1 else x
