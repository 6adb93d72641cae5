"""手写 SGD：L1、L2 两种正则，动量与 Nesterov。

很多教程通过重写 `torch.optim.SGD` 来加 L1 惩罚：继承 Optimizer，再写一个逐参数的循环。
在 steprule 里，更新公式写一遍就够了：`update` 只运行一次，它的计算过程被记录下来，编译成遍历一次内存的代码。

    python examples/articles/sgd_by_hand.py
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from steprule import Optimizer
from steprule.rule import sign, where


class SGD(Optimizer):
    """带两种权重惩罚的随机梯度下降。

    Args:
        params: 要优化的参数：张量、(名字, 张量) 对、参数组字典的序列，或者整个模型。
        lr: 学习率。
        momentum: 动量系数，0 表示不用动量。
        weight_decay1: L1 惩罚的强度，把不重要的权重拉到零附近。
        weight_decay2: L2 惩罚的强度，也就是通常说的权重衰减。
        nesterov: 是否使用 Nesterov 动量，这时动量必须大于 0。
    """

    def __init__(
        self,
        params: Iterable[Any] | nn.Module,
        lr: float,
        momentum: float = 0.0,
        weight_decay1: float = 0.0,
        weight_decay2: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        if nesterov and momentum <= 0:
            raise ValueError("nesterov=True 需要 momentum > 0")
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov}
        super().__init__(params, {**defaults, "weight_decay1": weight_decay1, "weight_decay2": weight_decay2})

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        # 数值可以随时改；`if h.xxx` 只问“是不是零”，答案变了才会重新编译。
        if h.weight_decay1:
            g = g + h.weight_decay1 * sign(p)
        if h.weight_decay2:
            g = g + h.weight_decay2 * p
        if h.momentum:
            # 写 s.名字 就有了一个状态，它会和优化器一起保存、恢复；第一次更新时缓存等于梯度本身。
            s.momentum_buffer = where(s.is_new, g, h.momentum * s.momentum_buffer + g)
            g = g + h.momentum * s.momentum_buffer if h.nesterov else s.momentum_buffer
        return p - h.lr * g


def by_loop(start: Tensor, gradients: list[Tensor], lr: float, momentum: float, l1: float, l2: float) -> Tensor:
    """同样的公式，用普通的张量运算写成循环，作为对照。"""
    weight, buffer = start.clone(), torch.zeros_like(start)
    for index, gradient in enumerate(gradients):
        gradient = gradient + l1 * weight.sign() + l2 * weight
        buffer = gradient if index == 0 else momentum * buffer + gradient
        weight = weight - lr * buffer
    return weight


def main() -> float:
    torch.manual_seed(0)
    start = torch.randn(5, dtype=torch.float64)
    gradients = [torch.randn(5, dtype=torch.float64) for _ in range(20)]

    weight = start.clone().requires_grad_()
    optimizer = SGD([weight], lr=0.1, momentum=0.9, weight_decay1=0.01, weight_decay2=0.1)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()

    expected = by_loop(start, gradients, lr=0.1, momentum=0.9, l1=0.01, l2=0.1)
    difference = (weight.detach() - expected).abs().max().item()
    print(optimizer)
    print(f"与逐步循环的最大差别：{difference:.1e}")
    return difference


if __name__ == "__main__":
    main()
