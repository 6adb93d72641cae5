"""The shapes: factors that start at 1, or end there."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable

from .checks import choice, finite_number, step_count, step_counts
from .schedule import At, Schedule, constant, follow
from .tracker import Plateau

__all__ = [
    "cosine",
    "exponential",
    "inverse_sqrt",
    "linear",
    "milestones",
    "one_cycle",
    "plateau",
    "polynomial",
    "warmup",
    "warmup_stable_decay",
]


def linear(steps: int, start_factor: float = 1.0, end_factor: float = 0.0) -> Schedule:
    """From ``start_factor`` to ``end_factor`` in a straight line, and ``end_factor`` after that.

    torch's LinearLR.

    Raises:
        ValueError: ``steps`` is not positive, or a factor is not a finite number.

    Example:
        >>> [linear(4)(step) for step in range(6)]
        [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """
    steps = step_count("steps", steps)
    start, end = finite_number("start_factor", start_factor), finite_number("end_factor", end_factor)
    arguments = {"steps": steps, "start_factor": start, "end_factor": end}
    return Schedule(linear, arguments, ramp(steps, start, end), steps)


def warmup(steps: int, start_factor: float = 0.0) -> Schedule:
    """From ``start_factor`` to 1 in a straight line, and 1 after that.

    With the default the very first step is taken with 0. ``steps=0`` is no warmup: 1 from the first step.

    Raises:
        ValueError: ``steps`` is negative, or ``start_factor`` is not a finite number.

    Example:
        >>> [warmup(4)(step) for step in range(6)]
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """
    steps, start = step_count("steps", steps, least=0), finite_number("start_factor", start_factor)
    return Schedule(warmup, {"steps": steps, "start_factor": start}, ramp(steps, start, 1.0), steps)


def ramp(steps: int, start: float, end: float) -> At:
    rise = end - start
    return lambda step: start + rise * step / steps if step < steps else end


def cosine(steps: int, end_factor: float = 0.0) -> Schedule:
    r"""Half a cosine wave from 1 to ``end_factor``, and ``end_factor`` after that.

    .. math:: e + (1 - e) (1 + \cos(\pi t / T)) / 2

    torch's CosineAnnealingLR with ``T_max=steps`` and ``eta_min`` as a factor, up to ``T_max``: torch's wave rises
    again after it. Restarts are :meth:`Schedule.repeat`. Paper: SGDR, https://arxiv.org/abs/1608.03983.

    Raises:
        ValueError: ``steps`` is not positive, or ``end_factor`` is not a finite number.

    Example:
        >>> [round(cosine(4)(step), 3) for step in range(6)]
        [1.0, 0.854, 0.5, 0.146, 0.0, 0.0]
    """
    steps, end = step_count("steps", steps), finite_number("end_factor", end_factor)
    half, cos, turn = (1.0 - end) / 2, math.cos, math.pi / steps

    def at(step: float) -> float:
        return end + half * (1.0 + cos(turn * step)) if step < steps else end

    return Schedule(cosine, {"steps": steps, "end_factor": end}, at, steps)


def polynomial(steps: int, power: float = 1.0, end_factor: float = 0.0) -> Schedule:
    r"""From 1 to ``end_factor`` as :math:`e + (1 - e) (1 - t / T)^{power}`, and ``end_factor`` after that.

    torch's PolynomialLR.

    Raises:
        ValueError: ``steps`` or ``power`` is not positive, or ``end_factor`` is not a finite number.

    Example:
        >>> [polynomial(4, power=2)(step) for step in range(6)]
        [1.0, 0.5625, 0.25, 0.0625, 0.0, 0.0]
    """
    steps, end = step_count("steps", steps), finite_number("end_factor", end_factor)
    power = finite_number("power", power, above=0.0)

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
    base = finite_number("gamma", gamma, above=0.0)
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
    scale = step_count("timescale", timescale)
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
    points, factor = tuple(sorted(step_counts("steps", steps))), finite_number("gamma", gamma)
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
    steps, portion = step_count("steps", steps), finite_number("pct_start", pct_start)
    initial = 1.0 / finite_number("div_factor", div_factor, above=0.0)
    final = initial / finite_number("final_div_factor", final_div_factor, above=0.0)
    choice("anneal_strategy", anneal_strategy, ("cos", "linear"))
    choice("three_phase", three_phase, (False, True))
    most = 0.5 if three_phase else 1.0
    if not 0.0 <= portion <= most:
        raise ValueError(f"pct_start must be from 0 to {most}, got {pct_start!r}")

    top, last = portion * steps - 1, steps - 1.0
    ends = [top, 2 * top, last] if three_phase else [top, last]
    values = [initial, 1.0, initial, final] if three_phase else [initial, 1.0, final]
    phases = list(zip([0.0, *ends[:-1]], ends, values[:-1], values[1:], strict=True))
    ease = ease_cosine if anneal_strategy == "cos" else ease_linear

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


def ease_cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) / 2 * (1.0 + math.cos(math.pi * part))


def ease_linear(start: float, end: float, part: float) -> float:
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
    rise = warmup(step_count("warmup_steps", warmup_steps, least=0), start_factor)
    level = constant(steps=step_count("stable_steps", stable_steps, least=0))
    return rise.then(level).then(linear(step_count("decay_steps", decay_steps), end_factor=end_factor))


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
    choice("mode", mode, ("min", "max"))
    choice("threshold_mode", threshold_mode, ("rel", "abs"))
    if finite_number("factor", factor, above=0.0) >= 1.0:
        raise ValueError(f"factor must be below 1, got {factor!r}")
    return follow(
        plateau,
        Plateau(
            mode,
            float(factor),
            step_count("patience", patience, least=0),
            finite_number("threshold", threshold, least=0.0),
            threshold_mode,
            step_count("cooldown", cooldown, least=0),
            finite_number("min_factor", min_factor, least=0.0),
            finite_number("eps", eps, least=0.0),
        ),
    )
