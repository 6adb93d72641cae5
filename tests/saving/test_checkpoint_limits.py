"""Hostile and extreme files: refused as damaged, at once, or read within the limits that are written down."""

from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
import torch
from saving.files import sealed, split
from torch import nn

import steprule
from steprule.checkpoint import CheckpointError, load, save
from steprule.saving import header
from steprule.saving.encoding import DEEPEST, DIGITS


def hostile(folder: Path, header: str = "", data: bytes = b"", **document: Any) -> Path:
    """A file under a right checksum, with this in its header and in its document."""
    path = folder / "hostile"
    save(path, None, x=torch.zeros(2, 3))
    entries, whole, tensors = split(path.read_bytes())
    text = json.dumps({**whole, **document}).replace('"RAW"', document.get("raw", ""))
    entries["__metadata__"]["steprule"] = text
    path.write_bytes(sealed(entries, tensors + data, header))
    return path


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_a_tensor_named_many_times_is_one_tensor(tmp_path: Path) -> None:
    big = torch.arange(100_000.0)
    save(tmp_path / "run", None, many=[big] * 3000)
    many = load(tmp_path / "run", None)["many"]
    assert all(tensor is many[0] for tensor in many)  # 1.2 GB if each had memory of its own
    assert torch.equal(many[0], big)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ('"x":[' + "[]," * 4_000_000 + "[]]", "more than 2,000,000 values"),
        ('"x":{"dtype":"F32","shape":[' + ",".join(["1" + "0" * 4200] * 480) + '],"data_offsets":[0,0]}', "digits"),
        ('"x":{"dtype":"F32","shape":[0,18446744073709551616],"data_offsets":[24,24]}', "20 digits|has shape"),
        ('"x":{"dtype":"F32","shape":[0,9223372036854775807,2],"data_offsets":[24,24]}', "has shape"),
        ('"x":{"dtype":"F32","shape":[' + ",".join(["0"] * 65) + '],"data_offsets":[24,24]}', "65 dimensions"),
        ('"x":1.' + "1" * 10**6, "digits"),
        ('"x":' + "[" * 5000 + "]" * 5000, "not JSON|entry of x"),
    ],
    ids=["values", "digits", "two to the 64", "product", "dimensions", "a long fraction", "depth"],
)
def test_a_header_beyond_the_limits_is_refused_at_once(tmp_path: Path, header: str, message: str) -> None:
    path = hostile(tmp_path, header)
    tracemalloc.start()
    begin = perf_counter()
    with pytest.raises(CheckpointError, match=message):
        load(path, None)
    seconds, (_, peak) = perf_counter() - begin, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 5
    assert peak < 10 * path.stat().st_size + 10_000_000


@pytest.mark.parametrize("depth", [300, 900, 5000])
def test_lists_nested_too_deep_for_the_stack_are_refused_as_damaged(tmp_path: Path, depth: int) -> None:
    path = hostile(tmp_path, extra={}, raw="[" * depth + "]" * depth, random="RAW")
    with pytest.raises(CheckpointError, match=r"deep|damaged"):
        load(path, None)


@pytest.mark.parametrize("part", ["model", "optimizer", "extra", "random"])
def test_complex_numbers_of_a_tensor_that_holds_none(tmp_path: Path, part: str) -> None:
    content: dict[str, Any] = {part: {"cpu": {"$": "tensor", "name": "extra.x", "complex": True}}}
    path = hostile(tmp_path, **content)
    with pytest.raises(CheckpointError, match=r"a tensor of shape \[2, 3\] and torch.float32 holds no complex numbers"):
        load(path, None)


def itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (nested(300), r"extra\.value\.0\.\.\. is nested more than 100 deep"),
        (itself(), "does it contain itself"),
        (10**DIGITS, r"extra\.value is a number of more than 4,300 digits"),
        (-(10**DIGITS), "more than 4,300 digits"),
        ([0] * 30_000, "more than 20,000 values beside the tensors: make tensors of long lists"),
    ],
    ids=["deep", "itself", "long", "long and negative", "many"],
)
def test_what_cannot_be_loaded_is_refused_when_it_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any, message: str
) -> None:
    monkeypatch.setattr(header, "_MOST_VALUES", 20_000)
    save(tmp_path / "run", None, value=1)
    with pytest.raises(ValueError, match=message):
        save(tmp_path / "run", None, value=value)
    assert load(tmp_path / "run", None) == {"value": 1}


def test_what_is_just_within_the_limits_is_saved_and_loaded(tmp_path: Path) -> None:
    deep: Any = 1
    for kind in range(DEEPEST - 2):
        deep = [[deep], (deep,), {"a": deep}, {1: deep}][kind % 4]
    values = {"deep": deep, "long": 10**DIGITS - 1, "many": [0] * 100_000}
    save(tmp_path / "run", None, **values)
    assert load(tmp_path / "run", None) == values


def test_views_that_differ_in_their_bits_alone_are_told_apart(tmp_path: Path) -> None:
    c = torch.tensor([1 + 2j, 3 - 4j])
    views: Any = {
        "a": c.imag,
        "b": c.conj().imag,
        "c": c,
        "d": c.conj(),
        "e": c.conj().conj(),
        "f": c.conj().real,
    }
    save(tmp_path / "run", None, **views)
    loaded = load(tmp_path / "run", None)
    assert {name: t.tolist() for name, t in loaded.items()} == {name: t.tolist() for name, t in views.items()}
    assert loaded["c"] is loaded["e"]


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", [torch.complex32, torch.complex64, torch.complex128])
def test_complex_tensors_of_every_kind_come_back(tmp_path: Path, dtype: torch.dtype) -> None:
    value = torch.tensor([[1 + 2j], [3 - 4j]]).to(dtype)
    save(tmp_path / "run", None, value=value, turned=value.mT.conj())
    loaded = load(tmp_path / "run", None)
    assert (loaded["value"].dtype, loaded["turned"].dtype) == (dtype, dtype)
    assert loaded["value"].to(torch.complex64).tolist() == [[1 + 2j], [3 - 4j]]
    assert loaded["turned"].to(torch.complex64).tolist() == [[1 - 2j, 3 + 4j]]


def test_a_state_that_names_one_tensor_for_every_parameter_gives_each_its_own(tmp_path: Path) -> None:
    model = nn.ParameterList([nn.Parameter(torch.zeros(3)) for _ in range(4)])
    optimizer = steprule.SGD(model, lr=0.1, momentum=0.9)
    one = torch.arange(3.0)
    for p in model:
        optimizer.state[p]["momentum_buffer"] = one
    save(tmp_path / "run", optimizer)
    other = steprule.SGD(model, lr=0.1, momentum=0.9)
    load(tmp_path / "run", other)
    buffers = [other.state[p]["momentum_buffer"] for p in model]
    assert len({b.data_ptr() for b in buffers}) == 4
    assert all(torch.equal(b, one) for b in buffers)


def test_the_limits_stand_in_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs/checkpoints.md").read_text()
    for number in ("100 deep", "4,300 digits", "100,000,000 bytes", "2,000,000", "64 dimensions"):
        assert re.search(re.escape(number), text), number
