"""What is made on the host and read on a device, on its way there."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch

__all__ = ["capturing", "upload"]


def capturing(device: torch.device) -> bool:
    """Whether the current stream records a CUDA graph instead of running."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def upload(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """A copy on the device, on its way when this returns.

    Raises:
        RuntimeError: while a CUDA graph is captured: its replays would copy from memory that is gone.
    """
    if capturing(device):
        raise RuntimeError(
            "something changed since the last step that can't be captured in a CUDA graph: take a step before the "
            "capture, with the same parameters, gradients, options and kinds of hyperparameters"
        )
    tensor = torch.from_numpy(array)
    if device.type != "cuda" or not tensor.numel():
        return tensor.to(device, copy=True)
    # torch gives pinned memory out again only when the copies from it are done, so nothing has to wait for them
    return tensor.pin_memory().to(device, non_blocking=True)
