"""What somebody may have meant who wrote a name that is not there."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection
from typing import Any

__all__ = ["nearest", "refuse_misspelt"]


def nearest(name: str, names: Collection[str]) -> str:
    """``"; did you mean 'a' or 'b'?"``, or nothing where no name is near; capitals do not count.

    Example:
        >>> nearest("adamv", ["SGD", "AdamW"])
        "; did you mean 'AdamW'?"
    """
    spelled: dict[str, list[str]] = {}
    for known in names:
        spelled.setdefault(known.casefold(), []).append(known)
    close = difflib.get_close_matches(name.casefold(), spelled, n=3)
    found = [known for key in close for known in spelled[key]][:3]
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""


def refuse_misspelt(cls: type, base: type, names: Collection[str]) -> None:
    """Refuse a class that says something under a name that nobody asks for, and that looks like one that is.

    A method looks like another if its name is near and it takes as many arguments; a variable, if its name is near
    and its value is of the same kind.

    Args:
        cls: a subclass of ``base``.
        base: what is asked.
        names: what of ``base`` a subclass may say: methods, and class variables.

    Raises:
        TypeError: naming it, and what may be meant.
    """
    for own in cls.__mro__[: cls.__mro__.index(base)]:
        for name, value in vars(own).items():
            if name.startswith("_") or hasattr(base, name):
                continue
            for near in difflib.get_close_matches(name, names, 1, 0.75):
                if same_kind(value, getattr(base, near)):
                    raise TypeError(
                        f"{own.__name__}.{name} is never asked for; did you mean {near!r}? What is called so on "
                        "purpose may begin with an underscore"
                    )


def same_kind(value: Any, known: Any) -> bool:
    if inspect.isfunction(known):
        count = len(inspect.signature(known).parameters)
        return inspect.isfunction(value) and len(inspect.signature(value).parameters) == count
    return isinstance(value, type(known))
