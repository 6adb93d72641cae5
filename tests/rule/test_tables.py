"""Functions of whole matrices with state of their own: Shampoo and SOAP as short rules, against independent loops."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from tensors import grad_of
from torch import Tensor

from steprule import Optimizer
from steprule.kernels import matrices
from steprule.rule import (
    RuleError,
    array,
    fraction,
    lerp,
    matrix,
    norm,
    rank,
    scalar,
    sqrt,
    square,
    sum,
    table,
    trace,
    where,
)

INTERPRETER = pytest.mark.skipif(
    find_spec("triton") is None or torch.cuda.is_available(), reason="Triton's interpreter is not switched on"
)
BACKENDS = pytest.mark.parametrize("backend", ["llvm", "eager", pytest.param("triton", marks=INTERPRETER)])
SHAPES = [(6, 5), (5, 6), (6, 5), (4, 3, 2, 2), (1, 7)]


def gathered(left: Tensor, right: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    return left + g @ g.mT, right + g.mT @ g


def root(stack: Tensor, eps: float) -> Tensor:
    """The inverse fourth root of each matrix."""
    values, vectors = torch.linalg.eigh(stack)
    return (vectors * (values.clamp(min=0) + eps).pow(-0.25)[:, None]) @ vectors.mT


def between(left: Tensor, g: Tensor, right: Tensor) -> Tensor:
    return left @ g @ right


class Shampoo(Optimizer):
    """Shampoo (Gupta et al., 2018), with inverse roots in every k-th step."""

    def __init__(self, params: Any, lr: float = 0.1, k: int = 1, block: int | None = None, **options: Any) -> None:
        side: dict[str, Any] = {"left": ("rows", "rows"), "right": ("columns", "columns")}
        self.slots = {name: table(*of, block=block) for name, of in side.items()}
        self.slots |= {f"{name}_root": table(*of, initial="identity", block=block) for name, of in side.items()}
        self.block = block
        super().__init__(params, dict(lr=lr, eps=1e-3, k=k), **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        s.left, s.right = matrix(gathered, s.left, s.right, g, returns=(s.left, s.right), block=self.block)
        for name in ("left", "right"):
            kept = getattr(s, f"{name}_root")
            found = matrix(root, getattr(s, name), h.eps, returns=kept, every=h.k, block=self.block)
            setattr(s, f"{name}_root", found)
        return p - h.lr * matrix(between, s.left_root, g, s.right_root, returns=g, block=self.block)


def shampoo_by_hand(p: Tensor, grads: list[Tensor | None], k: int, block: int) -> Tensor:
    w = p.detach().reshape(p.shape[0], -1).clone()
    for r in range(0, w.shape[0], block):
        for c in range(0, w.shape[1], block):
            x = w[r : r + block, c : c + block]
            left, right = torch.zeros(x.shape[0], x.shape[0]).double(), torch.zeros(x.shape[1], x.shape[1]).double()
            count = 0
            for whole in grads:
                if whole is None:
                    continue
                g = whole.reshape(p.shape[0], -1)[r : r + block, c : c + block]
                left += g @ g.T
                right += g.T @ g
                if count % k == 0:
                    roots = [inverse_fourth_root(m + 1e-3 * torch.eye(len(m)).double()) for m in (left, right)]
                count += 1
                x -= 0.1 * roots[0] @ g @ roots[1]
    return w.reshape(p.shape)


def inverse_fourth_root(m: Tensor) -> Tensor:
    u, s, v = torch.linalg.svd(m)
    return u @ torch.diag(s ** (-0.25)) @ v


def gradient_or_none(shape: tuple[int, ...], step: int, i: int) -> Tensor | None:
    if (step + i) % 4 == 3:
        return None
    return torch.randn(shape, generator=torch.Generator().manual_seed(100 * step + i), dtype=torch.float64)


def stepped(kind: Any, steps: int, shapes: Any = SHAPES, **options: Any) -> tuple[list[Tensor], list[Tensor], Any]:
    params = [torch.linspace(-1, 1, torch.Size(s).numel(), dtype=torch.float64).reshape(s) for s in shapes]
    start = [p.clone() for p in params]
    optimizer = kind([p.requires_grad_() for p in params], **options)
    for step in range(steps):
        for i, p in enumerate(params):
            p.grad = gradient_or_none(p.shape, step, i)
        optimizer.step()
    return start, params, optimizer


@BACKENDS
@pytest.mark.parametrize(("k", "block"), [(1, None), (3, None), (2, 4), (1, 2)])
def test_shampoo_is_that_of_a_slow_loop(backend: str, k: int, block: int | None) -> None:
    start, params, optimizer = stepped(Shampoo, 8, k=k, block=block, backend=backend)
    for i, (p, q) in enumerate(zip(params, start, strict=True)):
        grads = [gradient_or_none(q.shape, step, i) for step in range(8)]
        torch.testing.assert_close(p.detach(), shampoo_by_hand(q, grads, k, block or 10**6), rtol=1e-8, atol=1e-9)
    shape = optimizer.state[params[0]]["left"].shape
    assert shape == {None: (6, 6), 4: (4, 4, 4), 2: (9, 2, 2)}[block]


def projected(g: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return left.mT @ g @ right


def projected_back(g: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return left @ g @ right.mT


def averaged(left: Tensor, right: Tensor, g: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    return left.lerp(g @ g.mT, 1 - beta), right.lerp(g.mT @ g, 1 - beta)


def refined(basis: Tensor, gram: Tensor) -> Tensor:
    """One step of the power iteration, made orthogonal."""
    return torch.linalg.qr(gram @ basis).Q


class Soap(Optimizer):
    """SOAP (Vyas et al., 2024): Adam in the basis of Shampoo, which is refined in every k-th step."""

    slots = {  # noqa: RUF012
        "left": table("rows", "rows"),
        "right": table("columns", "columns"),
        "left_basis": table("rows", "rows", "identity"),
        "right_basis": table("columns", "columns", "identity"),
    }

    def __init__(self, params: Any, lr: float = 0.1, k: int = 2, **options: Any) -> None:
        super().__init__(params, dict(lr=lr, betas=(0.9, 0.95), k=k), **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        beta1, beta2 = h.betas
        s.left, s.right = matrix(averaged, s.left, s.right, g, beta2, returns=(s.left, s.right))
        for name in ("left", "right"):
            basis = getattr(s, f"{name}_basis")
            setattr(s, f"{name}_basis", matrix(refined, basis, getattr(s, name), returns=basis, every=h.k))
        s.mean = lerp(s.mean, g, 1 - beta1)
        turned, mean = (matrix(projected, x, s.left_basis, s.right_basis) for x in (g, s.mean))
        s.square = lerp(s.square, square(turned), 1 - beta2)
        rate = h.lr * sqrt(1 - beta2**s.step) / (1 - beta1**s.step)
        return p - rate * matrix(projected_back, mean / (sqrt(s.square) + 1e-8), s.left_basis, s.right_basis)


def soap_by_hand(p: Tensor, grads: list[Tensor | None], k: int) -> Tensor:
    w = p.detach().reshape(p.shape[0], -1).clone()
    rows, columns = w.shape
    gram_l, gram_r = torch.zeros(rows, rows).double(), torch.zeros(columns, columns).double()
    q, r = torch.eye(rows).double(), torch.eye(columns).double()
    m, v, t = torch.zeros_like(w), torch.zeros_like(w), 0
    for whole in grads:
        if whole is None:
            continue
        g = whole.reshape(rows, columns)
        gram_l, gram_r = 0.95 * gram_l + 0.05 * g @ g.T, 0.95 * gram_r + 0.05 * g.T @ g
        if t % k == 0:
            q, r = torch.linalg.qr(gram_l @ q)[0], torch.linalg.qr(gram_r @ r)[0]
        t += 1
        m = 0.9 * m + 0.1 * g
        v = 0.95 * v + 0.05 * (q.T @ g @ r) ** 2
        u = q @ ((q.T @ m @ r) / (v.sqrt() + 1e-8)) @ r.T
        w -= 0.1 * (1 - 0.95**t) ** 0.5 / (1 - 0.9**t) * u
    return w.reshape(p.shape)


@BACKENDS
@pytest.mark.parametrize("k", [1, 3])
def test_soap_is_that_of_a_slow_loop(backend: str, k: int) -> None:
    shapes = [(4, 4), (3, 2, 2), (4, 4)]
    start, params, _ = stepped(Soap, 7, shapes, k=k, backend=backend)
    for i, (p, q) in enumerate(zip(params, start, strict=True)):
        grads = [gradient_or_none(q.shape, step, i) for step in range(7)]
        torch.testing.assert_close(p.detach(), soap_by_hand(q, grads, k), rtol=1e-6, atol=1e-7)


def test_work_of_every_third_step_is_not_done_in_between_and_stacks_are_batched() -> None:
    calls: list[tuple[int, ...]] = []

    def noted(stack: Tensor, eps: float) -> Tensor:
        calls.append(tuple(stack.shape))
        return root(stack, eps)

    class Noted(Shampoo):
        def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            s.left_root = matrix(noted, s.left, h.eps, returns=s.left_root, every=h.k)
            return p - h.lr * matrix(between, s.left_root, g, s.right_root, returns=g)

    params = [torch.ones(shape, requires_grad=True) for shape in ((4, 3), (4, 3), (2, 3))]
    optimizer = Noted(params, k=3)
    for _ in range(7):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert calls == [(2, 4, 4), (1, 2, 2)] * 3
    plan = optimizer._workings.planner.plan
    optimizer.step()
    assert optimizer._workings.planner.plan is plan


def test_it_is_saved_and_goes_on_to_the_bit() -> None:
    _, straight, _ = stepped(Shampoo, 6, k=4, block=4)
    params = [torch.linspace(-1, 1, torch.Size(s).numel(), dtype=torch.float64).reshape(s) for s in SHAPES]
    first = Shampoo([p.requires_grad_() for p in params], k=4, block=4)
    for step in range(6):
        for i, p in enumerate(params):
            p.grad = gradient_or_none(p.shape, step, i)
        if step == 3:
            saved = copy.deepcopy(first.state_dict())
            first = Shampoo(params, k=4, block=4)
            first.load_state_dict(saved)
        first.step()
    for p, q in zip(params, straight, strict=True):
        assert torch.equal(p, q)


def test_tables_are_of_float32_for_16_bits_and_of_float64_where_asked() -> None:
    seen: list[torch.dtype] = []

    def noted(left: Tensor, g: Tensor) -> Tensor:
        seen.extend([left.dtype, g.dtype])
        return left + g @ g.mT

    class Gram(Optimizer):
        slots = {"one": table("rows", "rows"), "two": table("rows", 2, 3.0, "float64")}  # noqa: RUF012

        def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            s.one = matrix(noted, s.one, g)
            s.two = matrix(lambda two: 2 * two, s.two, dtype="float64")
            return p - g

    p = torch.ones(3, 4, dtype=torch.bfloat16, requires_grad=True)
    p.grad = torch.ones_like(p)
    optimizer = Gram([p])
    optimizer.step()
    assert seen == [torch.float32] * 2
    state = optimizer.state[p]
    assert (state["one"].dtype, state["two"].dtype) == (torch.float32, torch.float64)
    assert state["one"].unique().tolist() == [4.0]
    assert state["two"].tolist() == [[6.0] * 2] * 3


class Shaped(Optimizer):
    """Tables whose shapes hyperparameters say."""

    slots = {  # noqa: RUF012
        "low": table("longer", rank("rank")),
        "part": table("shorter", fraction("part")),
        "square": table("rows", "rows", "identity", block="block", most="most"),
    }

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, dict(lr=0.1, rank=2, part=0.5, block=None, most=100), **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        s.low, s.part = matrix(lambda x: x + 1, s.low), matrix(lambda x: x + 1, s.part)
        s.square = matrix(lambda square, g: 2 * square, s.square, g, returns=s.square, block=h.block)
        return p - h.lr * g


def test_hyperparameters_say_the_shapes_of_tables() -> None:
    options: list[dict[str, Any]] = [{}, {"rank": 9, "part": 1.0}, {"most": 4}, {"block": 2}, {"part": 0.1}]
    params = [torch.ones(5, 3, requires_grad=True) for _ in options]
    optimizer = Shaped([{"params": [p], **own} for p, own in zip(params, options, strict=True)])
    for _ in range(2):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
    shapes = [[tuple(optimizer.state[p][name].shape) for name in ("low", "part", "square")] for p in params]
    assert shapes[0] == [(5, 2), (3, 2), (5, 5)]
    assert shapes[1] == [(5, 3), (3, 3), (5, 5)]
    assert shapes[2] == [(5, 2), (3, 2), (5, 1)]
    assert shapes[3] == [(5, 2), (3, 2), (6, 2, 2)]
    assert shapes[4] == [(5, 2), (3, 1), (5, 5)]
    assert optimizer.state[params[2]]["square"].unique().tolist() == [4.0]
    assert torch.equal(optimizer.state[params[0]]["square"], 4 * torch.eye(5))
    optimizer.param_groups[0]["rank"] = 1
    with pytest.raises(RuntimeError, match=r"state 'low' .* is \(5, 2\) .* replace it with a tensor of shape \(5, 1\)"):
        optimizer.step()


def test_a_shape_that_nobody_says_is_refused() -> None:
    def rule(p: Any, g: Any, s: Any, h: Any) -> Any:
        s.low = matrix(root, s.low, 1.0)
        return p - g

    with pytest.raises(RuleError, match=r"the table slot 'low' takes its shape from 'rnk', .*; did you mean 'rank'"):
        trace(rule, {"rank": 2}, {"low": table("rows", rank("rnk"))})
    with pytest.raises(RuleError, match=r"block= of matrix\(\) is a number or a hyperparameter, not \(rank \+ 1\)"):
        trace(lambda p, g, s, h: p - matrix(root, g, 1.0, block=h.rank + 1), {"rank": 2})


class Waiting(Optimizer):
    """Doubles a table in those steps in which a counter is full."""

    slots = {"table": table(1, 1, 1.0), "waited": scalar()}  # noqa: RUF012

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, dict(lr=0.1, wait=2.0), **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        waited = s.waited + 1
        due = waited >= h.wait
        s.waited = where(due, 0, waited)
        s.table = matrix(lambda x: 2 * x, s.table, returns=s.table, every=due)
        return p - h.lr * g


def test_a_condition_says_when_work_is_due() -> None:
    p = torch.ones(3, 2, requires_grad=True)
    optimizer = Waiting([p])
    seen = []
    for wait in [2, 2, 2, 2, 1, 1, 3, 3, 3]:
        optimizer.param_groups[0]["wait"] = float(wait)
        p.grad = torch.ones(3, 2)
        optimizer.step()
        seen.append(optimizer.state[p]["table"].item())
    assert seen == [1, 2, 2, 4, 8, 16, 16, 16, 32]


def wrong(value: Any) -> Any:
    def rule(p: Any, g: Any, s: Any, h: Any) -> Any:
        s.left = value(p, g, s, h)
        return p - g

    return lambda: trace(rule, {"k": 2.0}, {"left": table("rows", "rows"), "m": array()})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda p, g, s, h: s.left + 1, r"\(left\) is a table, not an array like the parameter"),
        (lambda p, g, s, h: norm(s.left), r"norm\(\) reduces an array, but \(left\) is a table"),
        (lambda p, g, s, h: sum(g), r"s.left is a table but is given one number"),
        (lambda p, g, s, h: matrix(root, g, 1.0), r"s.left is a table but is given an array"),
        (lambda p, g, s, h: setattr(s, "m", s.left) or s.left, r"s.m is no table but is given a table"),
        (lambda p, g, s, h: matrix(root, s.left, every=h.k, returns=g), r"every=k\) returns is kept in between"),
        (lambda p, g, s, h: matrix(root, s.left, every=s.left), r"every= of matrix\(\) is a number"),
        (lambda p, g, s, h: matrix(root, s.left, returns=1.0), r"returns= of matrix\(\) says by arrays and tables"),
    ],
)
def test_what_is_not_of_the_language_is_refused(value: Any, message: str) -> None:
    with pytest.raises(RuleError, match=message):
        wrong(value)()


def test_wrong_declarations_and_results_are_refused() -> None:
    with pytest.raises(RuleError, match="or a number, not 'row'"):
        table("row", "rows")  # type: ignore[arg-type]
    with pytest.raises(RuleError, match="block=0 is the largest number"):
        table("rows", "rows", block=0)
    p = torch.ones(3, 2, requires_grad=True)
    p.grad = torch.ones(3, 2)

    class Wrong(Optimizer):
        slots = {"left": table("rows", "rows")}  # noqa: RUF012

        def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            s.left = matrix(lambda left, g: g, s.left, g)
            return p - g

    with pytest.raises(RuntimeError, match=r"of shape \(3, 2\) and returned \(1, 3, 2\) where \(1, 3, 3\) is needed"):
        Wrong([p]).step()
    assert torch.equal(p, torch.ones(3, 2))


def test_a_large_stack_is_given_in_parts_and_the_results_take_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    def doubled(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape))
        return x * 2

    class Doubling(Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, dict(lr=0.5))

        def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            return p - h.lr * matrix(doubled, g)

    monkeypatch.setattr(matrices, "BATCH", 45)
    params = [torch.randn(4, 5, requires_grad=True) for _ in range(5)] + [torch.randn(7, 8, requires_grad=True)]
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.randn_like(p)
    Doubling(params).step()
    assert sorted(seen) == [(1, 4, 5), (1, 7, 8), (2, 4, 5), (2, 4, 5)]
    for p, old in zip(params, before, strict=True):
        torch.testing.assert_close(p.detach(), old - grad_of(p))

    class Wrong(Doubling):
        def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            return p - matrix(lambda x: x[:, :1], g)

    with pytest.raises(RuntimeError, match="a matrix function keeps the shape"):
        Wrong(params).step()
