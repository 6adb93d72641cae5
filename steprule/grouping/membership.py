"""Which parameters belong to an optimizer, under which names, and which do not yet."""

from __future__ import annotations

import operator
import warnings
import weakref
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from itertools import chain, count, repeat
from typing import Any, TypeAlias

import torch
from torch import nn

from .following import Followed, follow_model, orphaned, registrations, watch_registrations
from .globs import fold
from .selectors import NamedParameter, Selectable, chosen, entries, selector, untracked

__all__ = ["Members", "left_out_of_groups", "refuse_members"]

Groups = Sequence[Mapping[str, Any]]

Seen: TypeAlias = dict[int, tuple[list[torch.Tensor], list[str]]]
"""By a group's identity, its parameters and their names as they were. Tensors that have weak references can't be
swapped, which is how ``module.to`` may convert them."""


class Members:
    """The modules that an optimizer was given, and the names its parameters had when they were last looked at."""

    def __init__(self, params: object = None) -> None:
        self.models: list[weakref.ref[nn.Module]] = []
        self.had: dict[int, set[int]] = {}
        """By a module's identity, the identities of those of its parameters that were in a group."""
        self.looked: int | None = None
        """What ``registrations`` counted when somebody last looked for parameters that came or went."""
        self.doubtful = False
        """Whether some may have gone behind a module's back."""
        self.said: set[str] = set()
        self.seen: Seen = {}
        self.held: dict[int, torch.Tensor] = {}
        """By identity, the members that were frozen and not trained again since."""
        self.know(params)

    def know(self, what: object) -> None:
        """Remember a module, whose parameters' names are known from now on."""
        if isinstance(what, nn.Module):
            if not any(module is what for module in self.modules()):
                self.models.append(weakref.ref(what))
            self.looked = None
            watch_registrations()

    def note(self, groups: Groups) -> None:
        """Remember which parameters of groups are the modules' now."""
        grouped = {id(p) for group in groups for p in group["params"]}
        self.had = {
            id(module): (self.had.get(id(module), set()) | set(map(id, module.parameters()))) & grouped
            for module in self.modules()
        }

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
        members = {id(p) for group in groups for p in group["params"]}
        for entry in found:
            entry.parameter.requires_grad_(on)
            if on:
                self.held.pop(id(entry.parameter), None)
                continue
            entry.parameter.grad = None
            if id(entry.parameter) in members:
                self.held[id(entry.parameter)] = entry.parameter
        return [entry.name for entry in found]

    def frozen(self, p: torch.Tensor) -> bool:
        """Whether a member was frozen, and nobody has let it get gradients since."""
        return id(p) in self.held and not p.requires_grad

    def newcomers(self, what: nn.Module | torch.Tensor | Iterable[Any], groups: Sequence[dict[str, Any]]) -> list[Any]:
        """See :func:`newcomers`."""
        self.keep_names(groups)
        return newcomers(what, self.modules(), groups)

    @property
    def unchecked(self) -> bool:
        """Whether a module may have other parameters than when somebody last looked."""
        return (self.doubtful or self.looked != registrations[0]) and bool(self.models)

    def doubt(self) -> None:
        """Look again after this step, though nobody has told: parameters without a gradient may be the module's no
        more."""
        self.doubtful = True

    def check(self, groups: Groups, optimizer: str, stacklevel: int = 4) -> None:
        """Warn, once of each, of parameters that train but are in no group, and of those that train in vain."""
        told = self.looked != registrations[0]
        self.looked, self.doubtful = registrations[0], False
        for module in self.modules():
            gone = orphaned(module, self.had.get(id(module), ()), groups)
            found = (
                in_vain(module, gone, optimizer)
                if gone
                else left_out_of_groups(module, groups, optimizer)
                if told
                else None
            )
            if found and found not in self.said:
                self.said.add(found)
                warnings.warn(found, stacklevel=stacklevel)
        self.note(groups)

    def follow(
        self, model: nn.Module, groups: Sequence[dict[str, Any]], state: MutableMapping[torch.Tensor, Any]
    ) -> Followed:
        """See :meth:`steprule.Optimizer.follow`."""
        self.keep_names(groups)
        others = not any(module is model for module in self.modules())
        before = [module for module in self.modules() if module is model or (others and type(module) is type(model))]
        had = {p for module in before for p in self.had.get(id(module), ())}
        done = follow_model(model, had, groups, state, others)
        self.models = [weakref.ref(module) for module in self.modules() if not any(module is m for m in before)]
        self.know(model)
        self.note(groups)
        self.keep_names(groups)
        return done


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
        were = chain.from_iterable(zip(params, names, strict=True) for params, names in seen.values())
        before = {id(p): name for p, name in were}
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
        id(group): (list(group["params"]), list(group["param_names"])) for group in groups if "param_names" in group
    }


def fitting(group: Mapping[str, Any], seen: tuple[list[Any], list[str]] | None) -> bool:
    """Whether a group's names are those of its parameters: neither has changed, or not the parameters alone."""
    params, names = group["params"], group.get("param_names", ())
    if len(names) != len(params):
        return False
    return seen is None or list(names) != seen[1] or all(map(operator.is_, seen[0], params))


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


def left_out_of_groups(model: nn.Module, groups: Groups, optimizer: str) -> str | None:
    """What to say of the parameters that train but are in no group; None if there are none."""
    names = [name for name, _ in untracked(model, [p for group in groups for p in group["params"]])]
    if not names:
        return None
    listed = ", ".join(names if len(names) < 9 else fold(names))
    return (
        f"of {type(model).__name__}, {listed} train but are in no group of this {optimizer}: optimizer.add(...) "
        "takes them in"
    )


def in_vain(model: nn.Module, gone: Sequence[tuple[str, torch.Tensor]], optimizer: str) -> str:
    """What to say of parameters that a module has no more."""
    names = [name or f"one of shape {tuple(p.shape)}" for name, p in gone]
    return (
        f"of this {optimizer}, {', '.join(names if len(names) < 9 else fold(names))} are parameters of "
        f"{type(model).__name__} no more: something has replaced them, and steps change what nobody uses; "
        "optimizer.follow(model) moves to the new ones"
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
