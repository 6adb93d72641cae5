"""What a person writes, as type checkers see it: `make lint` has every line that is wrong be an error, and no other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import steprule
from steprule.rule import Array, Hyper, Scalar, State, lerp, sign, sqrt
from steprule.schedules import cosine

MODEL = nn.Linear(2, 1)


def closure() -> Tensor:
    return MODEL(torch.ones(1, 2)).sum()  # type: ignore[no-any-return]


def right() -> None:
    optimizer = steprule.AdamW(MODEL, lr=0.1 * cosine(9), clip_norm=1.0, overrides={"bias": dict(lr=0.1)})
    nothing: None = optimizer.step()
    loss: Tensor = optimizer.step(closure)
    taken: steprule.AdamW = steprule.AdamW.from_torch(torch.optim.AdamW(MODEL.parameters()))
    reasons: dict[str, str] = optimizer.untrained()
    rate: float = steprule.find_lr(optimizer, closure).rate
    print(nothing, loss, taken, reasons, rate)


def wrong() -> None:
    steprule.AdamW(MODEL, learning_rate=0.1)  # type: ignore[call-arg]
    steprule.SGD(MODEL, overides={})  # type: ignore[call-arg]
    steprule.Muon(MODEL, clipnorm=1.0)  # type: ignore[call-arg]
    steprule.RMSprop(MODEL, clipnorm=1.0)  # type: ignore[call-arg]
    steprule.AdamW(MODEL, overrides=[1])  # type: ignore[arg-type]
    steprule.AdamW(MODEL).step(3)  # type: ignore[call-overload]


class Own(steprule.Optimizer):
    """A class may override step(closure) as those of torch do."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class Typed(steprule.Optimizer):
    """A rule whose arguments say what they are, so that an editor knows their operators."""

    def update(self, p: Array, g: Array, s: State, h: Hyper) -> Array:
        rate: Scalar = h.lr / sqrt(s.step)
        s.mean = lerp(s.mean, g, 1 - h.beta)
        return p - rate * sign(s.mean)

    def mistaken(self, p: Array, s: State) -> Array:
        return "a text"  # type: ignore[return-value]
