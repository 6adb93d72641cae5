"""One file for any number of processes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from distributed.layouts import whole
from distributed.processes import on_ranks
from distributed.test_trained_models import ALGORITHMS, data, network, sharded, step_of
from torch import nn

import steprule
from steprule.distributed import files

Kept = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]


def kept(model: nn.Module, optimizer: torch.optim.Optimizer) -> Kept:
    """All weights and all state, whole."""
    names = {p: name for name, p in model.named_parameters()}
    weights = {name: whole(p).clone() for p, name in names.items()}
    states = [(names[p], slot, v) for p, state in optimizer.state.items() for slot, v in state.items()]
    return weights, {f"{name}.{slot}": whole(value).clone() for name, slot, value in states}


def assert_kept(ours: Kept, theirs: Kept) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert set(a) == set(b)
        for name in a:
            assert torch.equal(a[name], b[name]), name


def trained(kind: str, name: str) -> tuple[nn.Module, steprule.Optimizer]:
    model, part, parts = sharded(kind) if kind != "plain" else (network(), 0, 1)
    optimizer = getattr(steprule, name)(model, **ALGORITHMS[name])
    for step in range(2):
        step_of(model, optimizer, data(step, part, parts))
    return model, optimizer


def saved(path: str, kind: str, name: str) -> Kept:
    model, optimizer = trained(kind, name)
    steprule.save(path, optimizer, model, epoch=3)
    assert Path(path).exists()
    return kept(model, optimizer)


def loaded(path: str, kind: str, name: str, before: Kept) -> None:
    """Into a fresh optimizer, which goes on."""
    model, part, parts = sharded(kind)
    optimizer = getattr(steprule, name)(model, lr=0.5)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert steprule.load(path, optimizer, model) == {"epoch": 3}
    assert_kept(kept(model, optimizer), before)
    step_of(model, optimizer, data(2, part, parts))
    assert "eager" not in optimizer.explain()
    single = network()
    reference = getattr(steprule, name)(single, lr=0.5)
    steprule.load(path, reference, single)  # by every process by itself
    assert_kept(kept(single, reference), before)
    step_of(single, reference, data(2))
    for (n, p), q in zip(model.named_parameters(), single.parameters(), strict=True):
        torch.testing.assert_close(whole(p), q.detach(), rtol=2e-4, atol=2e-5, msg=lambda m, n=n: f"{n}: {m}")


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("AdamW", ("FSDP", 4), ("tensor", 2)),
        ("Adafactor", ("both", 4), ("FSDP", 2)),
        ("Muon", ("tensor", 2), ("hybrid", 4)),
        ("Adafactor", ("FSDP", 2), ("FSDP", 4)),
        ("Lamb", ("plain", 1), ("both", 4)),
    ],
)
def test_a_file_of_some_ranks_is_read_on_others(
    tmp_path: Path, name: str, first: tuple[str, int], second: tuple[str, int]
) -> None:
    path = str(tmp_path / "run.safetensors")
    kind, size = first
    before, *others = on_ranks(size, saved, path, kind, name) if size > 1 else [saved(path, kind, name)]
    for other in others:
        assert_kept(other, before)
    on_ranks(second[1], loaded, path, second[0], name, before)


def alone(path: str, what: str) -> str | None:
    model, optimizer = trained("FSDP", "AdamW")
    files.PATIENCE = 2.0
    try:
        if dist.get_rank():
            time.sleep(3.0)
            return None
        with pytest.raises(RuntimeError) as raised:
            getattr(steprule, what)(path, optimizer, model)
    finally:
        files.PATIENCE = 60.0
    return str(raised.value)


@pytest.mark.parametrize("what", ["save", "load"])
def test_one_rank_alone_is_refused_and_the_others_go_on(tmp_path: Path, what: str) -> None:
    path = str(tmp_path / "run.safetensors")
    said, _ = on_ranks(2, alone, path, what)
    assert said.startswith(f"steprule.{what}() was called on rank 0, and not on 1 within 2 seconds")
    on_ranks(2, saved, path, "FSDP", "AdamW")  # both go on with the same groups
    assert Path(path).exists()


def failing(path: str, case: str) -> str:
    model, optimizer = trained("FSDP", "AdamW")
    extra: dict[str, Any] = {}
    if case == "value" and dist.get_rank():
        extra["strange"] = object()
    if case == "folder":
        path += "/absent/file"
    with pytest.raises((RuntimeError, TypeError, OSError)) as raised:
        steprule.save(path, optimizer, model, **extra)
    return f"{type(raised.value).__name__}: {raised.value}"


def test_what_fails_on_one_rank_fails_on_all(tmp_path: Path) -> None:
    path = str(tmp_path / "run.safetensors")
    first, second = on_ranks(2, failing, path, "value")
    assert second.startswith("TypeError: extra.strange is a builtins.object")
    assert first == f"RuntimeError: on rank 1, {second}"
    first, second = on_ranks(2, failing, path, "folder")
    assert first.startswith("FileNotFoundError")
    assert second.startswith("RuntimeError: on rank 0, FileNotFoundError")
    assert not list(tmp_path.iterdir())


def damaged(path: str) -> str:
    model, optimizer = trained("FSDP", "AdamW")
    before = kept(model, optimizer)
    with pytest.raises(RuntimeError) as raised:
        steprule.load(path, optimizer, model)
    assert_kept(kept(model, optimizer), before)
    return str(raised.value)


def test_a_damaged_file_is_refused_on_all(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    on_ranks(2, saved, str(path), "FSDP", "AdamW")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for said in on_ranks(2, damaged, str(path)):
        assert "checksum" in said
