"""Which class of steprule goes on where an optimizer of ``torch.optim`` stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch

__all__ = ["named", "namesake"]

T = TypeVar("T", bound=torch.optim.Optimizer)


def namesake(cls: type[T], optimizer: torch.optim.Optimizer) -> type[T]:
    """The class of steprule that is called as an optimizer's: ``cls`` or one that is derived from it.

    Raises:
        TypeError: there is none.
    """
    name, package = type(optimizer).__name__, __name__.partition(".")[0]
    for known in (cls, *descendants(cls)):
        if known.__name__ == name and known.__module__.partition(".")[0] == package:
            return known
    which = "that steprule has too" if cls.__name__ == "Optimizer" else f"called {cls.__name__}"
    raise TypeError(
        f"{cls.__name__}.from_torch() takes no {type(optimizer).__module__}.{name}, only an optimizer of torch.optim "
        f"{which}"
    )


def descendants(cls: type[T]) -> Iterator[type[T]]:
    """The subclasses of a class, theirs, and so on."""
    for child in cls.__subclasses__():
        yield child
        yield from descendants(child)


def named(group: Mapping[str, Any]) -> list[Any]:
    """A group's parameters, with their names where it has some."""
    return list(zip(group["param_names"], group["params"], strict=True)) if "param_names" in group else group["params"]
