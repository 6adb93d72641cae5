"""A transformer of a few hundred thousand parameters that reads bytes, and the licences of Python to read."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

WIDTH, HEADS, DEPTH, LENGTH, BATCH = 64, 4, 2, 64, 8


class Block(nn.Module):
    """Attention and a layer of its own, each behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.rise, self.fall = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        # of heads there may be only some here
        query, key, value = (
            part(y).unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        seen = scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        rest: Tensor = self.fall(torch.relu(self.rise(self.second(x))).square())
        return x + rest


class Transformer(nn.Module):
    """Bytes to what follows each."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, WIDTH)
        self.places = nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 256, bias=False)

    def forward(self, text: Tensor) -> Tensor:
        x = self.embedding(text) + self.places(torch.arange(text.shape[1], device=text.device))
        for block in self.blocks:
            x = block(x)
        found: Tensor = self.head(self.norm(x))
        return found

    def loss(self, text: Tensor, following: Tensor) -> Tensor:
        """The mean cross-entropy, in nats a byte."""
        return cross_entropy(self(text).flatten(0, 1), following.flatten())


def licences() -> Tensor:
    """Texts that every Python has, as bytes."""
    printer: Any = builtins
    parts = []
    for name in ("copyright", "credits", "license"):
        found = getattr(printer, name, None)
        if found is not None:
            found._Printer__setup()
            parts.append("\n".join(found._Printer__lines))
    text = "\n".join(parts) or (nn.Module.__doc__ or "")
    return torch.tensor(list(text.encode()), dtype=torch.long)


def batches(start: int, count: int, part: int, parts: int) -> Iterator[tuple[Tensor, Tensor]]:
    """A process's part of so many batches, from one on: pieces of text, and what follows each byte."""
    text = licences()
    for step in range(start, start + count):
        generator = torch.Generator().manual_seed(step)
        begins = torch.randint(len(text) - LENGTH - 1, (BATCH,), generator=generator).chunk(parts)[part]
        pieces = torch.stack([text[begin : begin + LENGTH + 1] for begin in begins.tolist()])
        yield pieces[:, :-1], pieces[:, 1:]
