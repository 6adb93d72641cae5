"""The cases on a GPU, with what each is to reach there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

import steprule
from steprule.kernels.gpu.triton import TritonLaunch
from steprule.kernels.gpu.tune import CANDIDATES, Block

from .cases import MEMORY, WHERE, Case, FirstStep, Steps, Target
from .contenders import HandwrittenLion, Make, algorithms, clipped, in_a_bucket, torch_peers, with_zero_gradients
from .gpu_training import NORM, Graphed, Scaled

__all__ = ["gpu_cases"]

LARGE = ("resnet50", "gpt2", "gpt-1.3b")
IN_PLACE = Target(MEMORY, 1.1)
DTYPES = ((torch.float32, ""), (torch.bfloat16, "-bf16"))


def gpu_peers(kind: type[torch.optim.Optimizer], **options: Any) -> dict[str, Make]:
    """Each of torch's implementations; on a GPU its default is ``foreach``, where there is one."""
    peers = torch_peers(kind, **options)
    return {name: make for name, make in peers.items() if name != "default" or "foreach" not in peers}


def with_fused(rule: str, ours: Any, peers: Mapping[str, Make]) -> list[Case]:
    """What torch fused by hand, in two dtypes."""
    fused = Target("fused", 1.0)
    return [
        Steps(f"{rule}{suffix}", shapes, ours, peers, [fused, IN_PLACE], dtype=dtype)
        for dtype, suffix in DTYPES
        for shapes in LARGE
    ]


def in_each_block(what: str, fused: Make, lay: Callable[[list[torch.Tensor]], list[torch.Tensor]] = list) -> list[Case]:
    """AdamW beside torch's fused one with each block that may be measured as the fastest, in two dtypes."""
    return [
        Steps(
            f"adamw{suffix}-{what}-{block.size}x{block.warps}",
            "gpt2",
            with_block(block),
            {"fused": fused},
            [Target("fused", 1.0), IN_PLACE],
            dtype=dtype,
            lay=lay,
        )
        for dtype, suffix in DTYPES
        for block in CANDIDATES
    ]


def in_training() -> list[Case]:
    """Behind a GradScaler and in a CUDA graph, beside torch's fused AdamW."""
    fused = partial(torch.optim.AdamW, fused=True)
    target = [Target("fused", 1.0)]

    def clipping(params: list[torch.Tensor], rate: torch.Tensor) -> steprule.Optimizer:
        return steprule.AdamW(params, lr=rate, clip_norm=NORM, capturable=True)

    def theirs(params: list[torch.Tensor], rate: torch.Tensor) -> torch.optim.Optimizer:
        return fused(params, lr=rate, capturable=True)

    ours = partial(steprule.AdamW, fused=True)
    return [
        *(Scaled("adamw-scaler", shapes, ours, {"fused": fused}, target) for shapes in ("lenet", "gpt2")),
        *(Graphed("adamw-graph", shapes, clipping, {"fused": theirs}, target) for shapes in ("lenet", "gpt2")),
    ]


def with_block(block: Block) -> Callable[[list[torch.Tensor]], steprule.Optimizer]:
    """AdamW whose kernels take this block, whatever was measured."""

    def made(params: list[torch.Tensor]) -> steprule.Optimizer:
        optimizer = steprule.AdamW(params)
        optimizer.step()
        for launch in optimizer._workings.planner.plan.launches if optimizer._workings.planner.plan else ():
            if isinstance(launch, TritonLaunch):
                launch.block = block
        return optimizer

    return made


def gpu_cases() -> list[Case]:
    """Every case on a GPU."""
    adamw = gpu_peers(torch.optim.AdamW)
    momentum, theirs = partial(steprule.SGD, momentum=0.9), gpu_peers(torch.optim.SGD, momentum=0.9)
    norm = {name: clipped(make, 1.0) for name, make in adamw.items() if name != "compile"}
    named: Sequence[Case] = [
        *with_fused("adamw", steprule.AdamW, adamw),
        *with_fused("sgd-momentum", momentum, theirs),
        Steps("adamw", "lenet", steprule.AdamW, adamw),
        Steps("adamw", "small", steprule.AdamW, adamw),
        Steps("adamw-clip", "gpt2", partial(steprule.AdamW, clip_norm=1.0), norm),
        Steps("lion-rule", "gpt2", HandwrittenLion, {}, [IN_PLACE]),
        FirstStep("adamw", steprule.AdamW, "gpt2", limit=3.0, peers={"fused": partial(torch.optim.AdamW, fused=True)}),
        FirstStep("adafactor", steprule.Adafactor, "gpt2", limit=3.0),
        FirstStep("muon", steprule.Muon, "gpt2-hidden", limit=3.0),
        *in_each_block("block", adamw["fused"]),
        *in_each_block("zeros", adamw["fused"], with_zero_gradients),
        *(
            Steps(f"adamw{suffix}-bucket", "gpt2", steprule.AdamW, {"fused": adamw["fused"]}, dtype=d, lay=in_a_bucket)
            for d, suffix in DTYPES
        ),
        *in_training(),
        Steps("muon-bf16", "gpt2-hidden", steprule.Muon, gpu_peers(torch.optim.Muon), dtype=torch.bfloat16),
        *(
            Steps("adafactor", shapes, steprule.Adafactor, gpu_peers(torch.optim.Adafactor), [Target("foreach", 0.5)])
            for shapes in ("resnet50", "wide", "row")
        ),
    ]
    return [*named, *(every for every in every_algorithm_on_gpu() if every.name not in {case.name for case in named})]


def every_algorithm_on_gpu() -> list[Case]:
    """Each algorithm with its defaults."""
    found: list[Case] = []
    for name, kind in algorithms().items():
        where, theirs = WHERE.get(name), getattr(torch.optim, name, None)
        peers = gpu_peers(theirs) if theirs else {}
        half = [Target("foreach", 0.5)] if "foreach" in peers and "fused" not in peers else []
        shapes, tokens = (where.steps, where.tokens) if where else ("gpt2", None)
        found.append(Steps(name.lower(), shapes, kind, peers, [*half, IN_PLACE], tokens=tokens))
    return found
