"""Which algorithm updates a group, and which modifiers go around it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.optim.optimizer import required

from steprule.grouping.hyperparameters import check_ranges
from steprule.rule.modifier import Modifier, added_hyperparameters

from .options import NOT_HYPER, OPTIONS
from .planning import Algorithm

__all__ = ["Roles"]

Hyper = Mapping[str, Any]


class Roles:
    """The algorithms and the modifiers of one optimizer. Groups hold their names, and so stay plain data.

    Args:
        own: the optimizer itself, which stands for its own algorithm.
    """

    def __init__(self, own: Any) -> None:
        self.own = type(own).__name__
        self.parts: tuple[Modifier, ...] = type(own).parts
        """The modifiers that the optimizer's own algorithm is made of."""
        self.players: dict[str, Any] = {}
        """An optimizer for each other algorithm, of whose parameters it has none: for its rule, defaults and checks."""
        self.required: dict[str, dict[str, Any]] = {}
        self.modifiers: dict[str, Modifier] = {}
        self.two_points = False
        """Whether any modifier needs gradients at two points."""

    # -- what is given -------------------------------------------------------------------------------------------

    def lay(self, base: Hyper, given: Hyper) -> tuple[dict[str, Any], dict[str, Any]]:
        """What is given for some parameters, in plain form, and the hyperparameters that it is laid over.

        Args:
            base: the hyperparameters of the optimizer, or of the group that the parameters were in.
            given: those that are given; ``algorithm`` and ``modifiers`` bring some of their own along.

        Raises:
            TypeError, ValueError: an algorithm or a modifier is none, or does not go together with another.
        """
        under, over = {name: value for name, value in base.items() if value is not required}, dict(given)
        if over.get("algorithm") is not None:
            over["algorithm"] = name = self.know_algorithm(over["algorithm"], over)
            if name != base.get("algorithm", self.own):
                under = {**self.shared(under, name), **self.defaults_of(name)}
            under["algorithm"] = name
        if "modifiers" in over:
            over["modifiers"] = names = self.know_modifiers(over["modifiers"])
            kept = self.keys_of(names)
            gone = [key for key in self.keys_of(under.get("modifiers", ())) if key not in kept]
            under = {key: value for key, value in under.items() if key not in gone}
            self.refuse_taken(names, under, base.get("modifiers", ()))
            under = {**under, **kept}
        return under, over

    def know_algorithm(self, algorithm: Any, given: Hyper) -> str:
        """The name of an algorithm, which is known from now on.

        Raises:
            TypeError: it is not a class of optimizers with an update rule.
        """
        if isinstance(algorithm, str):
            if algorithm in (self.own, *self.players):
                return algorithm
            known = ", ".join([self.own, *self.players])
            raise TypeError(f"algorithm={algorithm!r} is not known here, only {known}; give the class")
        name = getattr(algorithm, "__name__", repr(algorithm))
        rule = getattr(algorithm, "update", None)
        if not isinstance(algorithm, type) or rule is None or not hasattr(algorithm, "steps_taken"):
            raise TypeError(
                f"algorithm={name} is none that a group could be updated by: give a class of steprule's optimizers, "
                "such as steprule.AdamW"
            )
        if name != self.own and name not in self.players:
            self.players[name] = player = self.audition(algorithm, given)
            if not player._workings.has_rule:
                del self.players[name]
                raise TypeError(f"{name} works by torch operations on all parameters: give it an optimizer of its own")
        return name

    def audition(self, algorithm: type, given: Hyper) -> Any:
        """An optimizer of a class; what it needs and has no default for is taken from what is given."""
        name = algorithm.__name__
        arguments = list(inspect.signature(algorithm).parameters.values())[1:]
        needed = [p.name for p in arguments if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        self.required[name] = dict.fromkeys(needed, required)
        nothing = torch.zeros(1, 1, requires_grad=True)
        return algorithm([nothing], **{key: given[key] for key in needed if key in given})

    def know_modifiers(self, modifiers: Any) -> tuple[str, ...]:
        """The names of modifiers, which are known from now on.

        Raises:
            TypeError: one of them is no modifier.
            ValueError: two of them do not go together, or are called the same.
        """
        if isinstance(modifiers, (str, Modifier)) or not isinstance(modifiers, Iterable):
            raise TypeError(f"modifiers must be a list of modifiers, such as [Cautious()], got {modifiers!r}")
        found: dict[str, Modifier] = {}
        for m in modifiers:
            known = self.modifiers.get(m) if isinstance(m, str) else m
            if not isinstance(known, Modifier):
                hint = f"; write {m.__name__}()" if isinstance(m, type) and issubclass(m, Modifier) else ""
                raise TypeError(f"modifiers must be objects such as Cautious(), got {m!r}{hint}")
            for other in found.values():
                refuse_together(other, known)
            before = self.modifiers.get(known.name)
            if known.name in found or (before is not None and type(before) is not type(known)):
                raise ValueError(
                    f"two modifiers are called {known.name!r}: give {type(known).__name__}(...) a name= of its own"
                )
            found[known.name] = known
        self.modifiers |= found
        self.two_points = any(m.points > 1 for m in self.modifiers.values())
        return tuple(found)

    def keys_of(self, names: Iterable[str]) -> dict[str, Any]:
        """What modifiers bring into a group, with the values that they were made with."""
        return {key: value for name in names for key, value in added_hyperparameters(self.modifiers[name]).items()}

    def refuse_taken(self, names: Sequence[str], under: Hyper, before: Sequence[str]) -> None:
        """Refuse modifiers whose hyperparameters are called like those of the algorithm.

        Raises:
            ValueError: naming them.
        """
        for name in names:
            taken = [key for key in added_hyperparameters(self.modifiers[name]) if key in under and name not in before]
            if taken:
                kind = type(self.modifiers[name]).__name__
                raise ValueError(f"{', '.join(taken)} of {kind} exists already: give {kind}(...) a name= of its own")

    def filling(self, group: Hyper, own: dict[str, Any]) -> dict[str, Any]:
        """What a group is filled up with: the optimizer's defaults, or nothing but what its algorithm needs."""
        if group.get("algorithm", self.own) == self.own:
            others = self.keys_of(self.modifiers).keys() - self.keys_of(group.get("modifiers", ())).keys()
            return {key: value for key, value in own.items() if key not in others}
        return {**self.needed_by(group), **{key: value for key, value in group.items() if key not in NOT_HYPER}}

    def sign(self, groups: Iterable[dict[str, Any]]) -> None:
        """Let every group say its algorithm, once there are several."""
        if self.players:
            for group in groups:
                group.setdefault("algorithm", self.own)

    # -- what a group has ----------------------------------------------------------------------------------------

    def shared(self, under: Hyper, name: str) -> dict[str, Any]:
        """Of an optimizer's hyperparameters those that go around any algorithm."""
        own = {*OPTIONS, *self.keys_of(under.get("modifiers", ()))}
        return {key: value for key, value in under.items() if key in own - self.players[name]._workings.own_options}

    def defaults_of(self, name: str) -> dict[str, Any]:
        """The hyperparameters of another algorithm."""
        player = self.players[name]
        options = set(OPTIONS) - player._workings.own_options
        mine = {key: value for key, value in player.defaults.items() if key not in options}
        return {key: value for key, value in mine.items() if key not in self.required[name]}

    def needed_by(self, group: Hyper) -> dict[str, Any]:
        """The hyperparameters that a group's algorithm has no default for."""
        name = group.get("algorithm", self.own)
        return {} if name == self.own else self.required[name]

    def player(self, group: Hyper, own: Any) -> Any:
        """The optimizer that stands for a group's algorithm."""
        return self.players.get(group.get("algorithm", self.own), own)

    def around(self, group: Hyper) -> tuple[Modifier, ...]:
        """The modifiers of a group, in order: those that its algorithm is made of, then those that were given."""
        return *self.parts_of(group), *self.given(group)

    def parts_of(self, group: Hyper) -> tuple[Modifier, ...]:
        """The modifiers that a group's algorithm is made of."""
        name = group.get("algorithm", self.own)
        return self.parts if name == self.own else self.players[name].parts

    def given(self, group: Hyper) -> tuple[Modifier, ...]:
        """The modifiers that were given to a group."""
        return tuple(self.modifiers[name] for name in group.get("modifiers", ()))

    def active(self, group: Hyper) -> list[Modifier]:
        """Those that are not switched off."""
        return [m for m in self.around(group) if not m.name or group[m.name]]

    def evaluated(self, group: Hyper) -> Modifier | None:
        """The modifier whose weights a group is evaluated with: the last that has any."""
        found = [m for m in self.active(group) if m.changes("evaluation")]
        return found[-1] if found else None

    def ascending(self, group: Hyper) -> Modifier | None:
        """The modifier that needs gradients at two points."""
        found = [m for m in self.active(group) if m.points > 1]
        return found[-1] if found else None

    def algorithm(self, group: Hyper, own: Any) -> Algorithm:
        """What updates a group."""
        player = self.player(group, own)
        return Algorithm(
            type(player).__name__,
            player.update,
            player.slots,
            player._workings.own_options,
            "fused" in player.switches,
            player.refuse,
            self.around(group),
        )

    def validate(self, group: Hyper, own: Callable[[Hyper], None]) -> None:
        """Refuse hyperparameters out of range, by the checks of a group's algorithm and of its modifiers.

        Raises:
            ValueError, TypeError: naming the hyperparameter.
        """
        name = group.get("algorithm", self.own)
        (own if name == self.own else self.players[name].validate)(group)
        for m in self.given(group):
            for part in self.parts_of(group):
                refuse_together(part, m)
            check_ranges({f"{m.name}_{key}": declared for key, declared in m.ranges.items()}, group)
            m.validate({key: group[f"{m.name}_{key}"] for key in m.defaults})

    def adopt(self, groups: Iterable[dict[str, Any]]) -> None:
        """Take over modifiers that somebody has written into a group."""
        for group in groups:
            if not all(isinstance(m, str) for m in group.get("modifiers", ())):
                before = {*NOT_HYPER, *self.keys_of(self.modifiers)}
                hyper = {key: value for key, value in group.items() if key not in before}
                under, over = self.lay({**hyper, "modifiers": ()}, {"modifiers": group["modifiers"]})
                group.update({**under, **over})


def refuse_together(one: Modifier, other: Modifier) -> None:
    """Refuse two modifiers that exclude each other.

    Raises:
        ValueError: naming them.
    """
    for a, b in ((one, other), (other, one)):
        if any(kind.__name__ in a.excludes for kind in type(b).__mro__):
            raise ValueError(f"{type(one).__name__} does not go together with {type(other).__name__}: leave one out")
