"""Gradients as a step leaves them that has divided them by GradScaler's scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

__all__ = ["leave_unscaled"]


def leave_unscaled(
    params: Sequence[torch.Tensor],
    given: Sequence[torch.Tensor],
    used: Sequence[torch.Tensor],
    inputs: Mapping[str, Any],
) -> None:
    """Let gradients be as the passes left the copies of them that they worked on; most work on no copy.

    Args:
        params: the parameters.
        given: their gradients.
        used: the tensors that the passes read and wrote; for a sparse gradient the values of its rows, or itself.
        inputs: ``grad_scale``, and ``found_inf`` where only the kernels know whether the step was skipped.
    """
    for p, own, tensor in zip(params, given, used, strict=True):
        if own.layout == torch.sparse_coo:
            leave_rows(own, tensor, inputs)
        elif tensor is own or own._is_zerotensor():
            continue
        elif 0 in own.stride() and own.numel() > 1:
            p.grad = tensor  # one number that stands for many can't be written as many
        else:
            own.copy_(tensor)


def leave_rows(own: torch.Tensor, used: torch.Tensor, inputs: Mapping[str, Any]) -> None:
    """The same of a sparse gradient; rows that it holds several times were added up only for the passes."""
    values = own._values()
    if own.is_coalesced() and used is not own:
        if used.data_ptr() != values.data_ptr():
            values.copy_(used)
        return
    scale = inputs["grad_scale"].to(values.device)
    found = inputs.get("found_inf")
    values.div_(scale if found is None else torch.where(found.to(values.device) != 0, torch.ones_like(scale), scale))
