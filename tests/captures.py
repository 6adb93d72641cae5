"""CUDA graphs where there is no CUDA."""

from __future__ import annotations

import pytest

from steprule.kernels import upload
from steprule.kernels.gpu import device_table, triton


def as_if_capturing(monkeypatch: pytest.MonkeyPatch, capturing: bool = True) -> None:
    """Let everything that asks whether the current stream records a graph hear this answer."""
    for module in (triton, device_table, upload):
        monkeypatch.setattr(module, "capturing", lambda device: capturing)
