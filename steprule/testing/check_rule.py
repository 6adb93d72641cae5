"""A rule on tensors of many kinds: what its machine code, state and checkpoints must do, whatever it computes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from steprule.optimizer import Optimizer

__all__ = ["check_rule"]

Make = Callable[[list[Tensor]], Optimizer]
Shape = tuple[int, ...]

SHAPES: Sequence[Shape] = ((), (1,), (37,), (0,), (5, 7), (1, 4), (3, 2, 4), (4, 3, 3, 3))
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
STEPS = 4


def check_rule(
    kind: Callable[..., Optimizer],
    *,
    shapes: Sequence[Shape] = SHAPES,
    dtypes: Sequence[torch.dtype] = tuple(TOLERANCE),
    device: torch.device | str = "cpu",
    **options: Any,
) -> None:
    """Try a rule on shapes, dtypes and memory layouts, with gradients that are missing or zero, saved and resumed.

    It takes some seconds. What is tried holds for any rule: compiled code agrees with torch operations, and bits
    with those for another number of threads, of a run that was saved and resumed, and of a parameter that has no
    gradient in some steps with one that takes its own steps alone; where gradients are zero, results are finite.

    Args:
        kind: the optimizer's class, or a function that makes one of parameters.
        shapes: those of the parameters; a rule of matrices, say, is for few.
        dtypes: those of the parameters.
        device: where they are.
        options: arguments of ``kind`` beside the parameters.

    Raises:
        AssertionError: something failed; a line for each says what, and for which parameters.

    Example:
        >>> from steprule import Optimizer
        >>> from steprule.rule import norm
        >>> from steprule.testing import check_rule
        >>> class Normalized(Optimizer):
        ...     def __init__(self, params, lr=0.1, **options):
        ...         super().__init__(params, dict(lr=lr), **options)
        ...     def update(self, p, g, s, h):
        ...         return p - h.lr * g / norm(g)
        >>> check_rule(Normalized, shapes=[(3, 4)])
        Traceback (most recent call last):
        AssertionError: Normalized: 4 checks failed
        zero gradients leave (3, 4) of torch.float64 not finite
        zero gradients leave (3, 4) of torch.float32 not finite
        zero gradients leave (3, 4) of torch.bfloat16 not finite
        zero gradients leave (3, 4) of torch.float16 not finite
    """

    def make(params: list[Tensor], **more: Any) -> Optimizer:
        return kind(params, **options, **more)

    failed: list[str] = []
    refused: dict[str, list[str]] = {}
    for dtype in dtypes:
        for shape in shapes:
            for where, start in layouts(shape, dtype, device):
                failed += compiled_and_not(make, start, f"{where} of {dtype}", refused)
            failed += zeros(make, parameter(shape, dtype, device, 0), f"{shape} of {dtype}")
        starts = [parameter(shape, dtype, device, seed) for seed, shape in enumerate(shapes)]
        failed += check_together(make, starts, f"of {dtype}")
    failed = [*(refusal(whose, reason) for reason, whose in refused.items()), *failed]
    if failed:
        name = getattr(kind, "__name__", str(kind))
        raise AssertionError("\n".join([f"{name}: {len(failed)} check{'s' * (len(failed) > 1)} failed", *failed]))


def refusal(whose: Sequence[str], reason: str) -> str:
    """One line for all parameters that are refused for one reason."""
    rest = f" and {len(whose) - 3} others are" if len(whose) > 3 else " are" if len(whose) > 1 else " is"
    return f"{', '.join(whose[:3])}{rest} refused: {reason}"


def parameter(shape: Shape, dtype: torch.dtype, device: torch.device | str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def layouts(shape: Shape, dtype: torch.dtype, device: torch.device | str) -> Iterator[tuple[str, Tensor]]:
    """A parameter as it may lie in memory, each with what to call it."""
    p = parameter(shape, dtype, device, 0)
    yield f"{shape}", p
    if len(shape) > 1:
        yield f"{shape} transposed in memory", p.transpose(0, -1).contiguous().transpose(0, -1)
        wide = p.new_zeros(*shape[:-1], shape[-1] + 3)
        wide[..., 1:-2] = p
        yield f"{shape} with gaps in memory", wide[..., 1:-2]


def copied(start: Tensor) -> Tensor:
    """A copy that lies in memory as its model."""
    if start.is_contiguous() or not start.numel():
        return start.clone().requires_grad_()
    size = 1 + sum((n - 1) * s for n, s in zip(start.shape, start.stride(), strict=True))
    copy_of_it = start.new_zeros(size).as_strided(start.shape, start.stride())
    return copy_of_it.copy_(start).requires_grad_()


def give(params: Sequence[Tensor], step: int, present: Callable[[int, int], bool] = lambda i, step: True) -> None:
    """Gradients of a step, the same for everybody."""
    for i, p in enumerate(params):
        p.grad = parameter(tuple(p.shape), p.dtype, p.device, 100 * (step + 1) + i) if present(i, step) else None


def arrays(optimizer: Optimizer, params: Sequence[Tensor]) -> list[Tensor]:
    """Parameters and their states, in order."""
    found = [p.detach() for p in params]
    for p in params:
        found += [torch.as_tensor(value).detach() for _, value in sorted(optimizer.state.get(p, {}).items())]
    return found


def taken(make: Callable[..., Optimizer], start: Tensor, **more: Any) -> tuple[list[Tensor], str]:
    """What some steps make of a parameter; or nothing, and why it is refused."""
    params = [copied(start)]
    try:
        optimizer = make(params, **more)
        for step in range(STEPS):
            give(params, step)
            optimizer.step()
    except (RuntimeError, ValueError, TypeError) as error:
        return [], f"{type(error).__name__}: {error}"
    return arrays(optimizer, params), ""


def compiled_and_not(
    make: Callable[..., Optimizer], start: Tensor, called: str, refused_by: dict[str, list[str]]
) -> Iterator[str]:
    """Compiled code against torch operations; what both refuse is noted by reason."""
    ours, refused = taken(make, start)
    reference, refused_there = taken(make, start, backend="eager")
    if refused or refused_there:
        if refused and refused_there:
            refused_by.setdefault(refused, []).append(called)
        else:
            by = "compiled code" if refused else "torch operations"
            yield f"{called} is refused by {by} alone: {refused or refused_there}"
        return
    if len(ours) != len(reference):
        yield f"{called}: compiled code and torch operations keep another state"
        return
    tolerance = TOLERANCE.get(start.dtype, 1e-3)
    for a, b in zip(ours, reference, strict=True):
        if not torch.allclose(a.double(), b.to(a.device).double(), rtol=tolerance, atol=tolerance, equal_nan=True):
            far = float((a.double() - b.to(a.device).double()).abs().max())
            yield f"{called}: compiled code and torch operations differ by {far:.2g} after {STEPS} steps"
            return


def zeros(make: Callable[..., Optimizer], start: Tensor, called: str) -> Iterator[str]:
    """Results where gradients are zero."""
    p = copied(start)
    try:
        optimizer = make([p])
        for _ in range(2):
            p.grad = torch.zeros_like(p)
            optimizer.step()
    except (RuntimeError, ValueError, TypeError):
        return  # which was told already
    if not all(bool(a.isfinite().all()) for a in arrays(optimizer, [p])):
        yield f"zero gradients leave {called} not finite"


def check_together(make: Callable[..., Optimizer], starts: Sequence[Tensor], called: str) -> Iterator[str]:
    """Several parameters: threads, checkpoints, gradients that are missing."""

    def run(threads: int = 1, resumed: bool = False) -> list[Tensor]:
        before = torch.get_num_threads()
        params = list(map(copied, starts))
        optimizer = make(params)
        torch.set_num_threads(threads)
        try:
            for step in range(STEPS):
                if resumed and step == STEPS // 2:
                    saved = copy.deepcopy(optimizer.state_dict())
                    params = [copied(p.detach()) for p in params]
                    optimizer = make(params)
                    optimizer.load_state_dict(saved)
                give(params, step, lambda i, step: (i + step) % 3 > 0)
                optimizer.step()
        finally:
            torch.set_num_threads(before)
        return arrays(optimizer, params)

    try:
        expected = run()
    except (RuntimeError, ValueError, TypeError):
        return  # which was told already
    if not same(run(threads=3), expected):
        yield f"parameters {called} have other bits with three threads than with one"
    if not same(run(resumed=True), expected):
        yield f"parameters {called} have other bits when the run is saved and resumed"
    for i, start in enumerate(starts):
        params = [copied(start), torch.zeros_like(start).requires_grad_()]
        optimizer = make(params)
        give(params, 0, lambda i, step: i == 0)
        optimizer.step()
        if bool(params[1].detach().any()):
            yield f"parameter {i} {called}, {tuple(start.shape)}, changes in a step in which it has no gradient"


def same(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    """Whether tensors have the same bits, NaN being equal to NaN."""
    if len(ours) != len(theirs):
        return False
    return all(torch.equal(a.nan_to_num(7e7), b.nan_to_num(7e7)) for a, b in zip(ours, theirs, strict=True))
