"""Which parameters belong to an optimizer, as selectors see them, and which do not yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, repeat
from typing import Any

import torch
from torch import nn

from .globs import fold
from .selectors import Entry, entries, untracked

__all__ = ["known_entries", "missing", "newcomers"]

Groups = Sequence[Mapping[str, Any]]


def known_entries(modules: Iterable[nn.Module], groups: Groups) -> list[Entry]:
    """The parameters of the modules that an optimizer was given, then the others of its groups."""
    found: dict[int, Entry] = {}
    for entry in chain.from_iterable(map(entries, modules)):
        found.setdefault(id(entry.parameter), entry)
    for group in groups:
        for p, name in zip(group["params"], group.get("param_names") or repeat(""), strict=False):
            found.setdefault(id(p), Entry(name, p))
    return list(found.values())


def missing(model: nn.Module, groups: Groups, optimizer: str) -> str | None:
    """What to say of the parameters that train but are in no group; None if there are none."""
    names = [name for name, _ in untracked(model, [p for group in groups for p in group["params"]])]
    if not names:
        return None
    listed = ", ".join(names if len(names) < 9 else fold(names))
    return (
        f"of {type(model).__name__}, {listed} train but are in no group of this {optimizer}: optimizer.add(...) "
        "takes them in"
    )


def newcomers(
    what: nn.Module | torch.Tensor | Iterable[Any], modules: Iterable[nn.Module], groups: Groups
) -> list[Any]:
    """Those of some parameters that are in no group yet, with their names where the optimizer knows names.

    Args:
        what: a module, a tensor, or an iterable of tensors or (name, tensor) pairs.
        modules: those that the optimizer was given, of which the full names are.
        groups: its parameter groups.

    Raises:
        ValueError: all of them are in a group already; names are needed and not known, or are taken.
    """
    given = what.named_parameters() if isinstance(what, nn.Module) else what
    pairs = [x if isinstance(x, tuple) else ("", x) for x in ([given] if isinstance(given, torch.Tensor) else given)]
    grouped = {id(p) for group in groups for p in group["params"]}
    full = {id(entry.parameter): entry.name for entry in known_entries(modules, groups)}
    new = {id(p): (full.get(id(p)) or name, p) for name, p in pairs if id(p) not in grouped}
    if not new:
        raise ValueError("every one of these parameters is in a group already")
    taken = {name for group in groups for name in group.get("param_names", ())}
    if not taken:
        return [p for _, p in new.values()]
    names = {name for name, _ in new.values()}
    if "" in names:
        raise ValueError("the optimizer knows its parameters by name: give (name, tensor) pairs or a module")
    if double := sorted(names & taken):
        raise ValueError(f"other parameters are called {', '.join(double)} already: give (name, tensor) pairs")
    return list(new.values())
