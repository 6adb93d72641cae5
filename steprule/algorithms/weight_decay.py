"""The two kinds of weight decay: a penalty whose gradient is added, and a parameter that shrinks by itself."""

from __future__ import annotations

from typing import Any

__all__ = ["decayed", "penalized"]


def penalized(g: Any, p: Any, h: Any) -> Any:
    """The gradient with that of the penalty ``weight_decay / 2 * |p|**2`` added."""
    return g + h.weight_decay * p if h.weight_decay else g


def decayed(p: Any, g: Any, h: Any) -> tuple[Any, Any]:
    """Parameter and gradient after weight decay, which shrinks the one (decoupled) or is added to the other."""
    if h.decoupled_weight_decay:
        return p * (1 - h.lr * h.weight_decay), g
    return p, penalized(g, p, h)
