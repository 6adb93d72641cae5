"""断点续训：从第 10 步接着训练，结果与从未中断的训练逐位相同。

教程里通常只保存优化器的 state_dict。要真正接着训练，模型的权重、训练到第几步、随机数的状态也要一起保存：
`steprule.save` 把它们写进一个文件，要么整个写成，要么什么也不改变。

    python examples/articles/resume_from_step_10.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import steprule
from steprule.schedules import cosine

STEPS = 30


def start() -> tuple[nn.Module, steprule.Optimizer]:
    """同样的种子，同样的起点。"""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.1), nn.ReLU(), nn.Linear(16, 3))
    return net, steprule.SGD(net, lr=0.1 * cosine(STEPS), momentum=0.9)


def train(net: nn.Module, optimizer: steprule.Optimizer, until: int) -> None:
    """一直训练到第 `until` 步；走了多少步，优化器自己知道。"""
    while optimizer.steps_taken < until:
        x = torch.randn(32, 4)
        optimizer.zero_grad()
        cross_entropy(net(x), x[:, :3].argmax(1)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def uninterrupted() -> list[Tensor]:
    net, optimizer = start()
    train(net, optimizer, STEPS)
    return [p.detach() for p in net.parameters()]


def interrupted(path: Path) -> list[Tensor]:
    net, optimizer = start()
    print("训练之前的 state：", optimizer.state_dict()["state"])
    train(net, optimizer, 10)
    print("10 步之后，每个参数的状态：", {key: list(own) for key, own in optimizer.state_dict()["state"].items()})
    steprule.save(path, optimizer, net, rng=True, note="第 10 步")

    net, optimizer = start()  # 就像程序重新启动
    extra = steprule.load(path, optimizer, net)
    print(f"从检查点继续（{extra['note']}）：已经走了 {optimizer.steps_taken} 步")
    train(net, optimizer, STEPS)
    return [p.detach() for p in net.parameters()]


def main() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        pairs = zip(uninterrupted(), interrupted(Path(folder) / "step10.safetensors"), strict=True)
        same = all(torch.equal(a, b) for a, b in pairs)
    print("与从未中断的训练逐位相同：", same)
    return same


if __name__ == "__main__":
    main()
