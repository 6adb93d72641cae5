"""What the constructors of many algorithms take: the types of their arguments, and the ranges with words of torch's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

from torch import nn

from steprule.grouping.hyperparameters import Choice, Number, Range

__all__ = ["PENALTY", "Choice", "Number", "Params", "Range", "betas", "epsilon", "rate", "should_be"]

Params: TypeAlias = nn.Module | Iterable[Any]

PENALTY = Range(least=0, usual="0, or 1e-6 to 1e-2")
"""The strength of an L2 penalty."""


def rate(usual: str) -> Range:
    """A learning rate."""
    return Range(least=0, called="learning rate", usual=usual)


def epsilon(usual: str) -> Range:
    """What keeps a denominator from 0."""
    return Range(least=0, called="epsilon value", usual=usual)


def betas(*usual: str) -> tuple[Range, ...]:
    """How much of each running mean is kept from step to step."""
    return tuple(
        Range(least=0, below=1, called=f"beta parameter at index {index}", usual=one) for index, one in enumerate(usual)
    )


def should_be(called: str, usual: str, **bounds: Any) -> Range:
    """A range that is refused in the words of torch's newer algorithms."""
    return Range(called=called, usual=usual, message="{called} should be {range} but is: {value}", **bounds)
