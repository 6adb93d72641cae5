"""Softmax 回归：从模块、自动求导到参数更新，一步一步看清楚。

`nn.Linear` 的参数在赋值给 self 的时候登记到模块里；反向传播把梯度写进 `p.grad`；优化器读这些梯度，
原地修改同一批参数，所以模型立刻就变了。

    python examples/articles/softmax_regression.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

import steprule as optim


class Net(nn.Module):
    """一层线性变换，输出每一类的得分。"""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        # 不在这里做 softmax：cross_entropy 自己会做，做两次会让梯度变小、学得更慢。
        scores: Tensor = self.linear(x)
        return scores


def gradient_by_hand(net: Net, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """交叉熵对得分的导数是 softmax(得分) 减去 one-hot 标签，再用链式法则得到权重和偏置的梯度。"""
    with torch.no_grad():
        of_scores = (net(x).softmax(1) - one_hot(target, 2)) / len(target)
    return of_scores.T @ x, of_scores.sum(0)


def main() -> tuple[float, float]:
    torch.manual_seed(0)
    net = Net()
    print("登记的参数：", [name for name, _ in net.named_parameters()])
    x = torch.randn(64, 4)
    target = (x.sum(1) > 0).long()

    optimizer = optim.SGD(net, lr=0.5)
    weight, bias = gradient_by_hand(net, x, target)
    loss = cross_entropy(net(x), target)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    assert net.linear.weight.grad is not None
    assert net.linear.bias.grad is not None
    difference = max((net.linear.weight.grad - weight).abs().max(), (net.linear.bias.grad - bias).abs().max()).item()
    print(f"自动求导与手算梯度的最大差别：{difference:.1e}")
    optimizer.step()

    for _ in range(200):
        optimizer.zero_grad()
        loss = cross_entropy(net(x), target)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    accuracy = (net(x).argmax(1) == target).float().mean().item()
    print(f"训练之后：损失 {loss.item():.4f}，正确率 {accuracy:.1%}")
    return difference, accuracy


if __name__ == "__main__":
    main()
