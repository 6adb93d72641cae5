"""A learning rate that is found by trying: the loss while the rate grows from step to step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from steprule.optimizer import Optimizer
from steprule.report import panels
from steprule.schedules import Schedule, Scheduled
from steprule.stepping.trial import trial
from steprule.stepping.workings import workings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["RateTest", "find_lr"]

LAST = 5
"""So many losses together are compared with the best so many."""
APART = 3.0
"""They have left when they are so many times what was gained, or their own size, above those."""


@dataclass(frozen=True)
class RateTest:
    """What :func:`find_lr` has seen.

    Attributes:
        rates: the rate of each step, ascending.
        losses: the loss before each of these steps.
        smoothed: each averaged with those about it.
        rate: the rate at which the loss falls fastest: one to train with, or to begin a
            schedule's peak at.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    rate: float

    def __repr__(self) -> str:
        best, last = min(self.smoothed), self.rates[-1]
        return f"lr={self.rate:.2g}: the loss fell from {self.smoothed[0]:.4g} to {best:.4g} by a rate of {last:.2g}"

    def plot(self) -> Figure:
        """The loss over the rate, with the rate that was found.

        Raises:
            ImportError: matplotlib is not installed.
        """
        with panels(1) as (figure, [axes]):
            axes.plot(self.rates, self.losses, color="#c9ced8", linewidth=1)
            axes.plot(self.rates, self.smoothed, color="#2463b8", linewidth=1.8)
            axes.axvline(self.rate, color="#c2410c", linewidth=1.2, linestyle=":")
            axes.set_xscale("log")
            low, high = min(self.smoothed), max(self.smoothed[: self.smoothed.index(min(self.smoothed)) + 1])
            room = 0.3 * (high - low) or 1.0
            axes.set_ylim(low - room, high + room)
            axes.set_title(f"loss; it falls fastest at lr={self.rate:.2g}")
            axes.set_xlabel("lr")
        return figure

    def _repr_png_(self) -> bytes:
        png: bytes = self.plot()._repr_png_()  # type: ignore[attr-defined]
        return png


def find_lr(
    optimizer: Optimizer,
    closure: Callable[[], Any],
    *,
    lowest: float = 1e-6,
    highest: float = 1.0,
    steps: int = 100,
    model: nn.Module | None = None,
) -> RateTest:
    r"""Try rates from low to high, one a step, and say at which the loss falls fastest.

    The rate of step :math:`i` is :math:`\text{lowest} \cdot (\text{highest} / \text{lowest})^{i / (n - 1)}`; the test
    ends early where the loss rises far above its best. `Cyclical Learning Rates for Training Neural Networks
    <https://arxiv.org/abs/1506.01186>`_, Smith, 2017, section 3.3.

    Afterwards parameters, buffers, gradients, the optimizer and the random generators are as before, to the bit; an
    iterator that the closure takes batches from has moved on.

    Args:
        optimizer: the optimizer, fresh or in the middle of training. Where groups have different rates, they keep their
            ratios, and the rate is that of the largest; of one that follows a schedule the highest value counts.
        closure: what a step of training is without the step: drops gradients, computes the loss of a batch and its
            gradients, and returns the loss. Give it another batch at each call.
        lowest: the first rate.
        highest: the last.
        steps: how many rates, at least 10.
        model: the module whose buffers (running means of normalizations) are kept; those of modules that the optimizer
            was given are.

    Raises:
        ValueError: the optimizer has no lr that is not 0, rates are not positive and ascending, or ``steps`` is less
            than 10.
        RuntimeError: the loss is not finite from the first step on, or no rate makes it fall.

    Example:
        >>> import torch, steprule
        >>> weight = torch.ones(4, requires_grad=True)
        >>> optimizer = steprule.SGD([weight], lr=0.1)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = 5 * weight.square().sum()  # which steps of 0.2 make diverge
        ...     loss.backward()
        ...     return loss
        >>> found = steprule.find_lr(optimizer, closure, lowest=1e-5)
        >>> 0.001 < found.rate < 0.2
        True
        >>> weight.detach(), optimizer.steps_taken
        (tensor([1., 1., 1., 1.]), 0)
    """
    if not 0 < lowest < highest or not math.isfinite(highest):
        raise ValueError(f"rates must be positive and ascending, got lowest={lowest} and highest={highest}")
    if steps < 10:
        raise ValueError(f"steps must be at least 10, got {steps}")
    peaks = [highest_rate(group) for group in optimizer.param_groups]
    most = max(peaks, default=0.0)
    if most <= 0:
        raise ValueError(f"no group of this {type(optimizer).__name__} has a rate lr that is not 0")
    rates: list[float] = []
    losses: list[float] = []
    with trial(optimizer, [*workings(optimizer).members.modules(), *([] if model is None else [model])]):
        for group in optimizer.param_groups:
            if "schedules" in group:
                group["schedules"] = Scheduled({at: own for at, own in group["schedules"].items() if at != "lr"})
        for i in range(steps):
            rate = lowest * (highest / lowest) ** (i / (steps - 1))
            for group, own in zip(optimizer.param_groups, peaks, strict=True):
                if "lr" in group:
                    group["lr"] = rate_like(group["lr"], rate * own / most)
            loss = optimizer.step(closure)
            loss = float(loss.detach() if isinstance(loss, torch.Tensor) else loss)
            if not math.isfinite(loss):
                break
            rates.append(rate)
            losses.append(loss)
            if left(losses):
                break
    if len(losses) < LAST:
        raise RuntimeError(f"the loss is not finite by a rate of {rate:.2g}: begin with a lower one (lowest=)")
    smoothed = averaged(losses, max(len(losses) // 20, 1))
    return RateTest(rates, losses, smoothed, steepest_rate(rates, losses, smoothed))


def left(losses: Sequence[float]) -> bool:
    """Whether the last losses are far above the best ones."""
    means = [sum(losses[i : i + LAST]) / LAST for i in range(len(losses) - LAST + 1)]
    return len(means) > 1 and means[-1] > min(means) + APART * max(abs(min(means)), means[0] - min(means))


def averaged(losses: Sequence[float], reach: int) -> list[float]:
    """The mean of each loss and of those that many steps before and after it."""
    around = [losses[max(i - reach, 0) : i + reach + 1] for i in range(len(losses))]
    return [sum(window) / len(window) for window in around]


def highest_rate(group: Mapping[str, Any]) -> float:
    """A group's rate; the highest it comes to where it follows a schedule."""
    schedule: Schedule | None = (group.get("schedules") or {}).get("lr")
    if schedule is None:
        return float(group.get("lr", 0.0))
    last = schedule.steps or 10_000
    return max(schedule(round(i * last / 200)) for i in range(201))


def rate_like(before: Any, rate: float) -> Any:
    """A rate as a group holds it: a number, or a tensor."""
    return torch.full_like(before, rate) if isinstance(before, torch.Tensor) else rate


def steepest_rate(rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float]) -> float:
    """The rate about which a line through a quarter of the losses, over the logarithm of the rate, falls most steeply.

    Raises:
        RuntimeError: no such line falls, but for rounding.
    """
    reach = max(len(losses) // 8, 1)
    least = 1e-6 * max(map(abs, losses))
    slopes = {i: sum(k * losses[i + k] for k in range(-reach, reach + 1)) for i in range(reach, len(losses) - reach)}
    steepest = min(slopes, key=slopes.__getitem__)
    if smoothed[0] - min(smoothed) <= least or slopes[steepest] >= 0:
        raise RuntimeError(
            f"at no rate from {rates[0]:.2g} to {rates[-1]:.2g} does the loss fall: is the closure's loss that of the "
            "optimizer's parameters, and of batches that are alike?"
        )
    return rates[steepest]
