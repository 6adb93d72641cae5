"""Hyperparameters as functions of the step.

A shape such as ``cosine(9000)`` is a factor that starts at 1 (``warmup`` ends there), so a schedule is a
number times a shape, and shapes follow each other with :meth:`Schedule.then`::

    lr = 3e-4 * warmup(1000).then(cosine(9000))

A schedule is called with the number of steps already taken: 0 for the first step, as with a torch scheduler
that is stepped after the optimizer. Where ``torch.optim.lr_scheduler`` has a scheduler of the same name, the
values are the same.
"""

from __future__ import annotations

import inspect
import math
import operator
import re
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from types import MappingProxyType
from typing import Any, TypeAlias

from steprule.names import nearest

__all__ = [
    "Plateau",
    "Schedule",
    "Scheduled",
    "constant",
    "cosine",
    "exponential",
    "from_dict",
    "function",
    "inverse_sqrt",
    "join",
    "linear",
    "milestones",
    "one_cycle",
    "plateau",
    "plateaus",
    "polynomial",
    "separate",
    "warmup",
    "warmup_stable_decay",
    "write",
]

At: TypeAlias = Callable[[int], float]
Path: TypeAlias = str | tuple[str, int]

_BLOCKS = "▁▂▃▄▅▆▇█"


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

    def then(self, other: Schedule | At | float) -> Schedule:
        """This schedule to its end, and ``other`` from there on, which starts counting at 0.

        Raises:
            ValueError: this schedule never ends.

        Example:
            >>> cosine(10).then(0.1)(25)
            0.1
        """
        if self.steps is None:
            raise ValueError(f"{self} never ends; say where with join([{self}, {other}], [step])")
        return join([self, other], [self.steps])

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
            >>> warmup(100).then(cosine(900)).sparkline(width=20)
            '▁▅████▇▇▆▆▅▄▃▃▂▂▁▁▁▁'
        """
        last = self.steps if steps is None else steps
        if last is None:
            raise ValueError(f"steps must be given, since {self} never ends")
        last, width = _count("steps", last), _count("width", width)
        values = [self.at(round(i * last / max(width - 1, 1))) for i in range(width)]
        low, high = min(values), max(values)
        if low == high:
            return _BLOCKS[3] * width
        return "".join(_BLOCKS[min(int((value - low) / (high - low) * 8), 7)] for value in values)

    @property
    def is_portable(self) -> bool:
        """Whether :func:`from_dict` can make it again: it has no user's function in it."""
        return self.make is not function and all(part.is_portable for part in self._parts())

    def to_dict(self) -> dict[str, Any]:
        """The expression and the state of its plateaus as plain data, which JSON can hold.

        Example:
            >>> (0.1 * cosine(10)).to_dict()["right"]
            {'schedule': 'cosine', 'steps': 10, 'end_factor': 0.0}
        """
        plain = {key: _plain(value) for key, value in self.arguments.items() if value is not None}
        state = {"state": self.tracker.state_dict()} if self.tracker else {}
        return {"schedule": self.make.__name__, **plain, **state}

    def matches(self, saved: object) -> bool:
        """Whether ``saved`` describes this expression, whatever its plateaus have seen. Never raises."""
        return _without_state(self.to_dict()) == _without_state(saved)

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
        saved_parts = [part for key in self.arguments for part in _listed(saved.get(key))]
        for part, saved_part in zip(self._parts(), filter(_is_mapping, saved_parts), strict=True):
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
        return (_follow, (self.tracker,)) if self.tracker else (_remake, (self.make, dict(self.arguments)))

    def __repr__(self) -> str:
        return _text(self)

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
    value = _number("factor", factor)
    if steps is None:
        return Schedule(constant, {"factor": value, "steps": None}, lambda step: value)
    end = _count("steps", steps, least=0)
    return Schedule(constant, {"factor": value, "steps": end}, lambda step: value if step < end else 1.0, end)


def linear(steps: int, start_factor: float = 1.0, end_factor: float = 0.0) -> Schedule:
    """From ``start_factor`` to ``end_factor`` in a straight line, and ``end_factor`` after that.

    torch's LinearLR.

    Raises:
        ValueError: ``steps`` is not positive, or a factor is not a finite number.

    Example:
        >>> [linear(4)(step) for step in range(6)]
        [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """
    steps = _count("steps", steps)
    start, end = _number("start_factor", start_factor), _number("end_factor", end_factor)
    arguments = {"steps": steps, "start_factor": start, "end_factor": end}
    return Schedule(linear, arguments, _ramp(steps, start, end), steps)


def warmup(steps: int, start_factor: float = 0.0) -> Schedule:
    """From ``start_factor`` to 1 in a straight line, and 1 after that.

    With the default the very first step is taken with 0. ``steps=0`` is no warmup: 1 from the first step.

    Raises:
        ValueError: ``steps`` is negative, or ``start_factor`` is not a finite number.

    Example:
        >>> [warmup(4)(step) for step in range(6)]
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """
    steps, start = _count("steps", steps, least=0), _number("start_factor", start_factor)
    return Schedule(warmup, {"steps": steps, "start_factor": start}, _ramp(steps, start, 1.0), steps)


def _ramp(steps: int, start: float, end: float) -> At:
    rise = end - start
    return lambda step: start + rise * step / steps if step < steps else end


def cosine(steps: int, end_factor: float = 0.0) -> Schedule:
    r"""Half a cosine wave from 1 to ``end_factor``: :math:`e + (1 - e) (1 + \cos(\pi t / T)) / 2`.

    torch's CosineAnnealingLR with ``T_max=steps`` and ``eta_min`` as a factor. As in torch the wave goes on:
    after ``steps`` it rises again. ``cosine(steps).then(0.0)`` stays at the end. Paper: SGDR,
    https://arxiv.org/abs/1608.03983.

    Raises:
        ValueError: ``steps`` is not positive, or ``end_factor`` is not a finite number.

    Example:
        >>> [round(cosine(4)(step), 3) for step in range(5)]
        [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    steps, end = _count("steps", steps), _number("end_factor", end_factor)
    half = (1.0 - end) / 2
    cos, turn = math.cos, math.pi / steps
    return Schedule(
        cosine, {"steps": steps, "end_factor": end}, lambda step: end + half * (1.0 + cos(turn * step)), steps
    )


def polynomial(steps: int, power: float = 1.0, end_factor: float = 0.0) -> Schedule:
    r"""From 1 to ``end_factor`` as :math:`e + (1 - e) (1 - t / T)^{power}`, and ``end_factor`` after that.

    torch's PolynomialLR.

    Raises:
        ValueError: ``steps`` or ``power`` is not positive, or ``end_factor`` is not a finite number.

    Example:
        >>> [polynomial(4, power=2)(step) for step in range(6)]
        [1.0, 0.5625, 0.25, 0.0625, 0.0, 0.0]
    """
    steps, end = _count("steps", steps), _number("end_factor", end_factor)
    power = _number("power", power, above=0.0)

    def at(step: int) -> float:
        return end + (1.0 - end) * (1.0 - step / steps) ** power if step < steps else end

    return Schedule(polynomial, {"steps": steps, "power": power, "end_factor": end}, at, steps)


def exponential(gamma: float) -> Schedule:
    r""":math:`\gamma^t`, without an end. torch's ExponentialLR.

    Raises:
        ValueError: ``gamma`` is not a positive number.

    Example:
        >>> [exponential(0.5)(step) for step in range(4)]
        [1.0, 0.5, 0.25, 0.125]
    """
    base = _number("gamma", gamma, above=0.0)
    return Schedule(exponential, {"gamma": base}, lambda step: base**step)


def inverse_sqrt(timescale: int) -> Schedule:
    r""":math:`\sqrt{s / (s + t)}` with the timescale s in steps, without an end.

    ``warmup(s).then(inverse_sqrt(s))`` is the schedule of the Transformer
    (https://arxiv.org/abs/1706.03762, section 5.3): in step t after the warmup, :math:`\sqrt{s / t}`.

    Raises:
        ValueError: ``timescale`` is not positive.

    Example:
        >>> inverse_sqrt(100)(300)
        0.5
    """
    scale = _count("timescale", timescale)
    sqrt = math.sqrt
    return Schedule(inverse_sqrt, {"timescale": scale}, lambda step: sqrt(scale / (scale + step)))


def milestones(steps: Iterable[int], gamma: float = 0.1) -> Schedule:
    """1, multiplied by ``gamma`` at each of the ``steps``, without an end. torch's MultiStepLR.

    A step given twice multiplies twice.

    Raises:
        ValueError: a step is negative, or ``gamma`` is not a finite number.

    Example:
        >>> [milestones([2, 3], gamma=0.5)(step) for step in range(5)]
        [1.0, 1.0, 0.5, 0.25, 0.25]
    """
    points, factor = tuple(sorted(_counts("steps", steps))), _number("gamma", gamma)
    values = [factor**passed for passed in range(len(points) + 1)]
    arguments = {"steps": points, "gamma": factor}
    return Schedule(milestones, arguments, lambda step: values[bisect_right(points, step)])


def one_cycle(
    steps: int,
    pct_start: float = 0.3,
    anneal_strategy: str = "cos",
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    three_phase: bool = False,
) -> Schedule:
    """Up from ``1 / div_factor`` to 1 and down to ``1 / (div_factor * final_div_factor)``, where it stays.

    torch's OneCycleLR: ``max_lr * one_cycle(total_steps)``; the momentum is another hyperparameter and takes
    a schedule of its own. Paper: Super-Convergence, https://arxiv.org/abs/1708.07120.

    Args:
        steps: number of steps of the cycle; the last one is step ``steps - 1``.
        pct_start: the part of the cycle that goes up, from 0 to 1.
        anneal_strategy: ``"cos"`` or ``"linear"``.
        div_factor: the peak over the beginning.
        final_div_factor: the beginning over the end.
        three_phase: down to the beginning as fast as it went up, and only then to the end.

    Raises:
        ValueError: an argument is out of its range, or three phases have no room with this ``pct_start``.

    Example:
        >>> rate = 0.1 * one_cycle(100)
        >>> [round(rate(step), 10) for step in (0, 29, 99)]
        [0.004, 0.1, 4e-07]
    """
    steps, portion = _count("steps", steps), _number("pct_start", pct_start)
    initial = 1.0 / _number("div_factor", div_factor, above=0.0)
    final = initial / _number("final_div_factor", final_div_factor, above=0.0)
    _choice("anneal_strategy", anneal_strategy, ("cos", "linear"))
    _choice("three_phase", three_phase, (False, True))
    most = 0.5 if three_phase else 1.0
    if not 0.0 <= portion <= most:
        raise ValueError(f"pct_start must be from 0 to {most}, got {pct_start!r}")

    top, last = portion * steps - 1, steps - 1.0
    ends = [top, 2 * top, last] if three_phase else [top, last]
    values = [initial, 1.0, initial, final] if three_phase else [initial, 1.0, final]
    phases = list(zip([0.0, *ends[:-1]], ends, values[:-1], values[1:], strict=True))
    ease = _ease_cosine if anneal_strategy == "cos" else _ease_linear

    def at(step: int) -> float:
        if step > last:
            return final
        start, end, value, goal = next(phase for phase in phases if step <= phase[1])
        return ease(value, goal, (step - start) / (end - start)) if end > start else goal

    arguments = {
        "steps": steps,
        "pct_start": portion,
        "anneal_strategy": anneal_strategy,
        "div_factor": float(div_factor),
        "final_div_factor": float(final_div_factor),
        "three_phase": three_phase,
    }
    return Schedule(one_cycle, arguments, at, steps)


def _ease_cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) / 2 * (1.0 + math.cos(math.pi * part))


def _ease_linear(start: float, end: float, part: float) -> float:
    return start + (end - start) * part


def warmup_stable_decay(
    warmup_steps: int,
    stable_steps: int,
    decay_steps: int,
    start_factor: float = 0.0,
    end_factor: float = 0.0,
) -> Schedule:
    """Up to 1, level, and down to ``end_factor`` in a straight line: ``warmup.then(constant).then(linear)``.

    Paper: MiniCPM, https://arxiv.org/abs/2404.06395. Another way down is
    ``warmup(w).then(constant(steps=s)).then(...)`` with any shape.

    Raises:
        ValueError: a number of steps is negative (or none for the decay), or a factor is not a finite number.

    Example:
        >>> warmup_stable_decay(100, 800, 100)
        warmup(100).then(constant(steps=800)).then(linear(100))
    """
    rise = warmup(_count("warmup_steps", warmup_steps, least=0), start_factor)
    level = constant(steps=_count("stable_steps", stable_steps, least=0))
    return rise.then(level).then(linear(_count("decay_steps", decay_steps), end_factor=end_factor))


def join(schedules: Iterable[Schedule | At | float], milestones: Iterable[int]) -> Schedule:
    """One schedule after the other, each counting from 0 where it begins: at its milestone.

    torch's SequentialLR.

    Args:
        schedules: at least one; a number stands for a constant, a function for itself.
        milestones: the steps at which the second, third, ... begin, not falling.

    Raises:
        ValueError: there are not one fewer milestones than schedules, or they are negative or fall.

    Example:
        >>> [join([1.0, 0.5, linear(2)], [1, 2])(step) for step in range(5)]
        [1.0, 0.5, 1.0, 0.5, 0.0]
    """
    parts = tuple(_schedule("schedules", part) for part in schedules)
    points = _counts("milestones", milestones)
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
        value = float(f(step))
        if not math.isfinite(value):
            raise ValueError(f"the schedule function {_function_name(f)} gave {value} at step {step}")
        return value

    end = None if steps is None else _count("steps", steps, least=0)
    return Schedule(function, {"f": f, "steps": end}, at, end)


def plateau(
    mode: str = "min",
    factor: float = 0.1,
    patience: int = 10,
    threshold: float = 1e-4,
    threshold_mode: str = "rel",
    cooldown: int = 0,
    min_factor: float = 0.0,
    eps: float = 1e-8,
) -> Schedule:
    """1, multiplied by ``factor`` whenever a metric has stopped improving; it does not look at the step.

    torch's ReduceLROnPlateau, with ``min_lr`` and ``eps`` as factors. The metric comes from
    :meth:`Schedule.report`. It is the only schedule that changes: every place where the same plateau stands,
    in one group or in several, changes with it.

    Args:
        mode: ``"min"`` where a lower metric is better, ``"max"`` where a higher one is.
        factor: between 0 and 1.
        patience: how many reports without improvement are borne.
        threshold: what counts as an improvement.
        threshold_mode: ``"rel"``: the threshold is a part of the best metric; ``"abs"``: a difference.
        cooldown: number of reports after a reduction in which none is counted as bad.
        min_factor: the value does not fall below it.
        eps: a smaller change of the value than this is left out.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> rate = 0.5 * plateau(factor=0.5, patience=0)
        >>> for loss in (3.0, 2.0, 2.5):
        ...     rate.report(loss)
        >>> rate(1000)
        0.25
    """
    _choice("mode", mode, ("min", "max"))
    _choice("threshold_mode", threshold_mode, ("rel", "abs"))
    if _number("factor", factor, above=0.0) >= 1.0:
        raise ValueError(f"factor must be below 1, got {factor!r}")
    return _follow(
        Plateau(
            mode,
            float(factor),
            _count("patience", patience, least=0),
            _number("threshold", threshold, least=0.0),
            threshold_mode,
            _count("cooldown", cooldown, least=0),
            _number("min_factor", min_factor, least=0.0),
            _number("eps", eps, least=0.0),
        )
    )


@dataclass(eq=False)
class Plateau:
    """What a :func:`plateau` has seen, and the value that follows from it. Attribute names are torch's.

    Attributes:
        value: the present factor.
        best: the best metric so far; infinite before the first.
        num_bad_epochs: reports without improvement since the last one with, or since the last reduction.
        cooldown_counter: reports of the cooldown that are still to come.
    """

    mode: str
    factor: float
    patience: int
    threshold: float
    threshold_mode: str
    cooldown: int
    min_factor: float
    eps: float
    value: float = field(default=1.0, init=False)
    best: float = field(init=False)
    num_bad_epochs: int = field(default=0, init=False)
    cooldown_counter: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.best = math.inf if self.mode == "min" else -math.inf

    def report(self, metric: float) -> None:
        """Takes in one metric: a number or a tensor with one."""
        metric = float(metric)
        if self._is_better(metric):
            self.best = metric
            self.num_bad_epochs = 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            self._reduce()

    def _is_better(self, metric: float) -> bool:
        sign = 1.0 if self.mode == "max" else -1.0
        if self.threshold_mode == "rel":
            return sign * metric > sign * self.best * (1.0 + sign * self.threshold)
        return sign * metric > sign * self.best + self.threshold

    def _reduce(self) -> None:
        reduced = max(self.value * self.factor, self.min_factor)
        if self.value - reduced > self.eps:
            self.value = reduced
        self.cooldown_counter = self.cooldown
        self.num_bad_epochs = 0

    def state_dict(self) -> dict[str, Any]:
        """What reports change, as plain data; an infinite ``best`` is a string, which JSON can hold."""
        return {
            "value": self.value,
            "best": self.best if math.isfinite(self.best) else str(self.best),
            "num_bad_epochs": self.num_bad_epochs,
            "cooldown_counter": self.cooldown_counter,
        }

    def check(self, state: object) -> dict[str, Any]:
        """The state as attributes.

        Raises:
            ValueError: ``state`` is not from :meth:`state_dict`.
        """
        if not isinstance(state, Mapping) or set(state) != set(self.state_dict()):
            raise ValueError(f"the state of a plateau must have {', '.join(self.state_dict())}, got {state!r}")
        best = state["best"]
        return {
            "value": _number("value", state["value"], least=0.0),
            "best": float(best) if best in ("inf", "-inf") else _number("best", best),
            "num_bad_epochs": _count("num_bad_epochs", state["num_bad_epochs"], least=0),
            "cooldown_counter": _count("cooldown_counter", state["cooldown_counter"], least=0),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state.

        Raises:
            ValueError: ``state`` is not from :meth:`state_dict`; nothing has changed.
        """
        vars(self).update(self.check(state))


def _follow(tracker: Plateau) -> Schedule:
    names = inspect.signature(plateau).parameters
    return Schedule(
        plateau, {name: getattr(tracker, name) for name in names}, lambda step: tracker.value, None, tracker
    )


def plateaus(schedules: Iterable[Schedule]) -> list[Plateau]:
    """The plateaus in these schedules, each once, however often it stands there.

    Example:
        >>> shared = plateau()
        >>> len(plateaus([0.1 * shared, 0.2 * shared, cosine(10)]))
        1
    """
    found = (part.tracker for schedule in schedules for part in schedule._walk())
    return list({id(tracker): tracker for tracker in found if tracker}.values())


_OPERATORS: dict[str, tuple[int, Callable[[float, float], float]]] = {
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
    _choice("op", op, tuple(_OPERATORS))
    one, other = _side("left", left), _side("right", right)
    lengths = [side.steps for side in (one, other) if isinstance(side, Schedule)]
    known = [length for length in lengths if length is not None]
    end = max(known) if known and len(known) == len(lengths) else None
    first, second, apply = _formula(one), _formula(other), _OPERATORS[op][1]
    arguments = {"op": op, "left": one, "right": other}
    return Schedule(arithmetic, arguments, lambda step: apply(first(step), second(step)), end)


def _formula(side: Schedule | float) -> At:
    return side.at if isinstance(side, Schedule) else lambda step: side


def from_dict(data: object) -> Schedule:
    """The schedule that :meth:`Schedule.to_dict` described. Runs no code that ``data`` could name.

    Raises:
        ValueError: ``data`` is malformed or has a user's function in it, which can't be made from its name.

    Example:
        >>> rate = 0.1 * warmup(10).then(cosine(90))
        >>> from_dict(rate.to_dict()) == rate
        True
    """
    if not isinstance(data, Mapping) or not isinstance(data.get("schedule"), str):
        raise ValueError(f"a schedule is described by a dictionary with its name under 'schedule', got {data!r}")
    rest = dict(data)
    name, state = rest.pop("schedule"), rest.pop("state", None)
    if name == "function":
        raise ValueError(f"the schedule function {rest.get('f')} can't be made from its name; give the schedule again")
    if name not in _MAKERS:
        raise ValueError(f"unknown schedule {name!r}{nearest(name, list(_MAKERS))}")
    try:
        schedule = _MAKERS[name](**{key: _revive(value) for key, value in rest.items()})
    except (TypeError, ArithmeticError) as error:
        raise ValueError(f"the description of a schedule is malformed: {error}") from error
    if (state is None) != (schedule.tracker is None):
        raise ValueError(f"{name} {'must' if schedule.tracker else 'can not'} have a state")
    if schedule.tracker and state is not None:
        schedule.tracker.load_state_dict(state)
    return schedule


class Scheduled(dict[Path, Schedule]):
    """The schedules of one parameter group by where they stand: a key or (key, index).

    Attributes:
        written: the number last written at each place.

    Example:
        >>> group = {"lr": 0.1 * cosine(4), "betas": (0.9, linear(4))}
        >>> scheduled = separate(group)
        >>> group
        {'lr': 0.1, 'betas': (0.9, 1.0)}
        >>> scheduled.write(group, 2)
        >>> group
        {'lr': 0.05, 'betas': (0.9, 0.5)}
    """

    def __init__(self, schedules: Mapping[Path, Schedule] | Iterable[tuple[Path, Schedule]] = ()) -> None:
        super().__init__(schedules)
        self.written: dict[Path, float] = {}

    def write(self, group: dict[str, Any], step: int) -> None:
        """Writes the values after ``step`` steps into the group, as plain floats."""
        for path, schedule in self.items():
            value = self.written[path] = schedule.at(step)
            if isinstance(path, str):
                group[path] = value
            else:
                key, index = path
                group[key] = (*group[key][:index], value, *group[key][index + 1 :])

    def check(self, group: Mapping[str, Any], number: int) -> None:
        """Refuses a group in which a value is not the one last written.

        Args:
            group: the parameter group.
            number: its place among the groups, for the message.

        Raises:
            RuntimeError: something else, such as a torch scheduler, has set it.
        """
        for path, expected in self.written.items():
            found = group[path] if isinstance(path, str) else group[path[0]][path[1]]
            if found is not expected and found != expected and path in self:
                name = _path_text(path)
                raise RuntimeError(
                    f"both a schedule and something else set {name} of group {number}: {self[path]} gave "
                    f"{expected}, and {found} stands there now; give up the other (a torch scheduler?), "
                    f"or give a plain number for {name} instead of a schedule"
                )

    def to_dict(self) -> dict[str, Any]:
        """The schedules as plain data, under keys such as ``"lr"`` and ``"betas[1]"``."""
        return {_path_text(path): schedule.to_dict() for path, schedule in self.items()}

    @classmethod
    def from_dict(cls, data: object, group: Mapping[str, Any]) -> Scheduled:
        """The schedules that :meth:`to_dict` described, for a group with a number wherever one stands.

        Raises:
            ValueError: ``data`` is malformed, has a user's function in it, or does not fit the group.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"the schedules of a group are described by a dictionary, got {data!r}")
        return cls((_path(text, group), from_dict(schedule)) for text, schedule in data.items())


def separate(group: dict[str, Any], step: int = 0) -> Scheduled:
    """Takes the schedules out of a group's hyperparameters and leaves their present numbers in their places.

    Args:
        group: hyperparameters by name, changed in place. A function counts as a schedule; tuples and lists
            are looked into, and become tuples where a schedule stands in them. ``"params"``,
            ``"param_names"`` and ``"schedules"`` are left alone.
        step: the number of steps already taken.

    Returns:
        The schedules; empty if there are none.
    """
    scheduled = Scheduled()
    for key, value in group.items():
        if key in ("params", "param_names", "schedules"):
            continue
        if _is_schedule(value):
            scheduled[key] = _schedule(key, value)
        elif isinstance(value, (tuple, list)):
            scheduled.update({(key, i): _schedule(key, v) for i, v in enumerate(value) if _is_schedule(v)})
    scheduled.write(group, step)
    return scheduled


def write(groups: Sequence[dict[str, Any]], step: int) -> None:
    """Writes the values after ``step`` steps into every group that has schedules under ``"schedules"``.

    Raises:
        RuntimeError: something else set a number for which there is a schedule; no group has changed.
    """
    for number, group in enumerate(groups):
        if "schedules" in group:
            group["schedules"].check(group, number)
    for group in groups:
        if "schedules" in group:
            group["schedules"].write(group, step)


def _remake(make: Callable[..., Schedule], arguments: dict[str, Any]) -> Schedule:
    return make(**arguments)


def _is_schedule(value: object) -> bool:
    return isinstance(value, Schedule) or (callable(value) and not isinstance(value, type))


def _schedule(name: str, value: Schedule | At | float) -> Schedule:
    if isinstance(value, Schedule):
        return value
    return function(value) if callable(value) else constant(_number(name, value))


def _side(name: str, value: Schedule | At | float) -> Schedule | float:
    if isinstance(value, Schedule):
        return value
    if callable(value):
        return function(value)
    if not isinstance(value, Real):
        raise TypeError(f"a schedule goes with numbers, functions and schedules, not with {type(value).__name__}")
    return _number(name, value)


def _number(name: str, value: float, least: float = -math.inf, above: float = -math.inf) -> float:
    if not isinstance(value, Real) or isinstance(value, bool) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    if value <= above:
        raise ValueError(f"{name} must be above {above}, got {value!r}")
    return float(value)


def _count(name: str, value: int, least: int = 1) -> int:
    number = _number(name, value)
    if not number.is_integer():
        raise ValueError(f"{name} must be a whole number of steps, got {value!r}")
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return int(value)


def _counts(name: str, values: Iterable[int]) -> tuple[int, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"{name} must be a list of whole numbers of steps, got {values!r}")
    return tuple(_count(name, value, least=0) for value in values)


def _choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if not any(value == choice and type(value) is type(choice) for choice in choices):
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}")


def _function_name(f: Callable[..., object]) -> str:
    named = f if hasattr(f, "__qualname__") else type(f)
    return f"{named.__module__}:{named.__qualname__}"


def _plain(value: Any) -> Any:
    if isinstance(value, Schedule):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return _function_name(value) if callable(value) else value


def _revive(value: Any) -> Any:
    if isinstance(value, Mapping):
        return from_dict(value)
    return [_revive(part) for part in value] if isinstance(value, list) else value


def _without_state(data: object) -> object:
    if isinstance(data, Mapping):
        return {key: _without_state(value) for key, value in data.items() if key != "state"}
    return [_without_state(value) for value in data] if isinstance(data, list) else data


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping)


def _path_text(path: Path) -> str:
    return path if isinstance(path, str) else f"{path[0]}[{path[1]}]"


def _path(text: object, group: Mapping[str, Any]) -> Path:
    found = re.fullmatch(r"(\w+)(?:\[(\d+)\])?", text) if isinstance(text, str) else None
    key, index = found.groups() if found else (None, None)
    if key is None or key not in group:
        raise ValueError(f"there is a schedule for {text!r}, which the group does not have")
    if index is None:
        return key
    if not isinstance(group[key], tuple) or int(index) >= len(group[key]):
        raise ValueError(f"there is a schedule for {text!r}, and {key} is {group[key]!r}")
    return key, int(index)


def _text(schedule: Schedule) -> str:
    make, arguments = schedule.make, schedule.arguments
    if make is arithmetic:
        op, level = arguments["op"], _OPERATORS[arguments["op"]][0]
        return f"{_operand(arguments['left'], level)} {op} {_operand(arguments['right'], level + 1)}"
    if make is join and len(arguments["schedules"]) == 2:
        first, second = arguments["schedules"]
        if arguments["milestones"] == (first.steps,):
            return f"{_operand(first, 3)}.then({second})"
    shown: list[str] = []
    for i, parameter in enumerate(inspect.signature(make).parameters.values()):
        value = arguments[parameter.name]
        if value == parameter.default:
            continue
        positional = i == 0 or parameter.default is parameter.empty
        shown.append(_value_text(value) if positional else f"{parameter.name}={_value_text(value)}")
    return f"{make.__name__}({', '.join(shown)})"


def _operand(value: Schedule | float, level: int) -> str:
    lower = isinstance(value, Schedule) and value.make is arithmetic and _OPERATORS[value.arguments["op"]][0] < level
    return f"({value})" if lower else repr(value)


def _value_text(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value_text, value))}]"
    if callable(value) and not isinstance(value, Schedule):
        return _function_name(value).partition(":")[2]
    return repr(value)


_MAKERS: dict[str, Callable[..., Schedule]] = {
    make.__name__: make
    for make in (
        arithmetic,
        constant,
        cosine,
        exponential,
        inverse_sqrt,
        join,
        linear,
        milestones,
        one_cycle,
        plateau,
        polynomial,
        warmup,
    )
}
