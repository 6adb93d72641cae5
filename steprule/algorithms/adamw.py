from __future__ import annotations

from typing import Any

from ..optimizer import Optimizer
from ..rule import lerp, sqrt

__all__ = ["AdamW"]


class AdamW(Optimizer):
    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        betas: Any = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        **options: Any,
    ) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay), **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        beta1, beta2 = h.betas
        p = p * (1 - h.lr * h.weight_decay)
        s.exp_avg = lerp(s.exp_avg, g, 1 - beta1)
        s.exp_avg_sq = lerp(s.exp_avg_sq, g * g, 1 - beta2)
        denominator = sqrt(s.exp_avg_sq) / sqrt(1 - beta2**s.step) + h.eps
        return p - h.lr / (1 - beta1**s.step) * s.exp_avg / denominator
