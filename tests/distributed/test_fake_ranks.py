"""FakeTensors in a process group that is fake too, as those who estimate the memory of sharded training take them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

import steprule


@pytest.fixture(autouse=True)
def group() -> Iterator[None]:
    dist.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    yield
    dist.destroy_process_group()


def trained(lib: Any, name: str) -> tuple[int, list[dict[str, Any]]]:
    """The bytes that the tracker finds of the state, and what the state is like."""
    mesh = init_device_mesh("cpu", (4,))
    with FakeTensorMode():
        model = nn.Sequential(nn.Linear(16, 8, bias=False), nn.Linear(8, 6, bias=False))
        for part in (*model, model):
            fully_shard(part, mesh=mesh)
        optimizer = getattr(lib, name)(model.parameters(), lr=0.1)
        tracker = FSDPMemTracker(model, optimizer)
        with tracker:
            for _ in range(2):
                model(torch.ones(2, 16)).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
                tracker.reset_mod_stats()
        (found,) = tracker.get_tracker_snapshot("current").values()
    (size,) = (size for kind, size in found.items() if getattr(kind, "value", kind) == "OptState")
    return size, [{slot: form(v) for slot, v in optimizer.state[p].items()} for p in model.parameters()]


def form(value: Tensor) -> tuple[Any, ...]:
    part = value.to_local() if isinstance(value, DTensor) else value
    return type(value).__name__, tuple(value.shape), tuple(part.shape), part.dtype


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Adagrad", "NAdam", "Muon"])
def test_the_tracker_finds_what_it_finds_with_torch(name: str) -> None:
    assert trained(steprule, name) == trained(torch.optim, name)


def test_rows_and_columns_are_spread_as_their_parameter() -> None:
    size, state = trained(steprule, "Adafactor")  # torch's asks for values
    assert state[0]["row_var"] == ("DTensor", (8, 1), (2, 1), torch.float32)
    assert state[0]["col_var"] == ("DTensor", (1, 16), (1, 16), torch.float32)
    assert size == 4 * sum(torch.Size(slot[2]).numel() for own in state for slot in own.values())
