"""Schedules as values: a number for each step, and what they are made of."""

from __future__ import annotations

import inspect
import math
import operator
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from types import MappingProxyType
from typing import Any, TypeAlias

from .checks import choice, finite_number, step_count, step_counts
from .picture import svg
from .sparkline import sparkline
from .tracker import Plateau

__all__ = [
    "At",
    "Schedule",
    "arithmetic",
    "as_schedule",
    "constant",
    "follow",
    "function",
    "is_schedule",
    "join",
    "plateaus",
    "repeat",
]

At: TypeAlias = Callable[[int], float]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Schedule:
    """A number for each step: an immutable value, made by the functions of this module and by arithmetic.

    Schedules add, subtract, multiply and divide with numbers, with each other and with plain functions of the
    step. They compare and hash by the expression that makes them, and print as it; one with a
    :func:`plateau` in it equals only one with the same plateau in it.

    Attributes:
        make: the function that makes it.
        arguments: the arguments of ``make``.
        at: the compiled form: the value as a function of the step, without checks.
        steps: the number of steps after which it has reached its end; None when it has none.

    Example:
        >>> from steprule.schedules import cosine, warmup
        >>> rate = 3e-4 * warmup(1000).then(cosine(9000))
        >>> rate
        0.0003 * warmup(1000).then(cosine(9000))
        >>> rate(0), rate(500), rate(1000), rate.steps
        (0.0, 0.00015, 0.0003, 10000)
    """

    make: Callable[..., Schedule]
    arguments: Mapping[str, Any]
    at: At
    steps: int | None = None
    tracker: Plateau | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", MappingProxyType(self.arguments))

    def __call__(self, step: int) -> float:
        """The value after ``step`` steps have been taken.

        Raises:
            ValueError: ``step`` is negative.
        """
        if step < 0:
            raise ValueError(f"step must not be negative, got {step}")
        return self.at(step)

    def __float__(self) -> float:
        raise TypeError(
            f"{self} is no number: a schedule is given to an optimizer when it is made or in add_param_group(); what "
            "stands in param_groups is its present value"
        )

    def then(self, other: Schedule | At | float) -> Schedule:
        """This schedule to its end, and ``other`` from there on, which starts counting at 0.

        Raises:
            ValueError: this schedule never ends.

        Example:
            >>> from steprule.schedules import cosine
        >>> cosine(10).then(0.1)(25)
            0.1
        """
        if self.steps is None:
            raise ValueError(f"{self} never ends; say where with join([{self}, {other}], [step])")
        return join([self, other], [self.steps])

    def repeat(self, times: int | None = None, t_mult: int = 1, gamma: float = 1.0) -> Schedule:
        """This schedule again and again from its beginning: warm restarts, see :func:`repeat`.

        Example:
            >>> from steprule.schedules import linear
            >>> [linear(2).repeat(2, t_mult=2, gamma=0.5)(step) for step in range(8)]
            [1.0, 0.5, 0.5, 0.375, 0.25, 0.125, 0.0, 0.0]
        """
        return repeat(self, times, t_mult, gamma)

    def report(self, metric: float) -> None:
        """Gives a metric to every :func:`plateau` in this schedule.

        Raises:
            ValueError: there is none.
        """
        if not (trackers := plateaus([self])):
            raise ValueError(f"{self} has no plateau to report a metric to")
        for tracker in trackers:
            tracker.report(metric)

    def sparkline(self, steps: int | None = None, width: int = 24) -> str:
        """A line of ``width`` block characters: the values from step 0 to ``steps``, lowest to highest.

        Args:
            steps: the last step to draw; the schedule's own end if left out.
            width: number of characters.

        Raises:
            ValueError: ``steps`` is left out and the schedule never ends, or one of them is not positive.

        Example:
            >>> from steprule.schedules import cosine, warmup
        >>> warmup(100).then(cosine(900)).sparkline(width=20)
            '▁▅████▇▇▆▆▅▄▃▃▂▂▁▁▁▁'
        """
        last = self.steps if steps is None else steps
        if last is None:
            raise ValueError(f"steps must be given, since {self} never ends")
        last, width = step_count("steps", last), step_count("width", width)
        return sparkline([self.at(round(i * last / max(width - 1, 1))) for i in range(width)])

    def to_dict(self) -> dict[str, Any]:
        """The expression and the state of its plateaus as plain data, which JSON can hold.

        Example:
            >>> from steprule.schedules import cosine
        >>> (0.1 * cosine(10)).to_dict()["right"]
            {'schedule': 'cosine', 'steps': 10, 'end_factor': 0.0}
        """
        fields = {key: as_plain(value) for key, value in self.arguments.items() if value is not None}
        state = {"state": self.tracker.state_dict()} if self.tracker else {}
        return {"schedule": self.make.__name__, **fields, **state}

    def matches(self, saved: object) -> bool:
        """Whether ``saved`` describes this expression, whatever its plateaus have seen. Never raises."""
        return without_state(self.to_dict()) == without_state(saved)

    def load_state(self, saved: Mapping[str, Any]) -> None:
        """Takes over what the plateaus of ``saved``, a dictionary from :meth:`to_dict`, have seen.

        Raises:
            ValueError: ``saved`` is of another expression, or its state is malformed; nothing has changed.
        """
        if not self.matches(saved):
            raise ValueError(f"the saved state is not of {self}")
        states = [(tracker, tracker.check(state)) for tracker, state in self._pair(saved)]
        for tracker, state in states:
            vars(tracker).update(state)

    def _parts(self) -> Iterator[Schedule]:
        for value in self.arguments.values():
            parts = value if isinstance(value, tuple) else (value,)
            yield from (part for part in parts if isinstance(part, Schedule))

    def _walk(self) -> Iterator[Schedule]:
        yield self
        for part in self._parts():
            yield from part._walk()

    def _pair(self, saved: Mapping[str, Any]) -> Iterator[tuple[Plateau, object]]:
        if self.tracker:
            yield self.tracker, saved.get("state")
        saved_parts = [part for key in self.arguments for part in listed(saved.get(key))]
        for part, saved_part in zip(self._parts(), filter(is_mapping, saved_parts), strict=True):
            yield from part._pair(saved_part)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Schedule):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[object, ...]:
        return (self.make, id(self.tracker) if self.tracker else None, *self.arguments.values())

    def __reduce__(self) -> tuple[Callable[..., Schedule], tuple[object, ...]]:
        return (follow, (self.make, self.tracker)) if self.tracker else (remake, (self.make, dict(self.arguments)))

    def _repr_html_(self) -> str:
        last = self.steps or 1000
        return svg([self.at(round(i * last / 160)) for i in range(161)], f"{self}, {last:,} steps")

    def __repr__(self) -> str:
        return schedule_text(self)

    def __add__(self, other: Schedule | At | float) -> Schedule:
        return arithmetic("+", self, other)

    def __radd__(self, other: At | float) -> Schedule:
        return arithmetic("+", other, self)

    def __sub__(self, other: Schedule | At | float) -> Schedule:
        return arithmetic("-", self, other)

    def __rsub__(self, other: At | float) -> Schedule:
        return arithmetic("-", other, self)

    def __mul__(self, other: Schedule | At | float) -> Schedule:
        return arithmetic("*", self, other)

    def __rmul__(self, other: At | float) -> Schedule:
        return arithmetic("*", other, self)

    def __truediv__(self, other: Schedule | At | float) -> Schedule:
        return arithmetic("/", self, other)

    def __rtruediv__(self, other: At | float) -> Schedule:
        return arithmetic("/", other, self)


def constant(factor: float = 1.0, steps: int | None = None) -> Schedule:
    """``factor`` for ``steps`` steps and 1 after that; for ever if ``steps`` is left out.

    torch's ConstantLR.

    Raises:
        ValueError: ``factor`` is not a finite number, or ``steps`` is negative.

    Example:
        >>> [constant(0.5, 2)(step) for step in range(4)]
        [0.5, 0.5, 1.0, 1.0]
    """
    value = finite_number("factor", factor)
    if steps is None:
        return Schedule(constant, {"factor": value, "steps": None}, lambda step: value)
    end = step_count("steps", steps, least=0)
    return Schedule(constant, {"factor": value, "steps": end}, lambda step: value if step < end else 1.0, end)


OPERATORS: dict[str, tuple[int, Callable[[float, float], float]]] = {
    "+": (1, operator.add),
    "-": (1, operator.sub),
    "*": (2, operator.mul),
    "/": (2, operator.truediv),
}


def arithmetic(op: str, left: Schedule | At | float, right: Schedule | At | float) -> Schedule:
    """``left op right`` at each step; it ends where the later of the two ends.

    Raises:
        ValueError: ``op`` is not one of ``+ - * /``, or a number is not finite.
        TypeError: a side is not a schedule, a function or a number.
    """
    choice("op", op, tuple(OPERATORS))
    one, other = as_side("left", left), as_side("right", right)
    lengths = [side.steps for side in (one, other) if isinstance(side, Schedule)]
    known = [length for length in lengths if length is not None]
    end = max(known) if known and len(known) == len(lengths) else None
    first, second, apply = as_formula(one), as_formula(other), OPERATORS[op][1]
    arguments = {"op": op, "left": one, "right": other}
    return Schedule(arithmetic, arguments, lambda step: apply(first(step), second(step)), end)


def join(schedules: Iterable[Schedule | At | float], milestones: Iterable[int]) -> Schedule:
    """One schedule after the other, each counting from 0 where it begins: at its milestone.

    torch's SequentialLR.

    Args:
        schedules: at least one; a number stands for a constant, a function for itself.
        milestones: the steps at which the second, third, ... begin, not falling.

    Raises:
        ValueError: there are not one fewer milestones than schedules, or they are negative or fall.

    Example:
        >>> from steprule.schedules import linear
        >>> [join([1.0, 0.5, linear(2)], [1, 2])(step) for step in range(5)]
        [1.0, 0.5, 1.0, 0.5, 0.0]
    """
    parts = tuple(as_schedule("schedules", part) for part in schedules)
    points = step_counts("milestones", milestones)
    if len(points) != len(parts) - 1:
        raise ValueError(f"milestones must be one fewer than schedules, got {len(points)} and {len(parts)}")
    if list(points) != sorted(points):
        raise ValueError(f"milestones must not fall, got {list(points)}")
    formulas, begins = [part.at for part in parts], (0, *points)

    def at(step: int) -> float:
        i = bisect_right(points, step)
        return formulas[i](step - begins[i])

    last = parts[-1].steps
    return Schedule(join, {"schedules": parts, "milestones": points}, at, None if last is None else begins[-1] + last)


def repeat(shape: Schedule, times: int | None = None, t_mult: int = 1, gamma: float = 1.0) -> Schedule:
    r"""A schedule again and again from its beginning, and its end after that.

    torch's CosineAnnealingWarmRestarts is ``cosine(T_0).repeat(t_mult=T_mult)``. Paper: SGDR,
    https://arxiv.org/abs/1608.03983.

    Args:
        shape: a schedule that ends.
        times: how often; without an end if left out.
        t_mult: each time takes as many times the steps of the time before.
        gamma: and its values are multiplied by as much.

    Raises:
        ValueError: the schedule never ends or has no steps, or another argument is out of its range.

    Example:
        >>> from steprule.schedules import linear
        >>> [repeat(linear(2), 2)(step) for step in range(6)]
        [1.0, 0.5, 1.0, 0.5, 0.0, 0.0]
    """
    length = shape.steps
    if not length:
        raise ValueError(f"{shape} {'has no steps' if length == 0 else 'never ends'}: it can't be repeated")
    most, factor = None if times is None else step_count("times", times), finite_number("gamma", gamma)
    growth, value = step_count("t_mult", t_mult), shape.at
    total = None if most is None else length * (most if growth == 1 else (growth**most - 1) // (growth - 1))

    def at(step: int) -> float:
        if total is not None and step >= total:
            return float(value(length) * factor ** (most - 1))  # type: ignore[operator]
        if growth == 1:
            turn, past = divmod(step, length)
            return value(past) * factor**turn
        turn, begin, stretched = 0, 0, length
        while step >= begin + stretched:
            turn, begin, stretched = turn + 1, begin + stretched, stretched * growth
        past = (step - begin) / growth**turn  # between two steps of the schedule
        return value(past) * factor**turn

    arguments = {"shape": shape, "times": most, "t_mult": growth, "gamma": factor}
    return Schedule(repeat, arguments, at, total)


def function(f: At, steps: int | None = None) -> Schedule:
    """Any function of the step. Wherever a schedule is accepted, the function alone is too.

    Args:
        f: takes the number of steps already taken and returns a finite number.
        steps: where it ends, for :meth:`Schedule.then`; it never ends if left out.

    Raises:
        ValueError: ``f`` can't be called, or ``steps`` is negative; when evaluated: the number is not finite.

    Example:
        >>> halving = function(lambda step: 0.5 ** (step // 10))
        >>> (0.1 * halving)(25)
        0.025
    """
    if not callable(f):
        raise ValueError(f"f must be a function of the step, got {f!r}")

    def at(step: int) -> float:
        given = f(step)
        try:
            value = float(given)
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(
                f"the schedule function {function_name(f)} gave {given!r} at step {step}: no finite number"
            )
        return value

    end = None if steps is None else step_count("steps", steps, least=0)
    return Schedule(function, {"f": f, "steps": end}, at, end)


def plateaus(schedules: Iterable[Schedule]) -> list[Plateau]:
    """The plateaus in these schedules, each once, however often it stands there.

    Example:
        >>> from steprule.schedules import cosine, plateau
        >>> shared = plateau()
        >>> len(plateaus([0.1 * shared, 0.2 * shared, cosine(10)]))
        1
    """
    found = (part.tracker for schedule in schedules for part in schedule._walk())
    return list({id(tracker): tracker for tracker in found if tracker}.values())


def follow(make: Callable[..., Schedule], tracker: Plateau) -> Schedule:
    """The schedule whose value is that of a plateau."""
    names = inspect.signature(make).parameters
    return Schedule(make, {name: getattr(tracker, name) for name in names}, lambda step: tracker.value, None, tracker)


def as_formula(side: Schedule | float) -> At:
    return side.at if isinstance(side, Schedule) else lambda step: side


def as_side(name: str, value: Schedule | At | float) -> Schedule | float:
    if isinstance(value, Schedule):
        return value
    if callable(value):
        return function(value)
    if not isinstance(value, Real):
        raise TypeError(f"a schedule goes with numbers, functions and schedules, not with {type(value).__name__}")
    return finite_number(name, value)


def as_schedule(name: str, value: Schedule | At | float) -> Schedule:
    if isinstance(value, Schedule):
        return value
    return function(value) if callable(value) else constant(finite_number(name, value))


def is_schedule(value: object) -> bool:
    return isinstance(value, Schedule) or (callable(value) and not isinstance(value, type))


def remake(make: Callable[..., Schedule], arguments: dict[str, Any]) -> Schedule:
    return make(**arguments)


def as_plain(value: Any) -> Any:
    if isinstance(value, Schedule):
        return value.to_dict()
    if isinstance(value, tuple):
        return [as_plain(part) for part in value]
    return function_name(value) if callable(value) else value


def function_name(f: Callable[..., object]) -> str:
    named = f if hasattr(f, "__qualname__") else type(f)
    return f"{named.__module__}:{named.__qualname__}"


def without_state(data: object) -> object:
    if isinstance(data, Mapping):
        return {key: without_state(value) for key, value in data.items() if key != "state"}
    return [without_state(value) for value in data] if isinstance(data, list) else data


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def is_mapping(value: object) -> bool:
    return isinstance(value, Mapping)


def schedule_text(schedule: Schedule) -> str:
    make, arguments = schedule.make, schedule.arguments
    if make is arithmetic:
        op, level = arguments["op"], OPERATORS[arguments["op"]][0]
        return f"{operand(arguments['left'], level)} {op} {operand(arguments['right'], level + 1)}"
    if make is join and len(arguments["schedules"]) == 2:
        first, second = arguments["schedules"]
        if arguments["milestones"] == (first.steps,):
            return f"{operand(first, 3)}.then({second})"
    if make is repeat:
        given = {name: arguments[name] for name in ("times", "t_mult", "gamma")}
        named = {name: value for name, value in given.items() if value != (None if name == "times" else 1)}
        shown = [repr(value) if name == "times" else f"{name}={value!r}" for name, value in named.items()]
        return f"{operand(arguments['shape'], 3)}.repeat({', '.join(shown)})"
    shown = []
    for i, parameter in enumerate(inspect.signature(make).parameters.values()):
        value = arguments[parameter.name]
        if value == parameter.default:
            continue
        positional = i == 0 or parameter.default is parameter.empty
        shown.append(argument_text(value) if positional else f"{parameter.name}={argument_text(value)}")
    return f"{make.__name__}({', '.join(shown)})"


def operand(value: Schedule | float, level: int) -> str:
    lower = isinstance(value, Schedule) and value.make is arithmetic and OPERATORS[value.arguments["op"]][0] < level
    return f"({value})" if lower else repr(value)


def argument_text(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(argument_text, value))}]"
    if callable(value) and not isinstance(value, Schedule):
        return function_name(value).partition(":")[2]
    return repr(value)
