"""An optimizer of ``torch.optim``, and that of steprule which goes on where it stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from .state_dicts import install, plan_load

if TYPE_CHECKING:
    from steprule.optimizer import Optimizer

__all__ = ["descendants", "from_torch"]

T = TypeVar("T", bound="Optimizer")
C = TypeVar("C")


def from_torch(cls: type[T], optimizer: torch.optim.Optimizer) -> T:
    """The optimizer of the same name that goes on where one of ``torch.optim`` stands.

    Groups, hyperparameters and state are taken over; the state's tensors are not copied, so the old optimizer
    must not step again. Schedulers and hooks stay with the old one: make them anew.

    Args:
        optimizer: a live optimizer of ``torch.optim``.

    Raises:
        TypeError: if there is no algorithm of that name, or this class is another one.

    Example:
        >>> import torch
        >>> from steprule import Optimizer
        >>> weight = torch.ones(2, requires_grad=True)
        >>> type(Optimizer.from_torch(torch.optim.AdamW([weight], lr=0.1)))
        <class 'steprule.algorithms.adaptive.adamw.AdamW'>
    """
    taken = [dict(group, params=named(group)) for group in optimizer.param_groups]
    kind, old = namesake(cls, optimizer), optimizer.defaults
    new = kind(taken, **{name: old[name] for name in kind.switches if old.get(name)})
    plan = plan_load(new, optimizer.state_dict(), hyperparameters="current", given=lambda _: True)
    install(new, plan)
    return new


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


def descendants(cls: type[C]) -> Iterator[type[C]]:
    """The subclasses of a class, theirs, and so on."""
    for child in cls.__subclasses__():
        yield child
        yield from descendants(child)


def named(group: Mapping[str, Any]) -> list[Any]:
    """A group's parameters, with their names where it has some."""
    return list(zip(group["param_names"], group["params"], strict=True)) if "param_names" in group else group["params"]
