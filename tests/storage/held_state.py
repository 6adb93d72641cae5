"""Training by given gradients, and the random bits by which state is rounded."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

Make = Callable[..., torch.optim.Optimizer]


def gradients(shape: tuple[int, ...], steps: int, dtype: torch.dtype, scale: float = 1e-2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [(torch.randn(shape, generator=generator) * scale).to(dtype) for _ in range(steps)]


def run(make: Make, start: torch.Tensor, grads: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, Any], Any]:
    weight = start.clone().requires_grad_()
    optimizer = make([weight])
    for grad in grads:
        weight.grad = grad.clone()
        optimizer.step()
    return weight.detach(), optimizer.state[weight], optimizer


def assert_refused(make: Make, dtype: torch.dtype, words: str) -> None:
    """A first step over weights of a dtype, or making the optimizer, fails with these words, and changes nothing."""
    weight = torch.ones(4, dtype=dtype, requires_grad=True)
    weight.grad = torch.ones(4, dtype=dtype)
    with pytest.raises((ValueError, RuntimeError, TypeError), match=re.escape(words)):
        make([weight]).step()
    assert torch.equal(weight, torch.ones(4, dtype=dtype))


def hashed(index: np.ndarray, seed: int, tag: int, key: int, step: int) -> np.ndarray:
    """The random bits as docs/rules.md says them."""

    def mixed(x: Any) -> Any:
        x = np.uint32(x)
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
        return x ^ (x >> np.uint32(16))

    with np.errstate(over="ignore"):
        a = mixed(np.uint32(seed) + np.uint32(tag))
        a = mixed(mixed(a + np.uint32(key)) + np.uint32(step))
        x = (index.astype(np.uint32) ^ a) * np.uint32(0x9E3779B9)
        return (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)


def stochastically_rounded(x: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """bfloat16 by the upper 16 of the given bits, written from the definition: of two neighbours the farther one is
    taken as often as it is near."""
    low = (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    high = (low.view(np.uint32) + np.uint32(0x10000)).view(np.float32)
    part = (x - low).astype(np.float64) / (high - low).astype(np.float64)
    return np.where(part * 65536 + (noise >> 16) >= 65536, high, low)
