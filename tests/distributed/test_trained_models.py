"""Models as people shard them, trained on some ranks and on one, saved by torch.distributed.checkpoint and resumed."""

from __future__ import annotations

import copy
import tempfile
from typing import Any

import pytest
import torch
import torch.distributed as dist
from distributed.layouts import mesh_of, whole
from distributed.processes import on_ranks
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import steprule

ALGORITHMS: dict[str, dict[str, Any]] = {
    "AdamW": {},
    "Lamb": {"clip_norm": 0.1},
    "Adafactor": {},
    "Muon": {"lr": 0.02, "clip_norm": 0.5},
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.LayerNorm(10), nn.Linear(10, 5), nn.Tanh(), nn.Linear(5, 3))


def data(step: int, part: int = 0, parts: int = 1) -> torch.Tensor:
    whole_batch = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
    return whole_batch.chunk(parts)[part]


def step_of(model: nn.Module, optimizer: torch.optim.Optimizer, batch: torch.Tensor) -> None:
    optimizer.zero_grad()
    model(batch).square().mean().backward()
    optimizer.step()


def sharded(kind: str) -> tuple[Any, int, int]:
    """A model as a kind of sharding has it, and which part of the batch belongs to this rank."""
    model, rank, size = network(), dist.get_rank(), dist.get_world_size()
    if kind == "DDP":
        return DistributedDataParallel(model), rank, size
    if kind == "FSDP":
        for layer in model:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh_of((size,)))
        return fully_shard(model, mesh=mesh_of((size,))), rank, size
    if kind == "half":
        fully_shard(model[0], mesh=mesh_of((size,)))
        return model, 0, 1
    mesh = init_device_mesh("cpu", (size // 2, 2), mesh_dim_names=("data", "tensor"))
    if kind == "hybrid":
        return fully_shard(model, mesh=mesh), rank, size
    plan: dict[str, ParallelStyle] = {
        "0": ColwiseParallel(output_layouts=Replicate()),
        "3": RowwiseParallel(input_layouts=Replicate()),
    }
    parallelize_module(model, mesh["tensor"], plan)
    if kind == "tensor":
        return model, 0, 1
    return fully_shard(model, mesh=mesh["data"]), rank // 2, size // 2


def trained(kind: str, name: str) -> None:
    """On one rank: a few steps are those of one process on the whole batch."""
    model, part, parts = sharded(kind)
    reference = network()
    ours = getattr(steprule, name)(model, **ALGORITHMS[name])
    theirs = getattr(steprule, name)(reference, **ALGORITHMS[name])
    for step in range(4):
        step_of(model, ours, data(step, part, parts))
        step_of(reference, theirs, data(step))
    for (n, p), q in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(whole(p), q.detach(), rtol=2e-4, atol=2e-5, msg=lambda m, n=n: f"{n}: {m}")


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize(
    ("kind", "size"), [("DDP", 2), ("FSDP", 2), ("half", 2), ("FSDP", 4), ("tensor", 2), ("both", 4), ("hybrid", 4)]
)
def test_models_are_trained_as_in_one_process(kind: str, size: int, name: str) -> None:
    on_ranks(size, trained, kind, name)


def mixed_precision() -> None:
    model = network()
    fully_shard(model, mesh=mesh_of((2,)), mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32))
    optimizer = steprule.AdamW(model, clip_norm=1.0)
    before = [whole(p).clone() for p in model.parameters()]
    for step in range(3):
        step_of(model, optimizer, data(step, dist.get_rank(), 2))
    assert all(
        p.dtype == torch.float32 and not torch.equal(whole(p), b)
        for p, b in zip(model.parameters(), before, strict=True)
    )
    assert "llvm" in optimizer.explain()
    assert "eager" not in optimizer.explain()


def test_mixed_precision_of_fully_shard() -> None:
    on_ranks(2, mixed_precision)


def scaled(fused: bool) -> None:
    model = network()
    fully_shard(model, mesh=mesh_of((2,)))
    optimizer = steprule.AdamW(model, fused=fused, clip_norm=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=100)
    for step in range(4):
        optimizer.zero_grad()
        scaler.scale(model(data(step, dist.get_rank(), 2)).square().mean()).backward()
        before = [whole(p).clone() for p in model.parameters()]
        if step == 2 and dist.get_rank():
            grad: Any = next(model.parameters()).grad
            grad.to_local()[0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        moved = [not torch.equal(whole(p), b) for p, b in zip(model.parameters(), before, strict=True)]
        assert not any(moved) if step == 2 else all(moved)
    assert scaler.get_scale() == 8.0


@pytest.mark.parametrize("fused", [False, True])
def test_an_infinite_gradient_on_one_rank_skips_the_step_on_all(fused: bool) -> None:
    on_ranks(2, scaled, fused)


def saved(folder: str, name: str) -> None:
    from torch.distributed.checkpoint import save
    from torch.distributed.checkpoint.state_dict import get_state_dict

    model, part, parts = sharded("FSDP")
    optimizer = getattr(steprule, name)(model, **ALGORITHMS[name])
    for step in range(3):
        step_of(model, optimizer, data(step, part, parts))
    weights, state = get_state_dict(model, optimizer)
    save({"model": weights, "optimizer": state}, checkpoint_id=folder)


def resumed(folder: str, name: str) -> None:
    from torch.distributed.checkpoint import load
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    model, part, parts = sharded("FSDP")
    optimizer = getattr(steprule, name)(model, **ALGORITHMS[name])
    weights, state = get_state_dict(model, optimizer)
    load({"model": weights, "optimizer": state}, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
    reference = network()
    theirs = getattr(steprule, name)(reference, **ALGORITHMS[name])
    for step in range(3):
        step_of(reference, theirs, data(step))
    for step in range(3, 5):
        step_of(model, optimizer, data(step, part, parts))
        step_of(reference, theirs, data(step))
    for (n, p), q in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(whole(p), q.detach(), rtol=2e-4, atol=2e-5, msg=lambda m, n=n: f"{n}: {m}")


@pytest.mark.parametrize("name", ALGORITHMS)
def test_distributed_checkpoints_resume_on_another_number_of_ranks(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        on_ranks(4, saved, folder, name)
        on_ranks(2, resumed, folder, name)


def loaded(name: str) -> None:
    """A state dictionary goes back into the same optimizer, and into a fresh one."""
    model, part, parts = sharded("FSDP")
    optimizer = getattr(steprule, name)(model, **ALGORITHMS[name])
    for step in range(2):
        step_of(model, optimizer, data(step, part, parts))
    state = copy.deepcopy(optimizer.state_dict())
    weights = [whole(p).clone() for p in model.parameters()]
    step_of(model, optimizer, data(2, part, parts))
    after = [whole(p).clone() for p in model.parameters()]
    with torch.no_grad():
        for p, w in zip(model.parameters(), weights, strict=True):
            p.copy_(torch.distributed.tensor.distribute_tensor(w, p.device_mesh, p.placements))  # type: ignore[attr-defined]
    fresh = getattr(steprule, name)(model, **ALGORITHMS[name])
    fresh.load_state_dict(state)
    for p in model.parameters():
        assert all(isinstance(v, DTensor) for v in fresh.state[p].values() if v.ndim)
    step_of(model, fresh, data(2, part, parts))
    for p, q in zip(model.parameters(), after, strict=True):
        assert torch.equal(whole(p), q)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_state_dictionaries_go_back(name: str) -> None:
    on_ranks(2, loaded, name)
