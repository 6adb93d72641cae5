"""Takes steps through Triton's own launcher with a GPU that is not there, and prints what was compiled (JSON).

All is real but for the driver: kernels are compiled for the GPU, and their arguments bound and specialised, yet
nothing runs. It is a process of its own, since Triton can't compile where its interpreter is switched on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import steprule
from steprule.kernels import choose
from steprule.kernels.gpu import device_scalars, device_table
from steprule.kernels.gpu import triton as launching

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime.driver import driver  # noqa: E402

DEVICE = torch.device("cpu")


class Launcher:
    """Takes a launch, and looks at its arguments as the real one does."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.kinds = list(source.signature.values())

    def __call__(self, *arguments: Any) -> None:
        grid, given = arguments[:3], arguments[9:]
        assert all(0 < n < 2**31 for n in grid), grid
        for kind, value in zip(self.kinds, given, strict=True):
            if kind.startswith("*"):
                assert isinstance(value, torch.Tensor), kind
            elif kind != "constexpr":
                assert type(value) is {"i32": int, "fp64": float}[kind], (kind, value)
        launches.append(self.kinds)


launches: list[list[str]] = []
compiled: list[bool] = []
"""For each kernel asked for, whether it was on disk already."""

hopper = SimpleNamespace(
    get_current_target=lambda: GPUTarget("cuda", 90, 32),
    get_current_device=lambda: 0,
    get_current_stream=lambda device: 0,
    launcher_cls=Launcher,
    utils=SimpleNamespace(
        get_device_properties=lambda device: {"max_shared_mem": 232448},
        load_binary=lambda name, kernel, shared, device: (0, 0, 0, 0, 1024),
    ),
)


def steps(optimizer: steprule.Optimizer, count: int = 2) -> None:
    for _ in range(count):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.zeros_like(p)
        optimizer.step()


def tensors(*sizes: int | tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.zeros(size, requires_grad=True) for size in sizes]


def counted(run: Callable[[], object]) -> dict[str, int]:
    """How many kernels are compiled and launched while something runs."""
    before = len(compiled), len(launches)
    run()
    return {"compiled": len(compiled) - before[0], "launched": len(launches) - before[1]}


def pretend(looking: bool = True) -> None:
    """Let Triton's driver be the one above, and the CPU's tensors be those of a GPU; launches are looked at, or cost
    nothing."""
    if not looking:
        hopper.launcher_cls = lambda source, metadata: lambda *arguments: None
    driver.set_active(hopper)
    choose.unavailable = lambda device: None
    launching.on_gpu = lambda value: isinstance(value, torch.Tensor)


def calls(step: Callable[[], object]) -> int:
    """How many functions something calls, of Python and of C."""
    found: list[str] = []
    sys.setprofile(lambda frame, event, argument: found.append(event) if event in ("call", "c_call") else None)
    try:
        step()
    finally:
        sys.setprofile(None)
    return len(found)


class TorchFused(torch.optim.AdamW):
    """torch's fused AdamW, whose kernels cost nothing."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, fused=True)
        super().step()

    def step(self, closure: Any = None) -> Any:
        known = torch._foreach_add_, torch._fused_adamw_
        torch._foreach_add_ = torch._fused_adamw_ = lambda *arguments, **options: None
        try:
            super().step()
        finally:
            torch._foreach_add_, torch._fused_adamw_ = known


def with_gradients(count: int) -> list[torch.Tensor]:
    params = tensors(*[64] * count)
    for p in params:
        p.grad = torch.ones_like(p)
    return params


def in_two_groups(params: list[torch.Tensor]) -> steprule.Optimizer:
    groups: list[Any] = [dict(params=params[::2]), dict(params=params[1::2], weight_decay=0.0)]
    return steprule.AdamW(groups, backend="triton")


CONTENDERS: dict[str, Callable[[list[torch.Tensor]], Any]] = {
    "adamw": lambda params: steprule.AdamW(params, backend="triton"),
    "adamw in groups": in_two_groups,
    "sgd": lambda params: steprule.SGD(params, backend="triton"),
    "torch": TorchFused,
}


def on_the_host(make: Callable[[list[torch.Tensor]], Any], count: int) -> dict[str, int]:
    """What a step of the host's work is once nothing but numbers changes: launches, uploads, calls."""
    optimizer = make(with_gradients(count))
    for _ in range(3):
        optimizer.step()
    uploads: list[int] = []
    known = {module: module.upload for module in (launching, device_table, device_scalars)}
    for module, upload in known.items():
        module.upload = lambda array, device, upload=upload: uploads.append(array.nbytes) or upload(array, device)
    before = len(launches)
    try:
        optimizer.step()
    finally:
        for module, upload in known.items():
            module.upload = upload
    return {"launches": len(launches) - before, "uploads": len(uploads), "calls": calls(optimizer.step)}


def scaled(optimizer: steprule.Optimizer) -> None:
    optimizer.grad_scale, optimizer.found_inf = torch.ones(()), torch.zeros(())
    optimizer.explain()  # makes the plan for gradients that are not scaled, so that the flag is left to the kernels
    steps(optimizer)


def main() -> None:
    pretend()
    triton.knobs.compilation.listener = lambda *, cache_hit, **_: compiled.append(cache_hit)

    def adamw(*sizes: int, **options: Any) -> steprule.Optimizer:
        return steprule.AdamW(tensors(*sizes), **{"lr": 0.1, **options}, backend="triton")

    def adafactor(*shapes: tuple[int, ...]) -> steprule.Optimizer:
        return steprule.Adafactor(tensors(*shapes), backend="triton")

    def with_another_rate(optimizer: steprule.Optimizer) -> None:
        steps(optimizer)
        optimizer.param_groups[0]["lr"] = 0.01
        steps(optimizer)

    def on_device() -> steprule.Optimizer:
        optimizer = adamw(30, 40, lr=torch.tensor(0.1))
        optimizer.param_groups[0]["capturable"] = False  # which there is none of without a GPU; the tensor asks for it
        return optimizer

    results = {
        "first": counted(lambda: with_another_rate(adamw(30, 5000, 16))),
        "one tensor": counted(lambda: steps(adamw(1))),
        "many tensors": counted(lambda: steps(adamw(*range(1, 70)))),
        "no elements": counted(lambda: steps(adamw(0, 0))),
        "numbers on the device": counted(lambda: steps(on_device())),
        "one number on the device": counted(lambda: steps(adamw(9, lr=torch.tensor(0.1)))),
        "clipped": counted(lambda: steps(adamw(30, 40, clip_norm=1.0))),
        "clipped, another number of tensors": counted(lambda: steps(adamw(7, clip_norm=1.0))),
        "rows and columns": counted(lambda: steps(adafactor((40, 30), (5, 2, 3)))),
        "rows and columns of other shapes": counted(lambda: steps(adafactor((700, 80), (70, 2, 3), (0, 3)))),
        "rows and columns in another tile": counted(lambda: steps(adafactor((70, 8)))),
        "scaled": counted(lambda: scaled(adamw(30, 40))),
    }
    on_disk = sum(compiled)
    counts = (2, 146, 1000)
    host = {f"{name} {count}": on_the_host(make, count) for name, make in CONTENDERS.items() for count in counts}
    print(json.dumps({"on disk": on_disk, "results": results, "host": host}))


if __name__ == "__main__":
    main()
