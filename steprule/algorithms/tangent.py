"""The part of a step that does not change the length of weights whose scale does not matter."""

from __future__ import annotations

from typing import Any

from steprule.rule import abs, max_abs, maximum, ndim, norm, size, sqrt, stored, sum, where

__all__ = ["tangential"]


def tangential(p: Any, g: Any, u: Any, h: Any) -> tuple[Any, Any]:
    """A step without its part along the parameter, where the gradient has none, and how much of the decay counts.

    Args:
        p: the parameter: all its channels are looked at, then the whole.
        g: its gradient.
        u: the step.
        h: the hyperparameters, of which ``delta``, ``eps`` and ``wd_ratio`` are read.
    """
    if ndim(p) < 2:
        return u, 1.0
    channel: Any = {"scope": "channel"}
    along = max_abs(cosine_of_angle(p, g, h.eps, **channel) + 0 * p)  # as an array, whose largest element can be found
    channels = along < h.delta * sqrt(size(p, 0) / size(p))
    layer = abs(cosine_of_angle(p, g, h.eps)) < h.delta / sqrt(size(p))
    radial = where(channels, radial_part(p, u, h.eps, **channel), where(layer, radial_part(p, u, h.eps), 0.0))
    # p as it is held: a multiple of p itself would count as decay to modifiers
    return u - radial * stored(p), where(channels | layer, h.wd_ratio, 1.0)


def cosine_of_angle(p: Any, g: Any, eps: Any, **scope: Any) -> Any:
    return sum(p * g, **scope) / (maximum(norm(p, **scope), eps) * maximum(norm(g, **scope), eps))


def radial_part(p: Any, u: Any, eps: Any, **scope: Any) -> Any:
    """The step along the parameter, as a multiple of it."""
    length = norm(p, **scope) + eps
    return sum(p * u, **scope) / (length * length)
