"""What the tests of kernels share: optimizers made of a function, and tensors that lie in many ways."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from tensors import give, leaf, normal

from steprule import Optimizer
from steprule.rule.slot import Slot

__all__ = ["COMPILED", "FLOATS", "give", "leaf", "normal", "optimizer_of"]

COMPILED = ["llvm", "eager"]
FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def optimizer_of(
    rule: Callable[..., Any],
    params: Iterable[Any],
    backend: str = "auto",
    slots: Mapping[str, Slot] | None = None,
    **hyper: Any,
) -> Optimizer:
    """An optimizer whose rule is a function of ``(p, g, s, h)``."""
    body = {"update": lambda self, p, g, s, h: rule(p, g, s, h), "slots": dict(slots or {})}
    made: Optimizer = type(rule.__name__, (Optimizer,), body)(params, {"lr": 0.1, **hyper}, backend=backend)
    return made
