"""Random numbers of a rule: the same bits everywhere, and random; and values as they will be stored."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

from steprule import Optimizer
from steprule.kernels.entry import Entry
from steprule.rule import RuleError, array, normal, stored, uniform
from steprule.rule.trace import trace

INTERPRETER = pytest.mark.skipif(
    find_spec("triton") is None or torch.cuda.is_available(), reason="Triton's interpreter is not switched on"
)
BACKENDS = pytest.mark.parametrize("backend", ["llvm", "eager", pytest.param("triton", marks=INTERPRETER)])


class Draws(Optimizer):
    """Keeps what it drew."""

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        s.u, s.n, s.v = uniform(), normal(), uniform()
        return p - g


def drawing(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32, **options: Any) -> tuple[list[Tensor], Draws]:
    params = [torch.zeros(shape, dtype=dtype).requires_grad_() for shape in shapes]
    for p in params:
        p.grad = torch.ones_like(p)
    return params, Draws([(f"w{i}", p) for i, p in enumerate(params)], {}, **options)


def drawn(optimizer: Optimizer, p: Tensor) -> Tensor:
    return torch.stack([optimizer.state[p][name].double() for name in ("u", "n", "v")])


def test_every_backend_and_dtype_draws_the_same() -> None:
    found = []
    for backend in ("llvm", "eager", *(["triton"] if not INTERPRETER.args[0] else [])):
        params, optimizer = drawing((70, 90), (5,), seed=3, backend=backend)
        optimizer.step()
        optimizer.step()
        found.append([drawn(optimizer, p) for p in params])
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))
    params, optimizer = drawing((70, 90), (5,), seed=3, dtype=torch.float64)
    optimizer.step()
    optimizer.step()
    for p, known in zip(params, found[0], strict=True):
        assert torch.equal(drawn(optimizer, p)[::2], known[::2])
        torch.testing.assert_close(drawn(optimizer, p), known, rtol=1e-5, atol=1e-6)


@BACKENDS
def test_the_numbers_are_even_and_normal(backend: str) -> None:
    (p,), optimizer = drawing((300, 400) if backend != "triton" else (100, 200), backend=backend)
    optimizer.step()
    u, n, v = (line.flatten() for line in drawn(optimizer, p))
    count = len(u)
    assert 0 <= u.min() < 40 / count
    assert 1 - 40 / count < u.max() < 1
    for x, mean, deviation in ((u, 0.5, 12**-0.5), (n, 0.0, 1.0)):
        assert abs(x.mean() - mean) < 5 * deviation / count**0.5
        assert abs(x.std() / deviation - 1) < 5 / count**0.5
        for shift in (1, 2, 400, 401):  # neighbours know nothing of each other
            assert abs(torch.corrcoef(torch.stack([x[shift:], x[:-shift]]))[0, 1]) < 5 / count**0.5
    assert abs(torch.corrcoef(torch.stack([u, v]))[0, 1]) < 5 / count**0.5
    # the largest gap between the distributions, as Kolmogorov and Smirnov test it
    ranks = torch.arange(1, count + 1, dtype=torch.float64) / count
    for x in (u, torch.special.ndtr(n)):
        assert (x.sort().values - ranks).abs().max() < 2 / count**0.5
    # every bit is as often set
    whole = (u * 2**24).long()
    for bit in range(24):
        assert abs((whole >> bit & 1).double().mean() - 0.5) < 5 * 0.5 / count**0.5


def test_normal_is_the_inverse_of_the_distribution() -> None:
    (p,), optimizer = drawing((200_000,), dtype=torch.float64)
    optimizer.step()
    n = optimizer.state[p]["n"]
    assert 4 < n.abs().max() < 5.4
    steps = (torch.special.ndtr(n) * 2**23 - 0.5).abs()
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=3.0)  # of 2**23 places


def test_what_the_numbers_depend_on() -> None:
    (p, q), optimizer = drawing((40, 50), (40, 50), seed=1)
    optimizer.step()
    first = drawn(optimizer, p)
    assert not (first == drawn(optimizer, q)).any(-1).any(-1)[1]
    optimizer.step()
    assert (drawn(optimizer, p) == first).double().mean() < 1e-3
    (p, _), other = drawing((40, 50), (40, 50), seed=2)
    other.step()
    assert (drawn(other, p) == first).double().mean() < 1e-3
    assert (first[0] == first[2]).double().mean() < 1e-3


def test_the_numbers_do_not_depend_on_threads_or_on_other_parameters(tmp_path: Any) -> None:
    (p, q, _), optimizer = drawing((300, 500), (40, 50), (3,))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        for _ in range(3):
            optimizer.step()
    finally:
        torch.set_num_threads(before)
    (a, b, c), other = drawing((300, 500), (40, 50), (3,))
    other.step()
    a.grad = c.grad = None
    other.step()
    resumed = Draws([("w0", a), ("w1", b), ("w2", c)], {})
    resumed.load_state_dict(copy.deepcopy(other.state_dict()))
    resumed.step()
    assert torch.equal(drawn(resumed, b), drawn(optimizer, q))
    assert torch.equal(drawn(resumed, b)[0], optimizer.state[q]["u"].double())
    a.grad = torch.ones_like(a)
    b.grad = None
    resumed.step()
    resumed.step()
    assert torch.equal(drawn(resumed, a), drawn(optimizer, p))


@pytest.mark.parametrize("backend", ["llvm", "eager"])
def test_places_are_those_of_the_whole_parameter(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,), optimizer = drawing((6, 5), backend=backend)
    optimizer.step()
    monkeypatch.setattr(Entry, "origin", property(lambda self: 20))
    (part,), sharded = drawing((2, 5), backend=backend)
    sharded.step()
    assert torch.equal(drawn(sharded, part), drawn(optimizer, whole)[:, 4:])
    monkeypatch.setattr(Entry, "origin", property(lambda self: 2**33 + 20))
    (far,), sharded = drawing((2, 5), backend=backend)
    sharded.step()
    assert not torch.equal(drawn(sharded, far), drawn(optimizer, whole)[:, 4:])


@pytest.mark.parametrize("backend", ["llvm", "eager"])
def test_rows_of_a_sparse_gradient_draw_what_is_theirs(backend: str) -> None:
    (p,), optimizer = drawing((6, 5), backend=backend)
    optimizer.step()
    whole = drawn(optimizer, p)
    (q,), sparse = drawing((6, 5), backend=backend)
    q.grad = torch.sparse_coo_tensor(torch.tensor([[4, 1]]), torch.ones(2, 5), (6, 5), check_invariants=True)
    sparse.step()
    assert torch.equal(drawn(sparse, q)[:, [1, 4]], whole[:, [1, 4]])
    assert not drawn(sparse, q)[:, [0, 2, 3, 5]].any()


@pytest.mark.parametrize("backend", ["llvm", "eager"])
def test_places_are_those_in_memory(backend: str) -> None:
    (p,), optimizer = drawing((2, 3, 4, 5), backend=backend)
    optimizer.step()
    q = torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    q.grad = torch.ones_like(q)
    other = Draws([("w0", q)], {}, backend=backend)
    other.step()
    flat = other.state[q]["u"].permute(0, 2, 3, 1).reshape(-1)
    assert torch.equal(flat, optimizer.state[p]["u"].reshape(-1))


def test_a_draw_outside_of_a_rule_and_a_wrong_seed_are_refused() -> None:
    with pytest.raises(RuleError, match="only while a rule is traced"):
        uniform()
    with pytest.raises(ValueError, match="Invalid seed value: -1"):
        drawing((2,), seed=-1)


@pytest.mark.parametrize("seed", [1.5, True, -1, float("nan")])
def test_a_seed_is_a_whole_number(seed: Any) -> None:
    with pytest.raises(ValueError, match="Invalid seed"):
        drawing((2,), seed=seed)
    _, optimizer = drawing((2,))
    with pytest.raises(ValueError, match="Invalid seed"):
        optimizer.add_param_group({"params": [("more", torch.ones(1, requires_grad=True))], "seed": seed})
    assert len(optimizer.param_groups) == 1


class Kahan(Optimizer):
    """Sums up what rounding takes from bfloat16 weights."""

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        step = s.lost - h.lr * g
        s.lost = step - (stored(p + step) - p)
        return p + step


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kahan_sums_up_what_rounding_takes(backend: str, dtype: torch.dtype) -> None:
    p = torch.ones(40, dtype=dtype, requires_grad=True)
    plain, lost = torch.ones(40, dtype=dtype), torch.zeros(40, dtype=dtype)
    optimizer = Kahan([p], dict(lr=1e-4), backend=backend)
    for k in range(100):
        p.grad = torch.linspace(0.5, 2, 40).to(dtype)
        optimizer.step()
        g = p.grad.float()
        step = lost.float() - torch.tensor(1e-4) * g
        new = (plain.float() + step).to(dtype)
        lost = (step - (new.float() - plain.float())).to(dtype)
        plain = new
        assert torch.equal(p.detach(), plain), k
        assert torch.equal(optimizer.state[p]["lost"], lost)
    exact = 1 - 0.01 * torch.linspace(0.5, 2, 40)
    assert (p.detach().float() - exact).abs().max() < 2 * torch.finfo(dtype).eps


@BACKENDS
def test_what_is_stored_in_a_slot_of_another_dtype(backend: str) -> None:
    class Twice(Optimizer):
        slots = {"short": array(dtype="bfloat16")}  # noqa: RUF012

        def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            held = stored(p * 1.001 + s.short, s.short)
            s.short = p * 1.001
            return held + 0 * stored(g)

    p = torch.linspace(-3, 3, 33).requires_grad_()
    expected = (p.detach() * torch.tensor(1.001)).bfloat16().float()
    p.grad = torch.ones(33)
    Twice([p], {}, backend=backend).step()
    assert torch.equal(p.detach(), expected)


def test_rules_say_that_they_draw() -> None:
    program = trace(lambda p, g, s, h: p - uniform() * g, {"seed": 0})
    assert program.uses_step
    assert "random(24 bits)" in str(program)
    assert len(str(program).splitlines()) == 2
