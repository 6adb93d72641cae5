"""An optimizer of your own: SGD with an L1 and an L2 penalty (the elastic net), as one rule.

Run it: it finds the three numbers in which a noisy signal is sparse, and sets the others to nearly zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from steprule import Optimizer
from steprule.rule import sign


class ElasticSGD(Optimizer):
    r"""Gradient descent on a loss with the elastic net penalty of Zou and Hastie (2005).

    .. math:: p \leftarrow p - \eta \, (g + \lambda_1 \operatorname{sign}(p) + \lambda_2 p)

    Args:
        params: what to optimize, in any form that :class:`steprule.Optimizer` takes.
        lr: learning rate, :math:`\eta`.
        l1: L1 penalty, :math:`\lambda_1`: pulls small numbers to zero.
        l2: L2 penalty, :math:`\lambda_2`: keeps large numbers small.
    """

    def __init__(self, params: Iterable[Any] | nn.Module, lr: float, l1: float = 0.0, l2: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "l1": l1, "l2": l2})

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        return p - h.lr * (g + h.l1 * sign(p) + h.l2 * p)


def sparse_regression(l1: float, l2: float, steps: int = 400) -> tuple[Tensor, Tensor]:
    """Learn 20 coefficients, of which three are not zero, from 100 noisy examples: (learned, true)."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(100, 20, generator=generator)
    true = torch.zeros(20)
    true[[2, 7, 11]] = torch.tensor([3.0, -2.0, 1.5])
    targets = inputs @ true + 0.5 * torch.randn(100, generator=generator)

    learned = torch.zeros(20, requires_grad=True)
    optimizer = ElasticSGD([learned], lr=0.02, l1=l1, l2=l2)
    for _ in range(steps):
        optimizer.zero_grad()
        (inputs @ learned - targets).square().mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return learned.detach(), true


def main() -> None:
    """Print the coefficients that are learned without and with the penalties."""
    (plain, true), (elastic, _) = sparse_regression(0.0, 0.0), sparse_regression(0.2, 0.01)
    print("  true  plain  elastic")
    for row in zip(true, plain, elastic, strict=True):
        print("{:6.2f} {:6.2f} {:8.2f}".format(*row))


if __name__ == "__main__":
    main()
