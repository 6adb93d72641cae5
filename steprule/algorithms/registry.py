"""Algorithms by name, for configuration files, sweeps and command lines."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from steprule.messages.spelling import nearest
from steprule.optimizer import Optimizer
from steprule.schedules import from_dict
from steprule.stepping.taking_over import descendants

from .arguments import Params

__all__ = ["create", "names"]


def names() -> dict[str, str]:
    """Every algorithm of steprule, by name.

    Returns:
        Name -> one sentence that says what the algorithm is, in alphabetical order.

    Example:
        >>> import steprule
        >>> print(steprule.algorithms.names()["Lion"])
        Every coordinate moves by the rate, in the direction of a momentum that leans on the newest gradient.
    """
    return {name: sentence(kind) for name, kind in sorted(classes().items(), key=lambda item: item[0].casefold())}


def create(name: str, params: Params, **hyper: Any) -> Optimizer:
    """The optimizer of a name, as ``getattr(steprule, name)(params, **hyper)`` makes it.

    Args:
        name: one of :func:`steprule.algorithms.names`, in capitals or not.
        params: see :class:`steprule.Optimizer`.
        **hyper: its hyperparameters and options. A dictionary with the key ``"schedule"``, as
            :meth:`steprule.schedules.Schedule.to_dict` gives it, is that schedule, also inside of ``betas`` or
            ``overrides``.

    Raises:
        ValueError: there is no such algorithm (the message says the nearest), or a hyperparameter is out of range.
        TypeError: ``name`` is not a string, or the algorithm has no such hyperparameter.

    Example:
        >>> import steprule, torch
        >>> weight = torch.ones(2, requires_grad=True)
        >>> steprule.create("adamw", [weight], lr=0.5, betas=[0.9, 0.95]).defaults["betas"]
        [0.9, 0.95]
        >>> steprule.create("AdaW", [weight])
        Traceback (most recent call last):
        ValueError: there is no algorithm 'AdaW'; did you mean 'AdamW' ...
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be the name of an algorithm, such as 'AdamW', got {name!r}")
    known = {kind.casefold(): found for kind, found in classes().items()}
    if name.casefold() not in known:
        own = name.rpartition(".")[2]  # of a name written as an import, "torch.optim.AdamW"
        hint = nearest(own, names()) or f"; there are {', '.join(names())}"
        raise ValueError(f"there is no algorithm {name!r}{hint}")
    make: Any = known[name.casefold()]
    optimizer: Optimizer = make(params, **{key: revived(value) for key, value in hyper.items()})
    return optimizer


def revived(value: Any) -> Any:
    """A hyperparameter with the schedules that stand in it as plain data made into schedules."""
    if isinstance(value, Mapping):
        return from_dict(value) if "schedule" in value else {key: revived(part) for key, part in value.items()}
    return type(value)(map(revived, value)) if type(value) in (list, tuple) else value


def classes() -> dict[str, type[Optimizer]]:
    """The public classes of this room, by name."""
    return {
        kind.__name__: kind
        for kind in descendants(Optimizer)
        if kind.__module__.startswith(f"{__package__}.") and not kind.__name__.startswith("_")
    }


def sentence(kind: type[Optimizer]) -> str:
    """What stands first in an algorithm's docstring, without its own name before a colon."""
    text = " ".join(inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0].split())
    text = text.removeprefix(f"{kind.__name__}: ")
    return text[:1].upper() + text[1:]
