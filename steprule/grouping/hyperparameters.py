"""What hyperparameters may be, declared once: how they are checked, what messages call them, what is usual."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.optim.optimizer import required

from steprule.messages.spelling import nearest
from steprule.schedules import Schedule

__all__ = ["Choice", "Declared", "Number", "Range", "check_number", "check_ranges"]

Number: TypeAlias = float | torch.Tensor | Schedule


@dataclass(frozen=True, kw_only=True)
class Range:
    """The numbers that a hyperparameter may be; an infinity is one, NaN is none where there is a bound.

    Args:
        least, most (float, optional): the smallest and the largest number that is taken.
        above, below (float, optional): bounds that are not taken themselves.
        usual (str): the numbers that people give, for the documentation.
        optional (bool): whether None is taken too.
        called (str): what messages call it; ``"NAME value"`` by default.
        message (str): what a number out of range is refused with. It is formatted with ``called``, the ``range``, the
            ``value``, and the ``whole`` tuple of which it may be an element.

    Example:
        >>> Range(least=0, usual="0.9 to 0.99").check("momentum", -0.5)
        Traceback (most recent call last):
        ValueError: Invalid momentum value: -0.5
        >>> print(Range(least=0, below=1))
        >= 0 and < 1
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    usual: str = ""
    optional: bool = False
    called: str = ""
    message: str = "Invalid {called}: {value}"

    def __str__(self) -> str:
        bounds = {">=": self.least, ">": self.above, "<=": self.most, "<": self.below}
        return " and ".join(f"{sign} {bound:g}" for sign, bound in bounds.items() if bound is not None)

    def holds(self, value: Any) -> bool:
        """Whether a number lies in the range."""
        return (
            (self.least is None or bool(value >= self.least))
            and (self.above is None or bool(value > self.above))
            and (self.most is None or bool(value <= self.most))
            and (self.below is None or bool(value < self.below))
        )

    def check(self, name: str, value: Any, whole: tuple[Any, ...] = ()) -> None:
        """Refuse what is no number, or out of range.

        Args:
            name: the hyperparameter.
            value: what was given for it.
            whole: the tuple that ``value`` is an element of.

        Raises:
            TypeError: if it is no number.
            ValueError: if it is out of range, or a tensor of several numbers.
        """
        if value is None and self.optional:
            return
        check_number(name, value)
        if not whole and isinstance(value, torch.Tensor) and value.numel() != 1:
            raise ValueError(f"Tensor {name} must be 1-element")
        if not self.holds(value):
            called = self.called or f"{name} value"
            raise ValueError(self.message.format(called=called, range=self, value=value, whole=whole))


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The values, among a few, that a hyperparameter may be.

    Args:
        choices (tuple): the values.
        usual (str): what people give, for the documentation.
        message (str): what others are refused with, formatted with the ``name``, the ``value`` and the ``choices``.

    Example:
        >>> Choice(choices=("l1", "l2")).check("penalty", "l3")
        Traceback (most recent call last):
        ValueError: Invalid penalty: 'l3'; it is one of l1, l2
    """

    choices: tuple[Any, ...]
    usual: str = ""
    message: str = "Invalid {name}: {value!r}; it is one of {choices}"

    def __str__(self) -> str:
        return ", ".join(map(str, self.choices))

    def check(self, name: str, value: Any) -> None:
        """Refuse what is none of the choices.

        Raises:
            ValueError: in the words of the ``message``.
        """
        if value not in self.choices:
            raise ValueError(self.message.format(name=name, value=value, choices=self))


Declared: TypeAlias = Range | Choice | tuple[Range, ...]
"""What a hyperparameter may be; a tuple of ranges is that of a tuple of so many numbers."""


def check_ranges(ranges: Mapping[str, Declared], h: Mapping[str, Any]) -> None:
    """Refuse hyperparameters that are not what was declared, in the order of the declaration.

    Args:
        ranges: name -> what it may be.
        h: the hyperparameters, without schedules; those that are still ``required`` are passed over.

    Raises:
        ValueError: naming the first that is out of range, and its value.
        TypeError: naming the first that is no number, or is declared and not there.
    """
    for name, declared in ranges.items():
        if name not in h:
            raise TypeError(f"a range is declared for {name!r}, which is no hyperparameter{nearest(name, list(h))}")
        value = h[name]
        if value is required:
            continue
        if isinstance(declared, tuple):
            whole = tuple_of(name, value, len(declared))
            for index, (one, element) in enumerate(zip(declared, whole, strict=True)):
                one.check(f"{name}[{index}]", element, whole)
        else:
            declared.check(name, value)


def tuple_of(name: str, value: Any, count: int) -> tuple[Any, ...]:
    """The elements of a tuple.

    Raises:
        TypeError: if they are not so many.
    """
    try:
        found = tuple(value)
    except TypeError:
        found = ()
    if len(found) != count:
        raise TypeError(f"{name} must be {'two' if count == 2 else count} numbers, got {value!r}")
    return found


def check_number(name: str, value: Any) -> None:
    """Refuse a hyperparameter that is not a number.

    Raises:
        TypeError: naming it and its value.
    """
    if not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, a tensor that holds one or a schedule, got {value!r}")
