"""参数组：按模块、按层、按名字给不同的学习率。

微调时，前面的特征提取部分学得慢一些，后面新加的分类器学得快一些。下面三种写法得到的都是普通的参数组，
可以一直用 `optimizer.param_groups` 查看和修改。

    python examples/articles/parameter_groups.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import steprule as optim


class LeNet(nn.Module):
    """features 是卷积部分，classifier 是三个全连接层。"""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2)), *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2))
        )
        self.classifier = nn.Sequential(
            *(nn.Linear(16 * 5 * 5, 120), nn.ReLU()), *(nn.Linear(120, 84), nn.ReLU()), nn.Linear(84, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.features(x).flatten(1))
        return out


def by_module(net: LeNet) -> optim.Optimizer:
    """按模块：与 torch.optim 的写法完全一样，没有写 lr 的组用默认值。"""
    return optim.SGD(
        [
            {"params": net.features.parameters()},
            {"params": net.classifier.parameters(), "lr": 1e-2},
        ],
        lr=1e-5,
    )


def by_layer(net: LeNet) -> optim.Optimizer:
    """按层：用 id 挑出两个全连接层的参数，其余的是另一组。

    `net.classifier[2]` 是第二个全连接层：下标 1 是 ReLU，它没有参数。
    """
    special = nn.ModuleList([net.classifier[0], net.classifier[2]])
    special_ids = set(map(id, special.parameters()))
    base = [p for p in net.parameters() if id(p) not in special_ids]
    return optim.SGD([{"params": base}, {"params": special.parameters(), "lr": 0.01}], lr=0.001)


def by_name(net: LeNet) -> optim.Optimizer:
    """按名字：把模型本身交给优化器，overrides 里写选择器。后面的优先，逐项覆盖。

    选择器可以是通配符、正则表达式、模块的类或者函数；写错了会报错，并给出最接近的名字。
    """
    return optim.SGD(
        net,
        lr=0.001,
        momentum=0.9,
        weight_decay=1e-4,
        overrides={
            "*.bias": {"weight_decay": 0.0},  # 偏置不做正则
            "classifier.*": {"lr": optim.scale(10)},  # 分类器的学习率是默认值的十倍
            nn.Conv2d: {"momentum": 0.5},
        },
    )


def main() -> list[optim.Optimizer]:
    torch.manual_seed(0)
    net = LeNet()
    made = [by_module(net), by_layer(net), by_name(net)]
    for title, optimizer in zip(("按模块", "按层", "按名字"), made, strict=True):
        print(f"—— {title} ——")
        print(optimizer)
    optimizer = made[-1]
    for step in range(3):  # 训练的步骤：清空梯度、前向传播、计算损失、反向传播、更新参数
        optimizer.zero_grad()
        loss = net(torch.randn(1, 3, 32, 32)).square().mean()
        loss.backward()
        optimizer.step()
        print(f"第 {step + 1} 步，损失 {loss.item():.4f}")
    return made


if __name__ == "__main__":
    main()
