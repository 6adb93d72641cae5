"""Which parameters do not train, and why."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from .applying import update_all
from .planning import called
from .trial import trial
from .workings import workings

if TYPE_CHECKING:
    from steprule.optimizer import Optimizer

__all__ = ["known_idle", "untrained"]

NO_GRADIENT = "no gradient: backward does not reach it"


def known_idle(optimizer: Optimizer) -> dict[str, str]:
    """Name -> reason, as far as it is known without a look at any number on a device."""
    return {name: reason for name, _, _, reason in idle(optimizer) if reason}


def idle(optimizer: Optimizer) -> Iterable[tuple[str, torch.Tensor, dict[str, Any], str]]:
    """Every parameter with its name and group, and why it does not train; nothing, where that is not known yet."""
    works = workings(optimizer)
    works.members.keep_names(optimizer.param_groups)
    for index, group in enumerate(optimizer.param_groups):
        for position, p in enumerate(group["params"]):
            reason = ""
            if not p.requires_grad:
                reason = "frozen: requires_grad is False"
            elif p.grad is None and not works.planner.beside:  # a step in backward drops them
                reason = NO_GRADIENT
            elif isinstance(group.get("lr"), float | int) and group["lr"] == 0:
                reason = "its rate lr is 0"
            yield called(group, index, position).strip("'"), p, group, reason


def untrained(optimizer: Optimizer) -> dict[str, str]:
    """Which parameters do not train, and why: to be called after ``backward``.

    Where no reason is at hand, a step is tried and taken back, which needs room for a second copy of parameters and
    state and leaves everything as it was, to the bit.

    Returns:
        Name -> reason: it is frozen, has no gradient, its rate is 0, it or its gradient is not finite, its gradient is
        zero, or the update is lost in rounding (in bfloat16 a step of less than 1/256 of the parameter is). Empty where
        every parameter moves.

    Example:
        >>> import torch, steprule
        >>> model = torch.nn.ModuleDict(dict(used=torch.nn.Linear(2, 1), spare=torch.nn.Linear(2, 1)))
        >>> optimizer = steprule.SGD(model, lr=0.1)
        >>> _ = optimizer.freeze("used.bias")
        >>> model["used"](torch.ones(1, 2)).sum().backward()
        >>> for name, reason in optimizer.untrained().items():
        ...     print(f"{name}: {reason}")
        used.bias: frozen: requires_grad is False
        spare.weight: no gradient: backward does not reach it
        spare.bias: no gradient: backward does not reach it
    """
    found: dict[str, str] = {}
    open_ones: list[tuple[str, torch.Tensor, torch.Tensor]] = []
    for name, p, _, reason in idle(optimizer):
        said = reason or not_finite(p)
        if said or p.grad is None:
            found[name] = said
        else:
            open_ones.append((name, p, p.detach().clone()))
    if open_ones and workings(optimizer).has_rule:
        with trial(optimizer):
            optimizer.nonfinite = "propagate"
            update_all(optimizer)
            unmoved = [(name, p) for name, p, before in open_ones if torch.equal(p.detach(), before)]
        found |= {name: why_unmoved(p) for name, p in unmoved}
    found = {name: reason for name, reason in found.items() if reason}
    order = [name for name, *_ in idle(optimizer)]
    return {name: found[name] for name in order if name in found}


def not_finite(p: torch.Tensor) -> str:
    """Whether a parameter or its gradient is NaN or infinite, in words."""
    if not bool(p.detach().isfinite().all()):
        return "it is not finite: NaN or infinity stands in it"
    grad = p.grad
    if grad is None:
        return ""
    values = grad.coalesce().values() if grad.is_sparse else grad
    return "" if bool(values.isfinite().all()) else "its gradient is not finite: NaN or infinity"


def why_unmoved(p: torch.Tensor) -> str:
    """Why a step leaves a parameter with a finite gradient as it is."""
    grad = p.grad
    assert grad is not None
    if not p.numel():
        return "it is empty"
    if not bool((grad.coalesce().values() if grad.is_sparse else grad).any()):
        return "its gradient is zero"
    dtype = str(p.dtype).removeprefix("torch.")
    unit = torch.finfo(p.dtype).eps / 2
    return (
        f"its update is lost in rounding: {dtype} leaves a step of less than {unit:.1g} of the parameter out; take a "
        "larger rate, or a parameter of more bits"
    )
