"""An optimizer out of a hydra configuration. Needs `pip install hydra-core`.

    python examples/choose_with_hydra.py optimizer.name=Lion optimizer.lr=1e-3
    python examples/choose_with_hydra.py -m optimizer.name=AdamW,Lion,Adagrad         a sweep

The rate may be a schedule, described as `to_dict` gives it; see examples/conf/choose.yaml.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import mse_loss

import steprule

try:
    import hydra
    from omegaconf import DictConfig, OmegaConf
except ImportError as error:
    raise SystemExit(f"this example needs more ({error}): pip install hydra-core") from error


def train(config: DictConfig) -> float:
    """Fit a line with the optimizer of the configuration, and give the last loss."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    settings: dict[Any, Any] = OmegaConf.to_container(config.optimizer, resolve=True)
    optimizer = steprule.create(params=model, **settings)
    for _ in range(config.steps):
        x = torch.randn(32, 4)
        optimizer.zero_grad()
        loss = mse_loss(model(x), x.sum(1, keepdim=True))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    print(f"{config.optimizer.name}: loss {loss.item():.2e}")
    return loss.item()


main = hydra.main(version_base=None, config_path="conf", config_name="choose")(train)

if __name__ == "__main__":
    main()
