"""What many algorithms take: the types of their arguments, and what these may be, in words of torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from torch import nn
from typing_extensions import Unpack

from steprule.grouping.hyperparameters import Choice, Declared, Number, Range
from steprule.rule.modifier import Modifier
from steprule.rule.slot import Slot
from steprule.stepping.options import KeywordOptions, MatrixOptions, Options, PlacedOptions

__all__ = [
    "PENALTY",
    "Choice",
    "KeywordOptions",
    "MatrixOptions",
    "Number",
    "Options",
    "Params",
    "Parts",
    "PlacedOptions",
    "Range",
    "Ranges",
    "Slots",
    "Unpack",
    "should_be",
    "usually",
]

Params: TypeAlias = nn.Module | Iterable[Any]
Ranges: TypeAlias = Mapping[str, Declared]
Slots: TypeAlias = Mapping[str, Slot]
Parts: TypeAlias = tuple[Modifier, ...]

PENALTY = "0, or 1e-6 to 1e-2"
"""What is usual of the strength of an L2 penalty."""

CALLED = {"lr": "learning rate", "eps": "epsilon value"}
"""What torch's messages call hyperparameters that they do not call by name."""


def usually(**hyperparameters: str | tuple[str | Range, ...] | Declared) -> dict[str, Declared]:
    """What hyperparameters may be, for the ``ranges`` of an algorithm.

    Args:
        **hyperparameters: in the order in which torch checks them. A text says what is usual of a number that must
            not be negative; a tuple of texts, of parts of running means that are kept from step to step (betas).
            Everything else is declared as it stands.

    Example:
        >>> {name: str(declared) for name, declared in usually(lr="1e-4 to 1e-2", rho=Range(most=1)).items()}
        {'lr': '>= 0', 'rho': '<= 1'}
    """
    return {name: as_declared(name, given) for name, given in hyperparameters.items()}


def as_declared(name: str, given: str | tuple[str | Range, ...] | Declared) -> Declared:
    """What one of them may be."""
    if isinstance(given, str):
        return Range(least=0, called=CALLED.get(name, ""), usual=given)
    if isinstance(given, tuple):
        return tuple(beta(index, one) if isinstance(one, str) else one for index, one in enumerate(given))
    return given


def beta(index: int, usual: str) -> Range:
    """How much of a running mean is kept from step to step."""
    return Range(least=0, below=1, called=f"beta parameter at index {index}", usual=usual)


def should_be(called: str, usual: str, **bounds: Any) -> Range:
    """A range that is refused in the words of torch's newer algorithms."""
    return Range(called=called, usual=usual, message="{called} should be {range} but is: {value}", **bounds)
