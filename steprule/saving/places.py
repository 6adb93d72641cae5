"""Which saved parameter belongs to which one here."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from steprule.names import Rename, match, refuse_unknown, unwrapped

from .groups import Group
from .saved import Saved

__all__ = ["names_of", "places_of", "resized_names"]


def names_of(groups: Sequence[Group]) -> list[str] | None:
    """The names of the parameters in order; None where a group has none."""
    if not all("param_names" in group for group in groups):
        return None
    return [name for group in groups for name in group["param_names"]]


def places_of(groups: Sequence[Group], saved: Saved, rename: Rename | None) -> list[int | None]:
    """For each parameter here the index of the saved one: by name where both sides have names, otherwise by position.

    Args:
        groups: ``optimizer.param_groups``.
        saved: what was saved.
        rename: saved name -> name here, see :func:`steprule.names.match`.

    Raises:
        ValueError: by position, the groups are not those that were saved; or names are ambiguous, or needed.
    """
    names = names_of(groups)
    if names is not None and saved.names is not None:
        return match(names, saved.names, rename)
    if rename is not None:
        raise ValueError("rename= needs names on both sides: make the optimizer from a module")
    _refuse_other_groups(groups, saved.groups)
    return list(range(len(saved.parameters)))


def _refuse_other_groups(groups: Sequence[Group], saved: Sequence[Group]) -> None:
    if len(groups) != len(saved):
        raise ValueError(
            f"loaded state dict has a different number of parameter groups: {len(saved)}, and this "
            f"optimizer has {len(groups)}"
        )
    for i, (group, other) in enumerate(zip(groups, saved, strict=True)):
        if len(group["params"]) != len(other["params"]):
            raise ValueError(
                f"loaded state dict contains a parameter group that doesn't match the size of optimizer's "
                f"group: group {i} has {len(other['params'])} parameters there, {len(group['params'])} here"
            )


def resized_names(resize: Collection[str], groups: Sequence[Group]) -> set[str]:
    """The names here of the parameters that may have been saved with other sizes.

    Raises:
        TypeError: ``resize`` is a string.
        ValueError: there are no names, or not these.
    """
    names = names_of(groups)
    if isinstance(resize, str):
        raise TypeError(f"resize= must be a collection of names, not the string {resize!r}")
    if resize and names is None:
        raise ValueError("resize= needs names: make the optimizer from a module")
    known = {unwrapped(name): name for name in names or ()}
    refuse_unknown("resize=", resize, list(known), "this optimizer")
    return {known[unwrapped(name)] for name in resize}
