"""What a step in backward is not for, each in a sentence, before anything has changed."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from steprule.distributed.flat import is_flat
from steprule.distributed.shares import share_of
from steprule.kernels.fake import is_fake
from steprule.rule.program import OF_ITS_OWN, Program

from .evaluation import refuse_evaluation
from .planning import called
from .workings import workings

if TYPE_CHECKING:
    from steprule.optimizer import Optimizer

__all__ = ["live", "refuse_model", "refuse_optimizer", "refuse_parts", "refuse_program", "refuse_scaler", "refuse_step"]

PLAIN = "take plain steps instead"
SCALED = (
    "a step in backward does not go together with GradScaler: gradients are still scaled while backward runs, and "
    f"nobody knows yet whether all are finite. Train in bfloat16 without a scaler, or {PLAIN}"
)


def refuse_optimizer(optimizer: Optimizer) -> None:
    """Refuse what needs all gradients at once, or backward more than once.

    Raises:
        RuntimeError: naming it.
    """
    works = workings(optimizer)
    name = type(optimizer).__name__
    if not works.has_rule:
        raise RuntimeError(
            f"{name} has no update rule: it works on all gradients at once, which a step in backward never has"
        )
    groups = optimizer.param_groups
    if any(map(works.roles.ascending, groups)):
        raise RuntimeError(
            f"a modifier of this {name} takes gradients at two points, such as SAM: a step in backward has those of "
            f"one; {PLAIN}"
        )
    for index, group in enumerate(groups):
        if group["clip_norm"]:
            raise RuntimeError(
                f"clip_norm={group['clip_norm']} of group {index} needs the norm of all gradients, which is known only "
                f"after backward; set it to None (modifiers such as AdaptiveClip go by one parameter), or {PLAIN}"
            )
        if group["differentiable"]:
            raise RuntimeError(f"differentiable=True of group {index} does not go together with a step in backward")
    if optimizer.nonfinite != "propagate":
        raise RuntimeError(
            f"nonfinite={optimizer.nonfinite!r} has to see all gradients before anything changes, and a step in "
            f"backward has them one after the other; set optimizer.nonfinite = 'propagate', or {PLAIN}"
        )
    if works.tracked:
        raise RuntimeError(
            f"{', '.join(works.tracked)} can't be tracked in a step in backward; call optimizer.track() without "
            f"names, or {PLAIN}"
        )
    if works.evaluates:
        refuse_evaluation()


def refuse_step(optimizer: Optimizer) -> None:
    """Refuse a class with a step of its own, around which a step in backward would go.

    Raises:
        RuntimeError: naming the class.
    """
    if getattr(type(optimizer).step, "own", False):
        raise RuntimeError(
            f"{type(optimizer).__name__} has a step() of its own, which a step in backward would leave out; {PLAIN}"
        )


def refuse_program(program: Program, name: str) -> None:
    """Refuse a rule that has to know more than one parameter and its gradient.

    Args:
        program: the rule.
        name: what the parameter is called.

    Raises:
        RuntimeError: naming what it needs.
    """
    needed = []
    if any(r.scope == "all" for r in program.reductions):
        needed.append('reduces over all parameters (scope="all")')
    if program.shared or any(slot.scope == "all" for slot in program.reduced_slots):
        needed.append('has a number of the whole optimizer (scope="all")')
    given = [*(key for key in program.inputs if key not in OF_ITS_OWN), *(key for key, _ in program.given)]
    if given:
        needed.append(f"reads {', '.join(given)}, which step() is given")
    if needed:
        raise RuntimeError(
            f"the rule of {program.name} {', and '.join(needed)}: a step in backward over parameter {name} has that "
            f"parameter alone; {PLAIN}"
        )


def refuse_parts(groups: Iterable[Mapping[str, Any]]) -> None:
    """Refuse parameters of which this process holds a part, and those without values.

    Raises:
        RuntimeError: naming the parameter.
    """
    for index, group in enumerate(groups):
        for position, p in enumerate(group["params"]):
            name = called(group, index, position)
            if is_flat(p) or share_of(p) is not None:
                raise RuntimeError(
                    f"parameter {name} is sharded (a DTensor, fully_shard or FullyShardedDataParallel): its gradient "
                    f"is exchanged between processes, and a step in backward does not follow that; {PLAIN}"
                )
            if is_fake(p, name):
                raise RuntimeError(f"parameter {name} is a FakeTensor: a step in backward has nothing to free; {PLAIN}")


def refuse_model(model: nn.Module, groups: Iterable[Mapping[str, Any]]) -> None:
    """Refuse a model that has not all of the optimizer's parameters, or whose gradients processes add up.

    Raises:
        TypeError: it is no module.
        ValueError: naming the parameters that it does not have.
        RuntimeError: DistributedDataParallel holds it.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"step_in_backward() takes the module that is trained, got {type(model).__name__}")
    own = {id(p) for p in model.parameters()}
    strangers, params = [], []
    for index, group in enumerate(groups):
        params += group["params"]
        strangers += [called(group, index, i) for i, p in enumerate(group["params"]) if id(p) not in own]
    if strangers:
        raise ValueError(
            f"the optimizer trains parameters that {type(model).__name__} does not have: {', '.join(strangers[:6])}"
            f"{' ...' * (len(strangers) > 6)}; give the module that has all of them"
        )
    reduced = {id(p) for m in model.modules() if isinstance(m, DistributedDataParallel) for p in m.parameters()}
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        reduced |= {id(p) for m in live(DistributedDataParallel) for p in m.parameters()}
    if any(id(p) in reduced for p in params):
        raise RuntimeError(
            "DistributedDataParallel adds up gradients over processes after backward has completed them here: a step "
            f"in backward would take each before; {PLAIN}"
        )


def refuse_scaler(optimizer: Optimizer) -> None:
    """Refuse to begin while a GradScaler is in use.

    Raises:
        RuntimeError: saying what to do.
    """
    used = [scaler for scaler in live(torch.amp.GradScaler) if scaler._enabled and scaler._scale is not None]
    if used or "grad_scale" in vars(optimizer) or "found_inf" in vars(optimizer):
        raise RuntimeError(SCALED)


def live(kind: type) -> list[Any]:
    """All objects of a class that there are; an object refers to its class."""
    kinds = [kind]
    for found in kinds:
        kinds += found.__subclasses__()
    return [found for found in gc.get_referrers(*kinds) if issubclass(type(found), kind)]
