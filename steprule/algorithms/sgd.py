from __future__ import annotations

from typing import Any

from ..optimizer import Optimizer
from ..rule import where

__all__ = ["SGD"]


class SGD(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        **options: Any,
    ) -> None:
        defaults = dict(lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay, nesterov=nesterov)
        super().__init__(params, defaults, **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        if h.weight_decay:
            g = g + h.weight_decay * p
        if h.momentum:
            s.momentum_buffer = where(s.is_new, g, h.momentum * s.momentum_buffer + (1 - h.dampening) * g)
            g = g + h.momentum * s.momentum_buffer if h.nesterov else s.momentum_buffer
        return p - h.lr * g
