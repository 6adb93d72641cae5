"""D-Adaptation's estimate of how far the solution is: one number of the whole optimizer."""

from __future__ import annotations

import math
from typing import Any

from steprule.rule import abs, maximum, minimum, scalar, sum, where

__all__ = ["ESTIMATE", "estimated"]

ESTIMATE = {"d": scalar("d0", scope="all"), "numerator_weighted": scalar(scope="all")}
"""The slots of the estimate."""


def estimated(s: Any, kept: Any, gained: Any, path: Any, growth_rate: Any = math.inf) -> None:
    """Let the estimate grow to what all gradients together show.

    Args:
        s: the state, with the slots of the estimate.
        kept: how much of the numerator is kept from step to step.
        gained: what each element adds to the numerator.
        path: the weighted sum of steps, whose norm is the denominator.
        growth_rate: by which factor the estimate may grow.
    """
    size = sum(abs(path), scope="all")
    numerator = kept * s.numerator_weighted + (1 - kept) * sum(gained, scope="all")
    s.numerator_weighted = where(size > 0, numerator, s.numerator_weighted)
    found = where(size > 0, numerator / ((1 - kept) * size), s.d)
    s.d = maximum(s.d, minimum(found, s.d * growth_rate))
