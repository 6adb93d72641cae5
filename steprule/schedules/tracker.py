"""What a plateau has seen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .checks import finite_number, step_count

__all__ = ["Plateau"]


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
            "value": finite_number("value", state["value"], least=0.0),
            "best": float(best) if best in ("inf", "-inf") else finite_number("best", best),
            "num_bad_epochs": step_count("num_bad_epochs", state["num_bad_epochs"], least=0),
            "cooldown_counter": step_count("cooldown_counter", state["cooldown_counter"], least=0),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state.

        Raises:
            ValueError: ``state`` is not from :meth:`state_dict`; nothing has changed.
        """
        vars(self).update(self.check(state))
