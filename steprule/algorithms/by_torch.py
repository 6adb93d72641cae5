from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..optimizer import Optimizer

__all__ = ["OptimizerByTorch"]


class OptimizerByTorch(Optimizer):
    """Base of the algorithms that no update rule describes: they work by torch operations on any device."""

    def validate(self, h: Mapping[str, Any]) -> None:
        super().validate(h)
        if h["backend"] not in ("auto", "eager"):
            raise ValueError(
                f"{type(self).__name__} works by torch operations; backend={h['backend']!r} can't serve it"
            )

    def explain(self, source: bool = False) -> str:
        """Which kernel serves which parameters: none, here."""
        return f"{type(self).__name__} works by torch operations, on whatever device its parameters are"
