"""What schedules add to a step: microseconds, the least of many runs. A step may spend 5 on them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from torch import nn

import steprule
from steprule import biases, layer_decay, norms, scale
from steprule.display.frame import framed
from steprule.schedules import cosine, linear, warmup, write

RATE = 3e-4 * warmup(1000).then(cosine(9000))


class Transformer(nn.Module):
    """As many groups as a transformer of 12 layers has; the sizes do not matter here."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, 8)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16) for _ in range(12))
        self.head = nn.Linear(8, 64)


def microseconds(call: Callable[[], object], calls: int, rounds: int = 50) -> float:
    """The time of one call: the least over the rounds of the mean within one."""

    def once() -> float:
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - begin) / calls

    call()
    return 1e6 * min(once() for _ in range(rounds))


def setups() -> dict[str, dict[str, Any]]:
    """Options of AdamW by what they are called."""
    no_decay = {norms | biases: {"weight_decay": 0.0}}
    model = Transformer()
    return {
        "warmup and cosine, 1 group": {"params": model, "lr": RATE},
        "and norms and biases without decay: 2 groups": {"params": model, "lr": RATE, "overrides": no_decay},
        "and a head with a tenth of the rate: 4 groups": {
            "params": model,
            "lr": RATE,
            "overrides": {**no_decay, "head.*": {"lr": scale(0.1)}},
        },
        "rate, decay and one beta, 1 group": {
            "params": model,
            "lr": RATE,
            "weight_decay": 0.1 * linear(10000),
            "betas": (0.9, 1 - 0.05 * cosine(10000)),
        },
        "layer-wise rates: 14 groups": {"params": model, "lr": RATE, "overrides": layer_decay(model, 0.75)},
    }


def main() -> None:
    torch.set_num_threads(1)
    columns: dict[str, list[str]] = {"setup": [], "µs": []}
    for name, options in setups().items():
        groups = steprule.AdamW(**options).param_groups
        columns["setup"].append(name)
        took = microseconds(lambda groups=groups: write(groups, 5000), calls=1000)  # type: ignore[misc]
        columns["µs"].append(f"{took:.2f}")
    Console().print(framed(columns, left=["setup"], title="microseconds a step spends on schedules"))


if __name__ == "__main__":
    main()
