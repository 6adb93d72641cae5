"""What goes around any update rule: a modifier changes the gradient, the step, the decay or the weights."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from inspect import Parameter, Signature, signature
from typing import Any, ClassVar, TypeVar

from steprule.messages.spelling import refuse_misspelt

from .expression import Expression
from .slot import Slot

__all__ = ["Modifier", "Reading", "Scoped", "Wrapped", "added_hyperparameters", "declared_slots"]

M = TypeVar("M", bound="Modifier")


class Wrapped:
    """What a modifier's :meth:`Modifier.around` goes around: called with a parameter and a gradient, it gives the
    parameter's new value."""

    def __call__(self, p: Any, g: Any) -> Expression:
        raise NotImplementedError

    def step(self, p: Any, g: Any) -> Expression:
        """What is taken from the parameter, decoupled decay included: the new value is ``p`` less this, and that it
        can be added elsewhere is exact, where a difference of two nearly equal values would not be."""
        raise NotImplementedError


class Modifier:
    """Base class of all modifiers: a subclass says what it changes, in one or several of the methods below.

    Each of them is written like :meth:`steprule.Optimizer.update`: it runs once, on symbols, and becomes part of the
    passes over memory that the rule itself takes. Of several modifiers each method acts in the order in which they
    are listed: first every :meth:`gradient`, then the rule, then every :meth:`step`, every :meth:`decay`, every
    :meth:`around` (the first one innermost) and every :meth:`weights`.

    ``s.name`` is state of the modifier's own, kept as ``prefix_name``, and ``h.name`` its own hyperparameter or,
    under every other name, the group's (``h.lr``). In a group its hyperparameters are called ``prefix_name`` too, and
    ``prefix=False`` switches it off. The prefix is the class's name in lower case, with underscores.

    Args:
        values: its hyperparameters in the order of ``defaults``; or by name. Numbers may be schedules.
        name: another prefix than the class's name, for a second modifier of one kind.
    """

    defaults: ClassVar[Mapping[str, Any]] = {}
    """Its hyperparameters, with their defaults."""

    ranges: ClassVar[Mapping[str, Any]] = {}
    """What its hyperparameters may be, as :class:`steprule.Range` declares it."""

    slots: ClassVar[Mapping[str, Slot]] = {}
    """State that is not zeros like the parameter, as :func:`steprule.rule.array` or ``scalar`` declares it."""

    excludes: ClassVar[frozenset[str]] = frozenset()
    """Names of the classes of modifiers that it does not go together with; its own, where it can't stand twice."""

    reads: Mapping[str, Callable[[Any, Any], Any]] | None = None
    """Of a part of an algorithm: hyperparameters that the algorithm has no names for, made of its ``(s, h)``."""

    name: str
    """The prefix of its state and hyperparameters; empty for a part of an algorithm."""

    values: dict[str, Any]
    """Its hyperparameters."""

    points: ClassVar[int] = 1
    """At how many points a step needs gradients; two make :meth:`ascent` the first half of a step."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_misspelt(cls, Modifier, SAYS)
        if "__init__" not in cls.__dict__ and "defaults" in cls.__dict__:
            either = Parameter.POSITIONAL_OR_KEYWORD
            taken = [Parameter(name, either, default=default) for name, default in cls.defaults.items()]
            shown = Signature([*taken, Parameter("name", Parameter.KEYWORD_ONLY, default=None)])
            type.__setattr__(cls, "__signature__", shown)

    def __init__(self, *values: Any, name: str | None = None, **given: Any) -> None:
        kind = type(self).__name__
        if len(values) > len(self.defaults):
            raise TypeError(f"{kind}() takes {len(self.defaults)} hyperparameters, {len(values)} were given")
        placed = dict(zip(self.defaults, values, strict=False))
        for key in given:
            if key not in self.defaults or key in placed:
                what = "multiple values for" if key in placed else "an unexpected keyword"
                raise TypeError(f"{kind}() got {what} argument {key!r}; it takes {', '.join(self.defaults) or 'none'}")
        if not any(map(self.changes, METHODS)):
            raise TypeError(f"{kind} changes nothing: it defines none of {', '.join(METHODS)}")
        for method in filter(self.changes, METHODS):
            refuse_signature(type(self), method)
        self.name = snake(kind) if name is None else name
        if not self.name.isidentifier():
            raise ValueError(f"name={name!r} of {kind}: its state and hyperparameters are called so; give a word")
        self.values = {**self.defaults, **placed, **given}

    def within(self: M, **reads: Callable[[Any, Any], Any]) -> M:
        """This modifier as a part of an algorithm: its state has no prefix, and its hyperparameters are the
        algorithm's, under the same names.

        Args:
            **reads: hyperparameters that the algorithm calls otherwise, as functions of ``(s, h)``.

        Example:
            >>> from steprule.modifiers import Mars
            >>> Mars().within(beta1=lambda s, h: h.betas[0]).name
            ''
        """
        part = copy.copy(self)
        part.name, part.reads = "", reads
        return part

    def __repr__(self) -> str:
        own = [f"{name}={value!r}" for name, value in self.values.items()]
        named = [] if self.name == snake(type(self).__name__) else [f"name={self.name!r}"]
        return f"{type(self).__name__}({', '.join(own + named)})"

    # -- what a subclass writes ----------------------------------------------------------------------------------

    def gradient(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        """What the rule gets in place of the gradient ``g``."""
        return g

    def step(self, p: Any, g: Any, u: Any, s: Any, h: Any) -> Any:
        """What is taken from ``p`` in place of ``u``: the rule's step, which contains the rate; decoupled decay does
        not count to it."""
        return u

    def decay(self, p: Any, lost: Any, u: Any, s: Any, h: Any) -> Any:
        """What decoupled decay takes from ``p`` in place of ``lost``, beside the step ``u``."""
        return lost

    def around(self, rule: Wrapped, p: Any, g: Any, s: Any, h: Any) -> Any:
        """The new value in place of ``rule(p, g)``; :meth:`Wrapped.step` gives what the rule takes from ``p``."""
        return rule(p, g)

    def weights(self, p: Any, new: Any, s: Any, h: Any) -> Any:
        """The new value in place of ``new``."""
        return new

    def evaluation(self, p: Any, s: Any, h: Any) -> Any:
        """The weights to evaluate with, where they are not those that are trained; see
        :meth:`steprule.Optimizer.eval`."""
        return p

    def ascent(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        """Where the second gradient of a step is taken, for a modifier of two ``points``."""
        return p

    def validate(self, h: Mapping[str, Any]) -> None:
        """Refuse hyperparameters out of range.

        Args:
            h: its own, by their names in ``defaults``.

        Raises:
            ValueError: naming the hyperparameter and its value.
        """

    def changes(self, method: str) -> bool:
        """Whether the subclass defines a method."""
        return getattr(type(self), method) is not getattr(Modifier, method)


METHODS = ("gradient", "step", "decay", "around", "weights", "evaluation", "ascent")
"""What of a step a subclass may change."""

SAYS = (*METHODS, "validate", "defaults", "ranges", "slots", "excludes", "points")
"""All that a subclass may write."""


def refuse_signature(cls: type[Modifier], method: str) -> None:
    """Refuse a method that can't be called as it is.

    Raises:
        TypeError: saying how it is called.
    """
    own, known = (signature(getattr(c, method)) for c in (cls, Modifier))
    try:
        own.bind(*known.parameters)
    except TypeError as error:
        taken = ", ".join(known.parameters)
        raise TypeError(
            f"{cls.__name__}.{method}{own} is called with {taken}: {error}; write def {method}({taken})"
        ) from None


def snake(name: str) -> str:
    """A class's name as that of a hyperparameter.

    >>> snake("CautiousDecay"), snake("EMA"), snake("MatchRMS")
    ('cautious_decay', 'ema', 'match_rms')
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def added_hyperparameters(modifier: Modifier) -> dict[str, Any]:
    """What a modifier adds to a group: its switch, then its hyperparameters under their prefix."""
    return {modifier.name: True} | {f"{modifier.name}_{key}": value for key, value in modifier.values.items()}


def declared_slots(modifiers: Iterable[Modifier]) -> dict[str, Slot]:
    """The slots that modifiers declare, under their prefixes."""
    found = {}
    for m in modifiers:
        for name, slot in m.slots.items():
            own = m.name and isinstance(slot.initial, str) and slot.initial in m.defaults
            found[f"{m.name}_{name}" if m.name else name] = (
                replace(slot, initial=f"{m.name}_{slot.initial}") if own else slot
            )
    return found


class Scoped:
    """State or hyperparameters as a modifier sees them: its own by their short names.

    Args:
        of: those of the whole rule.
        prefix: what its own are called before the short name.
        own: the short names that are its own; None for all but ``step`` and ``is_new``.
    """

    def __init__(self, of: Any, prefix: str, own: Iterable[str] | None = None) -> None:
        self.__dict__.update(_of=of, _prefix=prefix, _own=None if own is None else frozenset(own))

    def _full(self, name: str) -> str:
        shared = name in ("step", "is_new") if self._own is None else name not in self._own
        return name if shared or name.startswith("_") else f"{self._prefix}_{name}"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, self._full(name))

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._of, self._full(name), value)

    def __getitem__(self, name: object) -> Any:
        return self._of[name]

    def __setitem__(self, name: object, value: object) -> None:
        self._of[name] = value

    def __contains__(self, name: object) -> bool:
        return name in self._of


class Reading:
    """The hyperparameters of an algorithm, as a modifier sees them that is a part of it.

    Args:
        s: the state of the rule.
        h: its hyperparameters.
        reads: what is not under the modifier's own names among them.
    """

    def __init__(self, s: Any, h: Any, reads: Mapping[str, Callable[[Any, Any], Any]]) -> None:
        self._s, self._h, self._reads = s, h, reads

    def __getattr__(self, name: str) -> Any:
        return self._reads[name](self._s, self._h) if name in self._reads else getattr(self._h, name)
