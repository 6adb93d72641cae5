"""Where the host's time goes in a step on a GPU: beside torch's for some numbers of tensors, and by function.

Without a GPU, ``--pretend`` takes a driver that launches nothing, as in tests/kernels/gpu/launch_for_gpu.py, and a
torch whose fused kernels cost nothing: what is left of both is the host's own work.
"""

from __future__ import annotations

import cProfile
import pstats
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import steprule

Make = Callable[[list[torch.Tensor]], Any]


def contenders(pretended: bool) -> dict[str, Make]:
    """Who takes steps, by name."""
    if not pretended:
        fused, foreach = partial(torch.optim.AdamW, fused=True), partial(torch.optim.AdamW, foreach=True)
        return {"steprule": steprule.AdamW, "torch fused": fused, "torch foreach": foreach}
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "kernels" / "gpu"))
    import launch_for_gpu as pretending

    pretending.pretend(looking=False)
    torch.set_num_threads(1)
    return {"steprule": partial(steprule.AdamW, backend="triton"), "torch fused": pretending.TorchFused}


def main() -> None:
    pretended = "--pretend" in sys.argv[1:]
    device = "cpu" if pretended else "cuda"
    makes = contenders(pretended)
    for count in (1, 10, 146, 1000):
        params = [torch.randn(64, device=device).requires_grad_() for _ in range(count)]
        for p in params:
            p.grad = torch.randn_like(p)
        steps = {name: make(params).step for name, make in makes.items()}
        times: dict[str, list[float]] = {name: [] for name in steps}
        turns, each = (400, 5) if count < 200 else (40, 2)
        for _ in range(turns):
            for name, step in steps.items():
                if not pretended:
                    torch.cuda.synchronize()
                start = time.perf_counter()
                for _ in range(each):
                    step()
                times[name].append((time.perf_counter() - start) / each)
        # in a tenth of the turns, a machine that does other things too does this one alone
        shown = {name: f"{name} {1e6 * sorted(own)[len(own) // 10]:.0f} us" for name, own in times.items()}
        print(f"{count} tensors: {', '.join(shown.values())}")
        if count in (1, 146):
            profile = cProfile.Profile()
            profile.enable()
            for _ in range(200):
                steps["steprule"]()
            profile.disable()
            pstats.Stats(profile).sort_stats("tottime").print_stats(22)


if __name__ == "__main__":
    main()
