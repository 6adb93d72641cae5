"""Parameters that a module has replaced while an optimizer still trains the old ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from steprule.names import unwrapped

from .globs import fold

__all__ = ["Followed", "follow_model", "orphaned", "registrations", "watch_registrations"]

Groups = Sequence[Mapping[str, Any]]

registrations = [0]
"""How often any module was given a parameter or a module since somebody began to watch."""


def watch_registrations() -> None:
    """Count from now on, in ``registrations``, what modules are given; more than once changes nothing."""
    if _count not in torch_module._global_parameter_registration_hooks.values():
        torch_module.register_module_parameter_registration_hook(_count)
        torch_module.register_module_module_registration_hook(_count)


def _count(*_: object) -> None:
    registrations[0] += 1


def orphaned(model: nn.Module, had: Iterable[int], groups: Groups) -> list[tuple[str, torch.Tensor]]:
    """The parameters of groups that a module had once and has no more, as (name, parameter).

    Args:
        model: the module.
        had: the identities of the parameters it had.
        groups: the parameter groups.
    """
    gone = set(had) - set(map(id, model.parameters()))
    return [(name, p) for _, _, name, p in members(groups) if id(p) in gone]


def members(groups: Groups) -> Iterator[tuple[int, int, str, torch.Tensor]]:
    """Every parameter as (group, position, name, parameter); the name is empty if there is none."""
    for index, group in enumerate(groups):
        for position, (p, name) in enumerate(
            zip(group["params"], group.get("param_names") or repeat(""), strict=False)
        ):
            yield index, position, name, p


class Followed(NamedTuple):
    """What :meth:`steprule.Optimizer.follow` did, by the parameters' names in the module.

    Attributes:
        carried: the new parameters that go on with the state of those they replace.
        anew: the new parameters that begin without a state, for their shape is another.
        dropped: the parameters that left, as nothing in the module stands in their place.
    """

    carried: list[str]
    anew: list[str]
    dropped: list[str]

    def __str__(self) -> str:
        parts = [f"{what}: {', '.join(fold(names) if len(names) > 8 else names)}" for what, names in self.said()]
        return "; ".join(parts) or "nothing to follow"

    def said(self) -> Iterator[tuple[str, list[str]]]:
        for what, names in zip(("carried on", "begun anew", "dropped"), self, strict=True):
            if names:
                yield what, names


def follow_model(
    model: nn.Module,
    had: Iterable[int],
    groups: Sequence[dict[str, Any]],
    state: MutableMapping[torch.Tensor, Any],
    others: bool = False,
) -> Followed:
    """Let a module's present parameters take the places of those it had, see :meth:`steprule.Optimizer.follow`.

    Args:
        model: the module.
        had: the identities of the parameters it had.
        others: whether it takes the place of another module, of which names alone tell the parameters.
        groups: the parameter groups, which are changed.
        state: the optimizer's state, which is changed.

    Raises:
        ValueError: a parameter that must be replaced has no name.
    """
    named: list[tuple[str, torch.Tensor]] = [
        (unwrapped(name), p) for name, p in model.named_parameters(remove_duplicate=False)
    ]
    present, had = {id(p) for _, p in named}, set(had)
    places = [place for place in members(groups) if id(place[3]) not in present]
    if any(not name and (others or id(p) in had) for _, _, name, p in places):
        raise ValueError(
            "the optimizer does not know its parameters by name, so that it can't follow a module: make it from the "
            "module, or from (name, parameter) pairs"
        )
    grouped = {id(p) for *_, p in members(groups)}
    free = {name: p for name, p in named if id(p) not in grouped}
    done, found = Followed([], [], []), {}
    for index, position, name, p in places:
        if not (id(p) in had or (others and name)):
            continue
        successors = [new for new in free if stands_for(new, unwrapped(name))]
        if successors or id(p) in had:
            found[index, position] = name, p, [(new, free.pop(new)) for new in successors]
    for index, group in enumerate(groups):
        if own := {position: entry for (at, position), entry in found.items() if at == index}:
            replace(group, own, state, done)
    return done


def replace(
    group: dict[str, Any],
    found: Mapping[int, tuple[str, torch.Tensor, list[tuple[str, torch.Tensor]]]],
    state: MutableMapping[torch.Tensor, Any],
    done: Followed,
) -> None:
    """Put the successors into a group, each with the state of what it replaces where their shapes agree."""
    params, names = [], []
    for position, (p, name) in enumerate(zip(group["params"], group["param_names"], strict=True)):
        if position not in found:
            params.append(p)
            names.append(name)
            continue
        old_name, old, successors = found[position]
        held = state.pop(old, None)
        if not successors:
            done.dropped.append(old_name)
        for new_name, new in successors:
            params.append(new)
            names.append(new_name)
            fits = len(successors) == 1 and new.shape == old.shape
            (done.carried if fits else done.anew).append(new_name)
            if fits and held is not None:
                state[new] = carried_state(held, old, new)
    group["params"], group["param_names"] = params, names


def stands_for(new: str, old: str) -> bool:
    """Whether a parameter's name is another's, or what parametrizing, pruning or normalizing weights makes of it.

    >>> [stands_for(new, "fc.weight") for new in ("fc.weight", "fc.weight_orig", "fc.parametrizations.weight.original")]
    [True, True, True]
    """
    return new == old or plain_name(new) == old or new == plain_name(old)


def plain_name(name: str) -> str:
    """The name that a parameter had before its module parametrized, pruned or normalized it."""
    found = re.fullmatch(r"((?:.*\.)?)parametrizations\.([^.]+)\.original\d*", name)
    return found[1] + found[2] if found else re.sub(r"_(orig|g|v)$", "", name)


def carried_state(state: Mapping[str, Any], old: torch.Tensor, new: torch.Tensor) -> dict[str, Any]:
    """A parameter's state for the one that replaces it, where that lies; of its dtype if it had the old one's."""

    def moved(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.ndim == 0:
            return value
        return value.to(new.device, new.dtype if value.dtype == old.dtype else value.dtype)

    return {name: moved(value) for name, value in state.items()}
