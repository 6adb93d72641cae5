"""Parameters of FullyShardedDataParallel, of which nobody can tell where one ends and which shape it has."""

from __future__ import annotations

import torch

from steprule.rule.program import Program

__all__ = ["is_flat", "refuse_flat"]


def is_flat(param: torch.Tensor) -> bool:
    """Whether a parameter is a flat one of FSDP, or a piece of one (``use_orig_params=True``)."""
    return getattr(param, "_is_flat_param", False) or getattr(param, "_fsdp_flattened", False)


def refuse_flat(param: torch.Tensor, program: Program, name: str) -> None:
    """Refuse a rule that has to know more of a parameter than its elements.

    Raises:
        RuntimeError: naming the parameter.
    """
    if not is_flat(param):
        return
    needed = []
    if program.reductions or program.by_lines:
        needed.append("reduces over parameters")
    if program.temporaries:
        needed.append("works on whole matrices")
    if program.uses_size or program.ndim is not None:
        needed.append("asks for their shape")
    if "origin" in program.inputs:
        needed.append("draws random numbers that belong to places in them")
    if needed:
        raise RuntimeError(
            f"{program.name}{' with clip_norm' * ('total_norm' in dict(program.tracked))} {', and '.join(needed)}, but "
            f"parameter {name} is a flat one of FullyShardedDataParallel, cut up among the processes without a trace "
            "of where and of what shape it was; shard the model with torch.distributed.fsdp.fully_shard instead"
        )
