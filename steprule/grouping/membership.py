"""Which parameters belong to an optimizer, under which names, and which do not yet."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, count, repeat
from typing import Any, TypeAlias

import torch
from torch import nn

from .globs import fold
from .selectors import NamedParameter, Selectable, chosen, entries, selector, untracked

__all__ = ["Members", "missing", "refuse_members"]

Groups = Sequence[Mapping[str, Any]]

Seen: TypeAlias = dict[int, tuple[list["weakref.ref[torch.Tensor]"], list[str]]]
"""By a group's identity, its parameters and their names as they were."""


class Members:
    """The modules that an optimizer was given, and the names its parameters had when they were last looked at."""

    def __init__(self, params: object = None) -> None:
        self.models: list[weakref.ref[nn.Module]] = []
        self.unchecked = isinstance(params, nn.Module)
        """Whether nobody has looked yet for parameters that train outside of every group."""
        self.seen: Seen = {}
        self.know(params)

    def know(self, what: object) -> None:
        """Remember a module, whose parameters' names are known from now on."""
        if isinstance(what, nn.Module):
            self.models.append(weakref.ref(what))

    def modules(self) -> list[nn.Module]:
        """Those that still live."""
        return [module for known in self.models if (module := known()) is not None]

    def keep_names(self, groups: Sequence[dict[str, Any]]) -> None:
        """Let names follow their parameters where somebody has changed a group's ``params``."""
        self.seen = keep_names(groups, self.seen, self.modules())

    def train(self, what: Selectable, groups: Sequence[dict[str, Any]], on: bool) -> list[str]:
        """Let the parameters that a selector means get gradients, or get none and keep their state.

        Returns:
            The names of the parameters.

        Raises:
            ValueError: it matches nothing, or needs names or modules that are not known.
        """
        self.keep_names(groups)
        found = chosen(selector(what), known_entries(self.modules(), groups))
        for entry in found:
            entry.parameter.requires_grad_(on)
            if not on:
                entry.parameter.grad = None
        return [entry.name for entry in found]

    def newcomers(self, what: nn.Module | torch.Tensor | Iterable[Any], groups: Sequence[dict[str, Any]]) -> list[Any]:
        """See :func:`newcomers`."""
        self.keep_names(groups)
        return newcomers(what, self.modules(), groups)

    def warn_of_missing(self, groups: Groups, optimizer: str) -> None:
        """Warn, once, of parameters that train but are in no group; called by the wrapper of ``step``."""
        self.unchecked = False
        for module in self.modules():
            if found := missing(module, groups, optimizer):
                warnings.warn(found, stacklevel=4)


def keep_names(groups: Sequence[dict[str, Any]], seen: Seen, modules: Iterable[nn.Module]) -> Seen:
    """Let names follow their parameters where somebody has changed a group's ``params`` and left ``param_names``.

    A parameter keeps the name it had in any group; a new one has the name that a module gives it, or that of the
    parameter in whose place it stands, or else its place.

    Args:
        groups: the parameter groups, of which ``param_names`` may be changed.
        seen: how they were.
        modules: those that the optimizer was given.

    Returns:
        How they are now.
    """
    if any(group.get("param_names") for group in groups):
        strange = [i for i, group in enumerate(groups) if group["params"] and not fitting(group, seen.get(id(group)))]
        were = chain.from_iterable(zip(refs, names, strict=True) for refs, names in seen.values())
        before = {id(p): name for ref, name in were if (p := ref()) is not None}
        full = {id(e.parameter): e.name for e in known_entries(modules, ())} if strange else {}
        for index in strange:
            group = groups[index]
            params, old = group["params"], group.get("param_names", ())
            found = [before.get(id(p)) or full.get(id(p)) for p in params]
            taken = {*found, *chain.from_iterable(g.get("param_names", ()) for g in groups if g is not group)}
            places = old if len(old) == len(params) else repeat("")
            group["param_names"] = [
                name or (place if place and place not in taken else unused(f"group_{index}.{position}", taken))
                for position, (name, place) in enumerate(zip(found, places, strict=False))
            ]
    return {
        id(group): (list(map(weakref.ref, group["params"])), list(group["param_names"]))
        for group in groups
        if "param_names" in group
    }


def fitting(group: Mapping[str, Any], seen: tuple[list[Any], list[str]] | None) -> bool:
    """Whether a group's names are those of its parameters: neither has changed, or not the parameters alone."""
    params, names = group["params"], group.get("param_names", ())
    if len(names) != len(params):
        return False
    return seen is None or list(names) != seen[1] or all(r() is p for r, p in zip(seen[0], params, strict=True))


def unused(name: str, taken: set[Any]) -> str:
    return next(n for n in chain([name], (f"{name}_{k}" for k in count(1))) if n not in taken)


def known_entries(modules: Iterable[nn.Module], groups: Groups) -> list[NamedParameter]:
    """The parameters of the modules that an optimizer was given, then the others of its groups."""
    found: dict[int, NamedParameter] = {}
    for entry in chain.from_iterable(map(entries, modules)):
        found.setdefault(id(entry.parameter), entry)
    for group in groups:
        for p, name in zip(group["params"], group.get("param_names") or repeat(""), strict=False):
            found.setdefault(id(p), NamedParameter(name, p))
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


def refuse_members(params: Iterable[Any], groups: Groups, differentiable: bool) -> None:
    """Refuse, as torch does but with the name, parameters that can't be optimized or stand in a group already.

    Raises:
        ValueError: naming the first.
    """
    known = {id(p) for group in groups for p in group["params"]}
    for item in params:
        if isinstance(item, tuple) and isinstance(item[1], torch.Tensor):
            name, p = item
            if not differentiable and not (p.is_leaf or p.retains_grad):
                raise ValueError(f"can't optimize a non-leaf Tensor: {name}")
            if id(p) in known:
                raise ValueError(f"some parameters appear in more than one parameter group: {name}")


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
