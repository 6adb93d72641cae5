"""Where the host's time goes in a step on a GPU: the functions that take most of it, for some numbers of tensors."""

from __future__ import annotations

import cProfile
import pstats
import time
from typing import Any

import torch

import steprule


def main() -> None:
    for count in (1, 10, 146, 1000):
        params = [torch.randn(64, device="cuda").requires_grad_() for _ in range(count)]
        for p in params:
            p.grad = torch.randn_like(p)
        steps: dict[str, Any] = {
            "steprule": steprule.AdamW(params).step,
            "torch fused": torch.optim.AdamW(params, fused=True).step,
            "torch foreach": torch.optim.AdamW(params, foreach=True).step,
        }
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(12):
            for name, step in steps.items():
                torch.cuda.synchronize()
                start = time.perf_counter()
                for _ in range(20):
                    step()
                times[name].append((time.perf_counter() - start) / 20)
        medians = {name: sorted(own)[len(own) // 2] for name, own in times.items()}
        print(f"{count} tensors: " + ", ".join(f"{name} {1e6 * value:.0f} us" for name, value in medians.items()))
        if count in (10, 146):
            profile = cProfile.Profile()
            profile.enable()
            for _ in range(200):
                steps["steprule"]()
            profile.disable()
            pstats.Stats(profile).sort_stats("tottime").print_stats(22)


if __name__ == "__main__":
    main()
