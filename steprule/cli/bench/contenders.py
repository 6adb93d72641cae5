"""What is timed: an optimizer of ours, its peers in torch, and the machine's memory."""

from __future__ import annotations

import inspect
import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import steprule
from steprule.kernels.explain import bytes_per_element

from .tensor_shapes import Shape
from .timing import Step

__all__ = [
    "HandwrittenLion",
    "Make",
    "Traffic",
    "algorithms",
    "clipped",
    "coming_and_going",
    "copying",
    "in_float32",
    "in_groups",
    "in_place",
    "parameters",
    "stepping",
    "torch_peers",
    "traffic",
    "works",
]

COLD, TURNS = 2**28, 16
"""Bytes that no cache of a GPU holds, and among how many copies they are shared at most."""

Make = Callable[[list[Tensor]], Step]
"""Parameters whose gradients are in place, to the step of a contender."""


class HandwrittenLion(steprule.Optimizer):
    """Lion as a user would write it (Chen et al. 2023, https://arxiv.org/abs/2302.06675)."""

    def __init__(self, params: Any, lr: float = 1e-4, betas: Any = (0.9, 0.99), weight_decay: float = 0.0) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, weight_decay=weight_decay))

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        beta1, beta2 = h.betas
        direction = steprule.rule.sign(beta1 * s.exp_avg + (1 - beta1) * g)
        s.exp_avg = beta2 * s.exp_avg + (1 - beta2) * g
        return p * (1 - h.lr * h.weight_decay) - h.lr * direction


def algorithms() -> dict[str, type[steprule.Optimizer]]:
    """Every algorithm that steprule exports, by name, but for those whose steps evaluate the model."""

    def steps_by_itself(kind: type[steprule.Optimizer]) -> bool:
        return kind.update is not steprule.Optimizer.update

    classes = {name: value for name, value in sorted(vars(steprule).items()) if inspect.isclass(value)}
    return {
        name: kind for name, kind in classes.items() if issubclass(kind, steprule.Optimizer) and steps_by_itself(kind)
    }


def parameters(shapes: Sequence[Shape], dtype: torch.dtype, device: str, tokens: int | None = None) -> list[Tensor]:
    """Parameters of some shapes, with gradients in place.

    Args:
        shapes: one for each parameter.
        dtype: of parameters and gradients.
        device: where they are.
        tokens: makes the gradients sparse, as an embedding's are after so many tokens drawn at random.
    """
    torch.manual_seed(0)
    params = []
    for shape in shapes:
        p = torch.randn(shape, dtype=dtype, device=device).mul_(0.02).requires_grad_()
        if tokens is None:
            p.grad = torch.randn(shape, dtype=dtype, device=device).mul_(0.01)
        else:
            rows = torch.randint(shape[0], (1, tokens), device=device)
            values = torch.randn(tokens, *shape[1:], dtype=dtype, device=device).mul_(0.01)
            p.grad = torch.sparse_coo_tensor(rows, values, shape, check_invariants=True)
        params.append(p)
    return params


def with_zero_gradients(params: list[Tensor]) -> list[Tensor]:
    """The parameters, with gradients as those of embeddings that no token has touched."""
    for p in params:
        if p.grad is not None:
            p.grad.zero_()
    return params


def in_a_bucket(params: list[Tensor]) -> list[Tensor]:
    """The parameters and their gradients as views of one tensor each, behind a single element: few are aligned."""

    def views(tensors: list[Tensor]) -> list[Tensor]:
        flat = torch.cat([tensors[0].new_zeros(1), *(t.detach().flatten() for t in tensors)])
        pieces = flat[1:].split([t.numel() for t in tensors])  # type: ignore[no-untyped-call]
        return [piece.view_as(t) for piece, t in zip(pieces, tensors, strict=True)]

    gradients = views([p.grad for p in params if p.grad is not None])
    found = [p.requires_grad_() for p in views(params)]
    for p, gradient in zip(found, gradients, strict=True):
        p.grad = gradient
    return found


def in_float32(make: Callable[[list[Tensor]], Any]) -> Make:
    """The step of an optimizer over copies of the parameters and their gradients in float32."""

    def made(params: list[Tensor]) -> Step:
        copies = [p.detach().to(torch.float32, copy=True).requires_grad_() for p in params]
        for p, copy in zip(params, copies, strict=True):
            copy.grad = None if p.grad is None else p.grad.to(torch.float32, copy=True)
        step: Step = make(copies).step
        return step

    return made


def in_groups(make: Callable[[Any], Any]) -> Callable[[list[Tensor]], Any]:
    """An optimizer that has each parameter in a group of its own."""
    return lambda params: make([{"params": [p]} for p in params])


def coming_and_going(make: Callable[[list[Tensor]], Any], missing: float = 0.3) -> Callable[[list[Tensor]], Any]:
    """An optimizer whose parameters have gradients at times, as experts have; in the first step all of them."""

    def made(params: list[Tensor]) -> Any:
        draw, gradients = random.Random(0), [p.grad for p in params]
        drawn = [[None if draw.random() < missing else g for g in gradients] for _ in range(50)]
        sets = itertools.chain([gradients], itertools.cycle(drawn))

        def give(*_: Any) -> None:
            for p, gradient in zip(params, next(sets), strict=True):
                p.grad = gradient

        optimizer = make(params)
        optimizer.register_step_pre_hook(give)
        return optimizer

    return made


def stepping(make: Callable[[list[Tensor]], Any]) -> Make:
    """The step of an optimizer that a function makes."""
    return lambda params: make(params).step


def torch_peers(kind: type[torch.optim.Optimizer], **options: Any) -> dict[str, Make]:
    """Each of torch's own implementations of an algorithm, and what torch.compile makes of it, by name."""
    accepted = inspect.signature(kind).parameters
    ways: dict[str, dict[str, Any]] = {way: {way: True} for way in ("fused", "foreach") if way in accepted}
    ways["default"] = {}

    def peer(params: list[Tensor], **way: Any) -> Step:
        return kind(params, **options, **way).step

    peers: dict[str, Make] = {name: partial(peer, **way) for name, way in ways.items()}
    return {**peers, "compile": lambda params: with_torch_compile(peer(params))}


def with_torch_compile(step: Step) -> Step:
    """What torch.compile makes of a step, as if it were the first that it sees: from some number on it gives up."""
    torch.compiler.reset()
    return torch.compile(step)


def clipped(make: Make, norm: float) -> Make:
    """``clip_grad_norm_``, and then the step of another contender."""

    def make_clipped(params: list[Tensor]) -> Step:
        step = make(params)

        def clip_and_step() -> None:
            torch.nn.utils.clip_grad_norm_(params, norm)
            step()

        return clip_and_step

    return make_clipped


def as_many_bytes(params: list[Tensor]) -> Tensor:
    """One float32 tensor of the parameters' size in bytes: torch's arithmetic on it keeps up with any memory."""
    size = sum(p.numel() * p.element_size() for p in params)
    return torch.ones(-(-size // 4), dtype=torch.float32, device=params[0].device)


def in_place(params: list[Tensor]) -> Step:
    """Read and write as many bytes as the parameters hold, in one operation of torch."""
    x = as_many_bytes(params)
    return lambda: x.mul_(-1.0)


def copying(params: list[Tensor]) -> Step:
    """Read as many bytes as the parameters hold, and write as many others: how a GPU's bandwidth is told.

    The bytes are others in each of several turns, so that a GPU's cache does not hold them.
    """
    x = as_many_bytes(params)
    count = min(TURNS, math.ceil(COLD / x.nbytes))
    pairs = itertools.cycle([(torch.empty_like(x), x.clone()) for _ in range(count)])

    def step() -> Tensor:
        y, x = next(pairs)
        return y.copy_(x)

    return step


def works(make: Make, device: str) -> bool:
    """Whether torch has this implementation for a device: some of the fused ones are for few."""
    try:
        make(parameters([(4, 4)], torch.float32, device))()
    except RuntimeError:
        return False
    return True


@dataclass(frozen=True)
class Traffic:
    """What the kernels of one step read and write.

    Attributes:
        bytes: of one step.
        passes: over memory; 1 for a rule that is elementwise.
    """

    bytes: float
    passes: int


def traffic(optimizer: steprule.Optimizer) -> Traffic | None:
    """The memory traffic of an optimizer that has taken a step; None where its Programs do not tell the whole."""
    plan = optimizer._workings.planner.plan
    if plan is None or any(x.sparse or x.program.temporaries for x in plan.launches):
        return None
    moved = [bytes_per_element(launch) * sum(p.numel() for p in launch.params) for launch in plan.launches]
    return Traffic(sum(moved), max(len(launch.program.phases) for launch in plan.launches))
