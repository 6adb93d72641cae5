"""A run that was saved and resumed ends with the same bits as one that was not, for every algorithm."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from every_algorithm import ALGORITHMS
from torch import nn

import steprule
from steprule.checkpoint import load, save
from steprule.schedules import cosine, linear, warmup

DENSE = [name for name in ALGORITHMS if name not in ("SparseAdam", "LBFGS", "Muon")]
SPARSE = [name for name in ALGORITHMS if name not in ("LBFGS", "Muon", "Adafactor", "Lamb")]
OPTIONS = {
    "SGD": [{"momentum": 0.9, "nesterov": True}],
    "RMSprop": [{"momentum": 0.9, "centered": True}],
    "Adam": [{"amsgrad": True}],
    "Adagrad": [{"initial_accumulator_value": 0.1}],
}


class Net(nn.Module):
    """A little of everything: a convolution, a norm, an embedding, a layer that is not always used."""

    def __init__(self, sparse: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 4, sparse=sparse)
        self.conv = nn.Conv1d(4, 3, 2)
        self.norm = nn.BatchNorm1d(3)
        self.extra = nn.Linear(3, 3)
        self.late = nn.Linear(3, 2)

    def forward(self, words: torch.Tensor, step: int) -> torch.Tensor:
        x = self.norm(self.conv(self.embedding(words).transpose(1, 2))).mean(-1)
        if step % 3:
            x = x + self.extra(x)
        return self.late(x)


def batch(step: int) -> torch.Tensor:
    return torch.randint(0, 11, (6, 5), generator=torch.Generator().manual_seed(step))


def train(model: Net, optimizer: torch.optim.Optimizer, begin: int, end: int) -> None:
    for step in range(begin, end):
        model.conv.bias.requires_grad_(step % 4 != 1)
        optimizer.zero_grad()
        model(batch(step), step).square().sum().backward()
        optimizer.step()


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def early(model: Net) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if not name.startswith("late.")]


@pytest.mark.parametrize(
    ("algorithm", "options"), [(name, options) for name in DENSE for options in [{}, *OPTIONS.get(name, [])]]
)
def test_with_a_group_added_frozen_parameters_missing_gradients_and_schedules(
    tmp_path: Path, algorithm: str, options: dict[str, object]
) -> None:
    def made(seed: int) -> tuple[Net, steprule.Optimizer]:
        torch.manual_seed(seed)
        model = Net()
        rate = 0.02 * warmup(3, 0.1).then(cosine(20))
        return model, getattr(steprule, algorithm)(early(model), lr=rate, **options)

    def add(model: Net, optimizer: steprule.Optimizer) -> None:
        named = [(f"late.{name}", p) for name, p in model.late.named_parameters()]
        optimizer.add_param_group({"params": named, "lr": 0.03 * linear(30)})

    model, optimizer = made(1)
    train(model, optimizer, 0, 4)
    add(model, optimizer)
    train(model, optimizer, 4, 7)
    save(tmp_path / "run", optimizer, model)
    twin, other = made(2)
    add(twin, other)
    load(tmp_path / "run", other, twin)
    assert same(optimizer.state_dict(), other.state_dict())
    train(model, optimizer, 7, 12)
    train(twin, other, 7, 12)
    assert same(dict(model.state_dict()), dict(twin.state_dict()))
    assert same(optimizer.state_dict(), other.state_dict())
    assert optimizer.param_groups[1]["lr"] == other.param_groups[1]["lr"] == 0.03 * linear(30)(11)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("algorithm", DENSE)
def test_with_another_number_of_threads(tmp_path: Path, threads: None, algorithm: str) -> None:
    def made(seed: int) -> tuple[nn.Linear, steprule.Optimizer]:
        torch.manual_seed(seed)
        model = nn.Linear(900, 400)
        return model, getattr(steprule, algorithm)(model, lr=0.02, clip_norm=1.0)

    def train(model: nn.Linear, optimizer: steprule.Optimizer, begin: int, end: int) -> None:
        for step in range(begin, end):
            generator = torch.Generator().manual_seed(step)
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()

    torch.set_num_threads(3)
    model, optimizer = made(1)
    train(model, optimizer, 0, 3)
    save(tmp_path / "run", optimizer, model)
    train(model, optimizer, 3, 6)
    torch.set_num_threads(1)
    twin, other = made(2)
    load(tmp_path / "run", other, twin)
    train(twin, other, 3, 6)
    assert same(dict(model.state_dict()), dict(twin.state_dict()))
    assert same(optimizer.state_dict(), other.state_dict())


@pytest.mark.parametrize("algorithm", SPARSE)
def test_with_sparse_gradients(tmp_path: Path, algorithm: str) -> None:
    def made(seed: int) -> tuple[nn.Embedding, steprule.Optimizer]:
        torch.manual_seed(seed)
        table = nn.Embedding(11, 4, sparse=True)
        return table, getattr(steprule, algorithm)(table, lr=0.02)

    def train(table: nn.Embedding, optimizer: steprule.Optimizer, begin: int, end: int) -> None:
        for step in range(begin, end):
            optimizer.zero_grad()
            table(batch(step)[:2]).square().sum().backward()
            optimizer.step()

    table, optimizer = made(1)
    train(table, optimizer, 0, 3)
    save(tmp_path / "run", optimizer, table)
    train(table, optimizer, 3, 6)
    twin, other = made(2)
    load(tmp_path / "run", other, twin)
    train(twin, other, 3, 6)
    assert same(dict(table.state_dict()), dict(twin.state_dict()))
    assert same(optimizer.state_dict(), other.state_dict())


@pytest.mark.parametrize("algorithm", [name for name in ("Muon", "Adafactor", "Lamb", "LBFGS") if name in ALGORITHMS])
@pytest.mark.parametrize("form", ["file", "dictionary"])
def test_those_that_are_not_elementwise(tmp_path: Path, algorithm: str, form: str) -> None:
    options = {"LBFGS": {"line_search_fn": "strong_wolfe", "history_size": 3}}.get(algorithm, {})

    def made(seed: int) -> tuple[nn.Module, steprule.Optimizer]:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 5), nn.Flatten(), nn.Linear(25, 4))
        return model, getattr(steprule, algorithm)(model, lr=0.02, **options)

    def train(model: nn.Module, optimizer: steprule.Optimizer, begin: int, end: int) -> None:
        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = (model(batch(0)) - 1).square().sum()
            loss.backward()
            return loss

        for _ in range(begin, end):
            optimizer.step(closure)

    model, optimizer = made(1)
    train(model, optimizer, 0, 3)
    twin, other = made(2)
    if form == "file":
        save(tmp_path / "run", optimizer, model)
        load(tmp_path / "run", other, twin)
    else:
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        twin.load_state_dict(model.state_dict())
    train(model, optimizer, 3, 6)
    train(twin, other, 3, 6)
    assert same(dict(model.state_dict()), dict(twin.state_dict()))
    assert same(optimizer.state_dict(), other.state_dict())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_in_every_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    def made(seed: int) -> tuple[nn.Module, steprule.Optimizer]:
        torch.manual_seed(seed)
        model = nn.Linear(5, 3, dtype=dtype)
        return model, steprule.AdamW(model, lr=0.02)

    def train(model: nn.Module, optimizer: steprule.Optimizer, begin: int, end: int) -> None:
        for step in range(begin, end):
            optimizer.zero_grad()
            model(batch(step)[:, :5].to(dtype)).square().sum().backward()
            optimizer.step()

    model, optimizer = made(1)
    train(model, optimizer, 0, 3)
    save(tmp_path / "run", optimizer, model)
    train(model, optimizer, 3, 6)
    twin, other = made(2)
    load(tmp_path / "run", other, twin)
    train(twin, other, 3, 6)
    assert [p.tolist() for p in model.parameters()] == [p.tolist() for p in twin.parameters()]


def test_the_dictionary_resumes_too() -> None:
    torch.manual_seed(1)
    model = Net()
    optimizer = steprule.AdamW(model, lr=0.02 * cosine(20))
    train(model, optimizer, 0, 4)
    twin = copy.deepcopy(model)
    saved = copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, 4, 8)
    other = steprule.AdamW(twin, lr=0.02 * cosine(20))
    other.load_state_dict(saved)
    train(twin, other, 4, 8)
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
    with pytest.raises(ZeroDivisionError):
        load(tmp_path / "run", other, twin)
    assert other.state_dict()["steprule"]["step"] == 0
    assert not other.state
