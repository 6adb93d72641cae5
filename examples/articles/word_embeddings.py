"""词向量：用一个词预测下一个词。

语料是 Python 自带的英文帮助文本，不需要下载。`nn.Embedding(sparse=True)` 的梯度只含出现过的词，
优化器也只更新这些行：词表再大，一步的代价也只与这一批里的词有关。

    python examples/articles/word_embeddings.py
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

import steprule as optim

VOCABULARY, DIMENSIONS, BATCH = 300, 32, 512


def corpus() -> tuple[list[str], Tensor]:
    """最常见的词，以及正文中相邻两个词都在词表里的 (词, 下一个词)。"""
    words = re.findall(r"[a-z]{2,}", " ".join(topics.values()).lower())
    known = [word for word, _ in Counter(words).most_common(VOCABULARY)]
    place = {word: index for index, word in enumerate(known)}
    pairs = [(place[a], place[b]) for a, b in pairwise(words) if a in place and b in place]
    return known, torch.tensor(pairs)


class NextWord(nn.Module):
    """词向量，再加一层线性变换，得到下一个词的得分。"""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, DIMENSIONS, sparse=True)
        self.output = nn.Linear(DIMENSIONS, VOCABULARY)

    def forward(self, words: Tensor) -> Tensor:
        scores: Tensor = self.output(self.embedding(words))
        return scores


def nearest(model: NextWord, known: list[str], word: str, count: int = 4) -> list[str]:
    """词向量夹角最小的几个词。"""
    table = model.embedding.weight.detach()
    likeness = cosine_similarity(table[known.index(word)].unsqueeze(0), table)
    return [known[index] for index in likeness.topk(count + 1).indices.tolist()[1:]]


def main(steps: int = 300) -> tuple[float, float]:
    torch.manual_seed(0)
    known, pairs = corpus()
    model = NextWord()
    # 两个参数组：稀疏的词向量用大一些的学习率。
    optimizer = optim.Adagrad(model, lr=0.1, overrides={"embedding.*": {"lr": 0.3}})
    print(optimizer)
    losses = []
    for step in range(steps):
        batch = pairs[torch.randint(len(pairs), (BATCH,))]
        optimizer.zero_grad()
        loss = cross_entropy(model(batch[:, 0]), batch[:, 1])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
        if step % 100 == 0:
            print(f"第 {step} 步，损失 {loss.item():.3f}")
    last = sum(losses[-20:]) / 20
    print(f"损失从 {losses[0]:.3f} 降到 {last:.3f}")
    for word in ("the", "method", "class"):
        print(f"与 {word} 最接近的词：{', '.join(nearest(model, known, word))}")
    return losses[0], last


if __name__ == "__main__":
    main()
