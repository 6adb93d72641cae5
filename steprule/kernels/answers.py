"""What parameter groups say to their Programs: whether their answers stay, and whose numbers are the same."""

from __future__ import annotations

import operator
import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain, compress
from typing import Any

import numpy as np

from steprule.rule.expression import Expression, ordered
from steprule.rule.host import NUMBER, as_float
from steprule.rule.program import Program

from .entry import Group, asked_of

__all__ = ["Answers", "AnswersOfOne"]

Path = tuple[Any, ...]

OPTIONS = ("backend", "differentiable")
"""What :func:`asked_of` reads."""
PLAIN = frozenset({float, int, bool})
"""Numbers that stay what they are for as long as they stand in a group; a tensor is filled in place."""


class Answers:
    """The answers of all groups, read at every step.

    Args:
        groups: the parameter groups as they are.
        programs: the Programs that serve each group's parameters.
    """

    def __init__(self, groups: Sequence[Group], programs: Sequence[Collection[Program]]) -> None:
        self.programs = programs
        self.asked = [asked_of(group) for group in groups]
        self.settle(groups)

    def settle(self, groups: Sequence[Group]) -> None:
        """Note what the groups say now."""
        kinds: dict[tuple[int, ...], list[int]] = {}
        for i, programs in enumerate(self.programs):
            kinds.setdefault(tuple(map(id, programs)), []).append(i)
        self.bands: list[Band] = []
        self.open: list[int] = []
        """The groups that are asked one by one, for what stands in them may change without being replaced."""
        for places in kinds.values():
            questions = Questions(self.programs[places[0]])
            replaced = [i for i in places if questions.changes_by_replacement(groups[i])]
            self.open += [i for i in places if i not in set(replaced)] if len(replaced) < len(places) else []
            if replaced:
                self.bands.append(Band(questions, replaced, groups))
        self.note_alike(len(groups))

    def note_alike(self, count: int) -> None:
        self.alike = list(range(count))
        """For each group, the first of those whose numbers have the same bits."""
        for band in self.bands:
            for place, first in zip(band.places, band.alike, strict=True):
                self.alike[place] = band.places[first]

    def hold(self, groups: Sequence[Group]) -> bool:
        """Whether every group gives the answers that its Programs were specialised on."""
        for band in self.bands:
            if not band.holds(groups):
                if not all(self.serve(i, group) for i, group in enumerate(groups)):
                    return False
                self.settle(groups)
                return True
            if band.regrouped:
                band.regrouped = False
                self.note_alike(len(groups))
        return all(self.serve(i, groups[i]) for i in self.open) if self.open else True

    def serve(self, i: int, group: Group) -> bool:
        """Whether the Programs of a group serve it still."""
        return self.asked[i] == asked_of(group) and all(program.serves(group) for program in self.programs[i])


class AnswersOfOne(Answers):
    """The answers of one group to one Program, where each parameter has a plan of its own.

    Args:
        index: which of the groups it is.
        groups: all of them.
        program: what serves the parameter.
    """

    def __init__(self, index: int, groups: Sequence[Group], program: Program) -> None:
        self.index, self.program, self.asked = index, program, [asked_of(groups[index])]
        self.alike = list(range(len(groups)))

    def hold(self, groups: Sequence[Group]) -> bool:
        group = groups[self.index]
        return self.asked[0] == asked_of(group) and self.program.serves(group)


def fixed(value: Any) -> bool:
    """Whether what stands in a group stays what it is for as long as it stands there."""
    return (
        all(map(fixed, value)) if type(value) is tuple else type(value) in PLAIN or value is None or type(value) is str
    )


class Questions:
    """What some Programs read of a group.

    Attributes:
        keys: of the group; first those that are asked for more than a number.
        settled: how many those are.
        numbers: the places, among the keys, of numbers that the host computes with.
        paths: where these numbers stand.
    """

    def __init__(self, programs: Collection[Program]) -> None:
        free: dict[str, None] = {}
        settled: dict[str, None] = dict.fromkeys(OPTIONS)
        for program in programs:
            for guard in program.guards:
                if guard.expression is not None:
                    settled |= dict.fromkeys(path[0] for path in hypers([guard.expression]))
                else:
                    (free if guard.answer is NUMBER else settled)[guard.path[0]] = None
        self.paths: list[Path] = list(dict.fromkeys(chain.from_iterable(map(read_by_host, programs))))
        free |= dict.fromkeys(path[0] for path in self.paths)
        self.keys = [*settled, *(key for key in free if key not in settled)]
        self.settled = len(settled)
        self.numbers = frozenset(self.keys.index(path[0]) for path in self.paths)

    def changes_by_replacement(self, group: Group) -> bool:
        """Whether a group has all that is read, and what stands there changes by being replaced alone."""
        return all(key in group and fixed(group[key]) for key in self.keys) and all(
            type(value) in PLAIN for value in self.values(group)
        )

    def values(self, group: Group) -> Iterator[Any]:
        for path in self.paths:
            value: Any = group
            for part in path:
                if isinstance(value, list):
                    value = None
                    break
                value = value[part]
            yield value

    def bits(self, group: Group) -> bytes:
        """The numbers of a plain group."""
        found = [as_float(value) for value in self.values(group)]
        return struct.pack(f"{len(found)}d", *found)


def hypers(expressions: Iterable[Expression]) -> Iterator[Path]:
    """Where the hyperparameters stand that expressions are made of."""
    return (e.detail for e in ordered(expressions) if e.op == "hyper")


def read_by_host(program: Program) -> Iterator[Path]:
    return (e.detail for e in program.host_expressions() if e.op == "hyper")


class Band:
    """Groups that the same Programs serve, and whose values change by being replaced.

    Attributes:
        alike: for each of them, the first of those whose numbers have the same bits.
        regrouped: whether that has changed.
    """

    def __init__(self, questions: Questions, places: list[int], groups: Sequence[Group]) -> None:
        self.questions, self.places, self.every = questions, places, len(places) == len(groups)
        self.width = len(questions.keys)
        self.read = operator.itemgetter(*questions.keys)
        self.regrouped = False
        chosen = self.chosen(groups)
        self.found = list(chain.from_iterable(map(self.read, chosen)))
        self.group(chosen)

    def chosen(self, groups: Sequence[Group]) -> Sequence[Group]:
        return groups if self.every else [groups[i] for i in self.places]

    def group(self, groups: Sequence[Group]) -> None:
        """Find out whose numbers have the same bits; of groups that nothing serves, none have any."""
        first: dict[Any, int] = {}
        bits = self.questions.bits
        self.alike = [first.setdefault(bits(group), i) if self.questions.paths else i for i, group in enumerate(groups)]
        self.apart = len(first) in (0, len(groups))
        self.firsts = np.asarray(self.alike)

    def holds(self, groups: Sequence[Group]) -> bool:
        """Whether all answers stay, as far as can be told without asking again."""
        chosen = groups if self.every else self.chosen(groups)
        try:
            if all(map(operator.is_, chain.from_iterable(map(self.read, chosen)), self.found)):
                return True
            return self.follows(chosen, list(chain.from_iterable(map(self.read, chosen))))
        except KeyError:
            return False

    def follows(self, groups: Sequence[Group], found: list[Any]) -> bool:
        """Whether nothing has changed but numbers of which no more is asked; if so these are noted."""
        changed = list(compress(range(len(found)), map(operator.is_not, found, self.found)))
        columns = {k % self.width for k in changed}
        if min(columns) < self.questions.settled or {*map(type, map(found.__getitem__, changed))} != {float}:
            return False
        self.found = found
        if not self.apart and any(self.torn_apart(column) for column in columns & self.questions.numbers):
            self.group(groups)
            self.regrouped = True
        return True

    def torn_apart(self, column: int) -> bool:
        """Whether numbers differ that were the same."""
        bits = np.fromiter(self.found[column :: self.width], np.float64, len(self.places)).view(np.int64)
        return not bool((bits == bits[self.firsts]).all())
