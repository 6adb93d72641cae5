"""训练中改变学习率的三种办法，以及新建优化器为什么会丢掉动量。

python examples/articles/changing_rates.py
"""

from __future__ import annotations

import torch
from torch import nn

import steprule as optim
from steprule.schedules import cosine, warmup


def train(optimizer: optim.Optimizer, weight: nn.Parameter, steps: int) -> list[float]:
    """每一步都用同样的损失 w²；返回每一步实际用到的学习率。"""
    rates = []
    for _ in range(steps):
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def by_hand() -> list[float]:
    """直接改 param_groups：状态（动量缓存）保留。"""
    weight = nn.Parameter(torch.ones(3))
    optimizer = optim.SGD([weight], lr=0.1, momentum=0.9)
    rates = train(optimizer, weight, 5)
    for group in optimizer.param_groups:
        group["lr"] *= 0.1  # 只是一个数变了，不会重新编译
    return rates + train(optimizer, weight, 5)


def by_scheduler() -> list[float]:
    """torch 自带的调度器照常使用。"""
    weight = nn.Parameter(torch.ones(3))
    optimizer = optim.SGD([weight], lr=0.1, momentum=0.9)
    scheduler = optim.lr_scheduler.StepLR(optimizer, step_size=5, gamma=0.1)
    rates = []
    for _ in range(10):
        rates += train(optimizer, weight, 1)
        scheduler.step()
    return rates


def by_schedule() -> list[float]:
    """把学习率写成步数的函数：先升后降。它随检查点一起保存，不需要另外调用 scheduler.step()。"""
    weight = nn.Parameter(torch.ones(3))
    optimizer = optim.SGD([weight], lr=0.1 * warmup(2).then(cosine(8)), momentum=0.9)
    return train(optimizer, weight, 10)


def by_a_new_optimizer() -> tuple[float, float]:
    """新建优化器也能换学习率，但动量从零开始：下一步的位移与继续使用原来的优化器不同。"""
    moved = []
    for renew in (False, True):
        weight = nn.Parameter(torch.ones(3))
        optimizer = optim.SGD([weight], lr=0.1, momentum=0.9)
        train(optimizer, weight, 3)
        if renew:
            optimizer = optim.SGD([weight], lr=0.01, momentum=0.9)
        else:
            optimizer.param_groups[0]["lr"] = 0.01
        before = weight.detach().clone()
        train(optimizer, weight, 1)
        moved.append((weight.detach() - before).norm().item())
    return moved[0], moved[1]


def main() -> dict[str, list[float]]:
    found = {"手动修改": by_hand(), "调度器": by_scheduler(), "学习率函数": by_schedule()}
    for title, rates in found.items():
        print(f"{title}：{', '.join(f'{rate:.3g}' for rate in rates)}")
    kept, lost = by_a_new_optimizer()
    print(f"改变学习率后第一步的位移：保留动量 {kept:.4f}，新建优化器 {lost:.4f}")
    return found


if __name__ == "__main__":
    main()
