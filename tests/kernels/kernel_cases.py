"""What the tests of kernels share: optimizers made of a function, and tensors that lie in many ways."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from steprule import Optimizer
from steprule.rule.program import Slot

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


def leaf(value: torch.Tensor, grad: torch.Tensor | None = None) -> torch.Tensor:
    """A parameter that is this tensor, with this gradient."""
    p = value.detach().requires_grad_()
    if grad is not None:
        give(p, grad)
    return p


def give(p: torch.Tensor, grad: torch.Tensor) -> None:
    """Set a gradient, of another dtype too."""
    if grad.dtype != p.dtype:
        p.grad = None
        p.grad_dtype = None
    p.grad = grad


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Random numbers that depend on the seed alone, of every dtype alike."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(shape, generator=generator, dtype=wide).to(dtype)
