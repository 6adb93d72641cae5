"""A run that was saved and resumed ends with the same bits as one that was not, for every algorithm."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import same
from every_algorithm import ALGORITHMS, MATRIX, ONLY_MATRICES, REDUCING
from tensors import give_gradients
from torch import nn
from training import train

import steprule
from steprule.checkpoint import load, save
from steprule.schedules import cosine, linear, warmup

DENSE = [name for name in ALGORITHMS if name not in {"SparseAdam", "LBFGS"} | ONLY_MATRICES]
SPARSE = [name for name in ALGORITHMS if name not in {"LBFGS"} | REDUCING | MATRIX]
OPTIONS = {
    "SGD": [{"momentum": 0.9, "nesterov": True}],
    "RMSprop": [{"momentum": 0.9, "centered": True}],
    "Adam": [{"amsgrad": True}],
    "Adagrad": [{"initial_accumulator_value": 0.1}],
}


class Net(nn.Module):
    """An embedding, a convolution that is frozen now and then, a norm, a layer that is not always used."""

    def __init__(self, sparse: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 4, sparse=sparse)
        self.conv = nn.Conv1d(4, 3, 2)
        self.norm = nn.BatchNorm1d(3)
        self.extra = nn.Linear(3, 3)
        self.late = nn.Linear(3, 2)

    def forward(self, step: int) -> torch.Tensor:
        self.conv.get_parameter("bias").requires_grad_(step % 4 != 1)
        x = self.norm(self.conv(self.embedding(batch(step)).transpose(1, 2))).mean(-1)
        if step % 3:
            x = x + self.extra(x)
        return self.late(x)


def batch(step: int) -> torch.Tensor:
    return torch.randint(0, 11, (6, 5), generator=torch.Generator().manual_seed(step))


def early(model: Net) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if not name.startswith("late.")]


@pytest.mark.parametrize(
    ("algorithm", "options"), [(name, options) for name in DENSE for options in [{}, *OPTIONS.get(name, [])]]
)
def test_with_a_group_added_frozen_parameters_missing_gradients_and_schedules(
    tmp_path: Path, algorithm: str, options: dict[str, object]
) -> None:
    def new_run(seed: int) -> tuple[Net, steprule.Optimizer]:
        torch.manual_seed(seed)
        model = Net()
        rate = 0.02 * warmup(3, 0.1).then(cosine(20))
        return model, getattr(steprule, algorithm)(early(model), lr=rate, **options)

    def add(model: Net, optimizer: steprule.Optimizer) -> None:
        named = [(f"late.{name}", p) for name, p in model.late.named_parameters()]
        optimizer.add_param_group({"params": named, "lr": 0.03 * linear(30)})

    model, optimizer = new_run(1)
    train(model, optimizer, range(4))
    add(model, optimizer)
    train(model, optimizer, range(4, 7))
    save(tmp_path / "run", optimizer, model)
    twin, other = new_run(2)
    add(twin, other)
    load(tmp_path / "run", other, twin)
    assert same(optimizer.state_dict(), other.state_dict())
    train(model, optimizer, range(7, 12))
    train(twin, other, range(7, 12))
    assert same(dict(model.state_dict()), dict(twin.state_dict()))
    assert same(optimizer.state_dict(), other.state_dict())
    assert optimizer.param_groups[1]["lr"] == other.param_groups[1]["lr"] == 0.03 * linear(30)(11)


@pytest.mark.parametrize("algorithm", [name for name in DENSE if name not in MATRIX])
def test_with_another_number_of_threads(tmp_path: Path, algorithm: str) -> None:
    def new_run(seed: int) -> tuple[nn.Linear, steprule.Optimizer]:
        torch.manual_seed(seed)
        model = nn.Linear(900, 400)
        return model, getattr(steprule, algorithm)(model, lr=0.02, clip_norm=1.0)

    def take_steps(model: nn.Linear, optimizer: steprule.Optimizer, steps: range) -> None:
        for step in steps:
            give_gradients(model.parameters(), step)
            optimizer.step()

    torch.set_num_threads(3)
    model, optimizer = new_run(1)
    take_steps(model, optimizer, range(3))
    save(tmp_path / "run", optimizer, model)
    take_steps(model, optimizer, range(3, 6))
    torch.set_num_threads(1)
    twin, other = new_run(2)
    load(tmp_path / "run", other, twin)
    take_steps(twin, other, range(3, 6))
    assert same(dict(model.state_dict()), dict(twin.state_dict()))
    assert same(optimizer.state_dict(), other.state_dict())


@pytest.mark.parametrize("algorithm", SPARSE)
def test_with_sparse_gradients(tmp_path: Path, algorithm: str) -> None:
    def new_run(seed: int) -> tuple[nn.Embedding, steprule.Optimizer]:
        torch.manual_seed(seed)
        table = nn.Embedding(11, 4, sparse=True)
        return table, getattr(steprule, algorithm)(table, lr=0.02)

    batches = [batch(step)[:2] for step in range(6)]
    table, optimizer = new_run(1)
    train(table, optimizer, batches[0:3])
    save(tmp_path / "run", optimizer, table)
    train(table, optimizer, batches[3:6])
    twin, other = new_run(2)
    load(tmp_path / "run", other, twin)
    train(twin, other, batches[3:6])
    assert same(dict(table.state_dict()), dict(twin.state_dict()))
    assert same(optimizer.state_dict(), other.state_dict())


@pytest.mark.parametrize("algorithm", ["LBFGS", *sorted(REDUCING | MATRIX)])
@pytest.mark.parametrize("form", ["file", "dictionary"])
def test_those_that_are_not_elementwise(tmp_path: Path, algorithm: str, form: str) -> None:
    known: dict[str, dict[str, Any]] = {
        "LBFGS": {"line_search_fn": "strong_wolfe", "history_size": 3},
        "Shampoo": {"graft": "rmsprop"},
    }
    options = known.get(algorithm, {})

    def new_run(seed: int) -> tuple[nn.Module, steprule.Optimizer]:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 5), nn.Flatten(), nn.Linear(25, 4))
        return model, getattr(steprule, algorithm)(model, lr=0.02, **options)

    def three_steps(model: nn.Module, optimizer: steprule.Optimizer) -> None:
        train(lambda words: model(words) - 1, optimizer, [batch(0)] * 3)

    model, optimizer = new_run(1)
    three_steps(model, optimizer)
    twin, other = new_run(2)
    if form == "file":
        save(tmp_path / "run", optimizer, model)
        load(tmp_path / "run", other, twin)
    else:
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        twin.load_state_dict(model.state_dict())
    three_steps(model, optimizer)
    three_steps(twin, other)
    assert same(dict(model.state_dict()), dict(twin.state_dict()))
    assert same(optimizer.state_dict(), other.state_dict())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_in_every_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    def new_run(seed: int) -> tuple[nn.Module, steprule.Optimizer]:
        torch.manual_seed(seed)
        model = nn.Linear(5, 3, dtype=dtype)
        return model, steprule.AdamW(model, lr=0.02)

    batches = [batch(step)[:, :5].to(dtype) for step in range(6)]
    model, optimizer = new_run(1)
    train(model, optimizer, batches[0:3])
    save(tmp_path / "run", optimizer, model)
    train(model, optimizer, batches[3:6])
    twin, other = new_run(2)
    load(tmp_path / "run", other, twin)
    train(twin, other, batches[3:6])
    assert [p.tolist() for p in model.parameters()] == [p.tolist() for p in twin.parameters()]


def test_the_dictionary_resumes_too() -> None:
    torch.manual_seed(1)
    model = Net()
    optimizer = steprule.AdamW(model, lr=0.02 * cosine(20))
    train(model, optimizer, range(4))
    twin = copy.deepcopy(model)
    saved = copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, range(4, 8))
    other = steprule.AdamW(twin, lr=0.02 * cosine(20))
    other.load_state_dict(saved)
    train(twin, other, range(4, 8))
    assert same(dict(model.state_dict()), dict(twin.state_dict()))


def test_a_changed_schedule_wins_and_is_said(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    save(tmp_path / "run", steprule.SGD(model, lr=0.1 * cosine(10)))
    other = steprule.SGD(model, lr=0.1 * linear(10))
    with pytest.warns(UserWarning, match=r"lr of group 0 is 0\.1 \* linear\(10\) now, which is not what was saved"):
        load(tmp_path / "run", other)
    with pytest.warns(UserWarning, match=r"lr of group 0 is 0\.1 \* linear\(10\) now"):
        other.load_state_dict(steprule.SGD(model, lr=0.1).state_dict())


def test_a_model_that_refuses_leaves_the_optimizer_and_its_steps(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = steprule.SGD(model, lr=0.1 * cosine(10), momentum=0.9)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    save(tmp_path / "run", optimizer, model)
    twin = nn.Linear(3, 2)
    other = steprule.SGD(twin, lr=0.1 * cosine(10), momentum=0.9)
    twin.register_load_state_dict_post_hook(lambda module, keys: 1 / 0)
    with pytest.raises(steprule.CheckpointError, match="nothing was loaded: ZeroDivisionError"):
        load(tmp_path / "run", other, twin)
    assert other.state_dict()["steprule"]["step"] == 0
    assert not other.state
