"""What stands beside parameters of 16 bits, as torch operations: its forms, and what one is made of."""

from __future__ import annotations

import torch

from steprule.rule.master import MASTER
from steprule.storage import CORRECTIONS

from .operations import in_parts

__all__ = ["beside", "is_form", "is_master", "joined"]

KINDS: dict[torch.dtype, str] = {getattr(torch, c.dtype): c.name for c in CORRECTIONS.values()}
"""What a correction is called, by its dtype."""


def is_master(name: str) -> bool:
    """Whether it is what stands beside a parameter that goes by a name in its state."""
    return name == MASTER


def is_form(dtype: torch.dtype) -> bool:
    """Whether something of a dtype may stand beside a parameter: a correction, or the weight itself."""
    return dtype in KINDS or dtype.is_floating_point


def joined(param: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
    """A parameter with what stands beside it: float32, laid out as the parameter is.

    A float32 counts where the parameter is its rounding.
    """
    p = param.detach().to(torch.float32)
    kind = KINDS.get(held.dtype)
    if kind is not None:
        found: torch.Tensor = in_parts("joined", kind, [p, held.to(torch.int64)])
        return found
    whole = held.detach().to(torch.float32)
    return torch.where(rounded(whole, param.dtype) == p, whole, p)


def rounded(whole: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What of a float32 a parameter holds."""
    if dtype == torch.bfloat16:
        found: torch.Tensor = in_parts("upper", "16bit", [whole])
        return found
    return whole.to(dtype).to(torch.float32)


def beside(whole: torch.Tensor, param: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What stands beside a parameter that is the rounding of float32 numbers, in a form told by its dtype."""
    if dtype not in KINDS:
        return whole.to(dtype)
    difference = whole.view(torch.int32) - param.detach().to(torch.float32).view(torch.int32)
    bits = torch.iinfo(dtype)
    difference = difference if bits.bits == 16 else torch.round(difference / 2.0 ** (16 - bits.bits))
    return torch.where(whole.isnan(), 0, difference).clamp(bits.min, bits.max).to(dtype)
