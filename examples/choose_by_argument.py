"""An optimizer chosen on the command line, with nothing but argparse.

python examples/choose_by_argument.py --optimizer Lion --lr 1e-3 --set weight_decay=0.1 --set betas=[0.9,0.99]
python examples/choose_by_argument.py --help        names every algorithm
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import mse_loss

import steprule


def setting(text: str) -> tuple[str, Any]:
    """``name=value``, where the value is written as in JSON."""
    name, _, value = text.partition("=")
    return name, json.loads(value)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    algorithms = "\n".join(f"  {name:12} {sentence}" for name, sentence in steprule.algorithms.names().items())
    parser = argparse.ArgumentParser(
        epilog=f"algorithms:\n{algorithms}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--optimizer", default="AdamW", metavar="NAME")
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--set", type=setting, action="append", default=[], metavar="NAME=JSON", dest="settings")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> float:
    """Fit a line, and give the last loss."""
    chosen = arguments(given)
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    try:
        optimizer = steprule.create(chosen.optimizer, model, lr=chosen.lr, **dict(chosen.settings))
    except (ValueError, TypeError) as error:  # which say the nearest name that there is
        raise SystemExit(f"choose_by_argument: {error}") from None
    print(optimizer)
    for _ in range(200):
        x = torch.randn(32, 4)
        optimizer.zero_grad()
        loss = mse_loss(model(x), x.sum(1, keepdim=True))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    print(f"loss {loss.item():.2e}")
    return loss.item()


if __name__ == "__main__":
    main()
