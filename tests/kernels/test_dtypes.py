"""Parameters, gradients and state of every floating and complex dtype, and of different ones."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from kernel_cases import COMPILED, FLOATS, optimizer_of
from tensors import give, grad_of, leaf, normal
from torch import Tensor

from steprule import SGD, AdamW
from steprule.rule import array, matrix, mean, scalar, size, sum

HALVES = [torch.bfloat16, torch.float16]


def bits(t: Tensor) -> Tensor:
    return t.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[t.dtype.itemsize])


def assert_same_bits(found: Tensor, expected: Tensor) -> None:
    """The same bits, but that any NaN stands for any other."""
    numbers = ~expected.isnan()
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(bits(found)[numbers], bits(expected)[numbers])


def every_float32() -> Tensor:
    """Each pattern of the upper 16 bits with lower ones that are random, zero, half way, and next to half way."""
    upper = torch.arange(-(2**15), 2**15, dtype=torch.int32) << 16
    random = torch.randint(0, 2**16, (2**16,), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    lower = [random, *(torch.full_like(upper, v) for v in (0, 0x8000, 0x7FFF, 0x8001, 0xFFFF))]
    return torch.cat([upper | low for low in lower]).view(torch.float32)


def every_half_way(dtype: torch.dtype) -> Tensor:
    """float32 values half way between neighbours of float16, and one bit off it on either side."""
    known = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    known = known[known.isfinite()].sort().values
    middle = (known[1:] + known[:-1]) / 2
    return torch.cat([middle, torch.nextafter(middle, known[1:]), torch.nextafter(middle, known[:-1])])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_rounding_to_16_bits_is_torchs_to_the_bit(dtype: torch.dtype) -> None:
    values = torch.cat([every_float32(), every_half_way(dtype)])
    p = leaf(torch.zeros(len(values), dtype=dtype), values)

    optimizer = optimizer_of(lambda p, g, s, h: g, [p], "llvm")
    optimizer.step()

    assert_same_bits(p.detach(), values.to(dtype))
    assert p.isnan().sum() > 500


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_rounding_of_float64_to_16_bits_is_torchs_to_the_bit(dtype: torch.dtype) -> None:
    values = torch.cat([every_float32(), every_half_way(dtype)]).double()
    values = torch.cat([values, values * (1 + 2.0**-40), values * (1 - 2.0**-40), values * 1e300])
    p = leaf(torch.zeros_like(values), values)

    def store(p: Any, g: Any, s: Any, h: Any) -> Any:
        s.half = g
        return p

    optimizer = optimizer_of(store, [p], "llvm", {"half": array(dtype=str(dtype).removeprefix("torch."))})
    optimizer.step()

    assert_same_bits(optimizer.state[p]["half"], values.to(dtype))


@pytest.mark.parametrize("wide", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_16_bit_value_is_read_as_it_is(dtype: torch.dtype, wide: torch.dtype) -> None:
    values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    p = leaf(torch.zeros(len(values), dtype=wide), values)

    optimizer_of(lambda p, g, s, h: g, [p], "llvm").step()

    assert_same_bits(p.detach(), values.to(wide))


def momentum(p: Any, g: Any, s: Any, h: Any) -> Any:
    s.m = h.mu * s.m + g + h.decay * p
    return p - h.lr * s.m


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("dtypes", list(itertools.product(FLOATS, FLOATS, FLOATS)), ids=lambda d: "-".join(map(str, d)))
def test_every_mixture_of_parameter_gradient_and_state(dtypes: tuple[torch.dtype, ...], backend: str) -> None:
    of_param, of_grad, of_state = dtypes
    wide = torch.float64 if of_param == torch.float64 else torch.float32
    p = leaf(normal(1003, seed=1, dtype=of_param))
    slots = {"m": array(dtype=str(of_state).removeprefix("torch."))}
    optimizer = optimizer_of(momentum, [p], backend, slots, mu=0.75, decay=0.1, lr=0.3)
    q, m = p.detach().clone(), torch.zeros(1003, dtype=of_state)

    for step in range(3):
        g = normal(1003, seed=2 + step, dtype=of_grad)
        give(p, g)
        optimizer.step()
        new = m.to(wide) * 0.75 + g.to(wide) + q.to(wide) * 0.1
        m, q = new.to(of_state), (q.to(wide) - new * 0.3).to(of_param)

    assert_same_bits(p.detach(), q)
    assert_same_bits(optimizer.state[p]["m"], m)


SPECIAL = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, 1.0, -1e-8, 3e38])


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_nan_and_infinities_come_through_as_in_torch(dtype: torch.dtype, backend: str) -> None:
    g, start = torch.cartesian_prod(SPECIAL, SPECIAL).to(dtype).T
    p, q = leaf(start.clone(), g.clone()), leaf(start.clone(), g.clone())
    ours, theirs = AdamW([p], lr=0.1, backend=backend), torch.optim.AdamW([q], lr=0.1)
    for _ in range(3):
        ours.step()
        theirs.step()
    pairs = [(p.detach(), q.detach())] + [(ours.state[p][k], theirs.state[q][k]) for k in ("exp_avg", "exp_avg_sq")]
    for found, expected in pairs:
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(found, expected, rtol=8 * eps, atol=8 * eps, equal_nan=True)


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_nan_and_infinities_come_through_any_rule(dtype: torch.dtype, backend: str) -> None:
    g, start = torch.cartesian_prod(SPECIAL, SPECIAL).to(dtype).T
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    p = leaf(start.clone(), g.clone())
    optimizer_of(momentum, [p], backend, mu=0.75, decay=0.1, lr=0.3).step()
    new = 0.0 + g.to(wide) + start.to(wide) * 0.1
    assert_same_bits(p.detach(), (start.to(wide) - new * 0.3).to(dtype))


# Complex parameters are their real views.


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_complex_parameters_do_what_their_real_views_do(dtype: torch.dtype, backend: str) -> None:
    p = leaf(torch.cat([normal(35, seed=1, dtype=dtype), SPECIAL * (1 + 2j)]))
    q = leaf(torch.view_as_real(p).detach().clone())
    ours, theirs = (AdamW([x], lr=0.1, clip_norm=0.5, backend=backend) for x in (p, q))
    for step in range(4):
        p.grad = normal(42, seed=2 + step, dtype=dtype)
        q.grad = torch.view_as_real(p.grad).clone()
        ours.step()
        theirs.step()
    assert_same_bits(torch.view_as_real(p.detach()), q.detach())
    assert ours.state[p]["exp_avg"].dtype == dtype
    assert torch.equal(torch.view_as_real(ours.state[p]["exp_avg"]), theirs.state[q]["exp_avg"])


@pytest.mark.parametrize("backend", COMPILED)
def test_sizes_and_means_of_complex_parameters_are_those_of_the_real_view(backend: str) -> None:
    value = torch.tensor([[1 + 2j, 3 - 4j, 5j]])
    p, q, r = (leaf(value.clone(), torch.zeros_like(value)) for _ in range(3))

    optimizer_of(lambda p, g, s, h: 0 * p + mean(p), [p], backend).step()
    optimizer_of(lambda p, g, s, h: 0 * p + mean(p, "all"), [q], backend).step()
    optimizer_of(lambda p, g, s, h: 0 * p + size(p) + 10 * size(p, 1), [r], backend).step()

    expected = torch.view_as_real(value).mean().item()
    assert torch.view_as_real(p.detach()).unique().tolist() == pytest.approx([expected])
    assert torch.equal(p, q)
    assert torch.view_as_real(r.detach()).unique().tolist() == [36]


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_declared_slots_of_complex_parameters_are_complex(dtype: str, backend: str) -> None:
    def rule(p: Any, g: Any, s: Any, h: Any) -> Any:
        s.m = s.m + g
        s.start = s.start
        return p - s.m

    value = normal(9, dtype=torch.complex64)
    p = leaf(value.clone(), value.conj().resolve_conj())
    optimizer = optimizer_of(rule, [p], backend, {"m": array(dtype=dtype), "start": array("parameter", dtype)})
    optimizer.step()
    state = optimizer.state[p]
    expected = torch.complex128 if dtype == "float64" else torch.complex64
    assert state["m"].dtype == state["start"].dtype == expected
    torch.testing.assert_close(state["m"], grad_of(p).to(expected))
    torch.testing.assert_close(state["start"], value.to(expected))
    torch.testing.assert_close(p.detach(), value - grad_of(p))


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("complex_side", ["parameter", "state"])
def test_state_that_is_complex_where_the_parameter_is_not_is_refused(complex_side: str, backend: str) -> None:
    real, imaginary = torch.float32, torch.complex64
    of_p, of_state = (imaginary, real) if complex_side == "parameter" else (real, imaginary)
    p = leaf(torch.ones(4, dtype=of_p), torch.ones(4, dtype=of_p))
    optimizer = SGD([("net.weight", p)], momentum=0.9, backend=backend)
    optimizer.state[p]["momentum_buffer"] = torch.zeros(4, dtype=of_state)
    with pytest.raises(RuntimeError, match=r"state 'momentum_buffer' of parameter 'net\.weight' is torch"):
        optimizer.step()
    assert torch.equal(p.detach(), torch.ones(4, dtype=of_p))


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.complex64), (torch.complex128, torch.float64)], ids=str)
def test_parameter_and_gradient_must_both_be_complex_or_none(dtypes: tuple[torch.dtype, ...], backend: str) -> None:
    p = leaf(torch.ones(4, dtype=dtypes[0]))
    give(p, torch.ones(4, dtype=dtypes[1]))
    with pytest.raises(RuntimeError, match=f"parameter 'w' is {dtypes[0]}, its gradient {dtypes[1]}: both or none"):
        SGD([("w", p)], backend=backend).step()
    assert torch.equal(p.detach(), torch.ones(4, dtype=dtypes[0]))


@pytest.mark.parametrize("backend", COMPILED)
def test_another_default_device_and_dtype_change_nothing(backend: str) -> None:
    results = []
    for device, dtype in ((None, torch.float32), ("meta", torch.bfloat16)):
        p = leaf(normal(50), normal(50, seed=1))
        torch.set_default_device(device)
        torch.set_default_dtype(dtype)
        try:
            optimizer = AdamW([p], lr=0.1, clip_norm=1.0, l1=0.1, backend=backend)
            optimizer.step()
            optimizer.step()
            assert optimizer.grad_norm.device.type == optimizer.state[p]["step"].device.type == "cpu"
        finally:
            torch.set_default_device(None)
            torch.set_default_dtype(torch.float32)
        results.append(p.detach())
    assert torch.equal(*results)


@pytest.mark.parametrize("backend", COMPILED)
def test_matrix_steps_refuse_complex_parameters_and_vectors(backend: str) -> None:
    def rule(p: Any, g: Any, s: Any, h: Any) -> Any:
        return p - matrix(torch.neg, g)

    for p in (leaf(torch.ones(2, 2, dtype=torch.complex64)), leaf(torch.ones(3))):
        p.grad = torch.ones_like(p)
        with pytest.raises(RuntimeError, match="whole real matrices, but parameter 0 of group 0 is"):
            optimizer_of(rule, [p], backend).step()
        assert torch.equal(p.detach(), torch.ones_like(p))


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_matrix_steps_take_stacks_of_equal_shapes(dtype: torch.dtype, backend: str) -> None:
    stacks: list[Tensor] = []

    def transposed_product(x: Tensor, scale: float) -> Tensor:
        stacks.append(x)
        return scale * x @ x.transpose(-2, -1) @ x

    def rule(p: Any, g: Any, s: Any, h: Any) -> Any:
        s.m = s.m + g
        return p - matrix(transposed_product, s.m + p, h.scale) * h.lr

    shapes = [(3, 5), (5, 3), (3, 5), (2, 2, 3, 3), (0, 4), (4, 3)]
    params = [leaf(normal(*shape, seed=i, dtype=dtype)) for i, shape in enumerate(shapes)]
    if backend == "eager":
        params[5] = leaf(normal(3, 4, seed=5, dtype=dtype).t())
    for i, p in enumerate(params):
        p.grad = normal(*p.shape, seed=10 + i, dtype=dtype)
    before = [p.detach().clone() for p in params]
    groups = [{"params": params[:3]}, {"params": params[3:], "scale": 0.5}]

    optimizer_of(rule, groups, backend, scale=2.0, lr=0.1).step()

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert sorted(tuple(x.shape) for x in stacks) == [(1, 0, 0), (1, 2, 18), (1, 4, 3), (1, 5, 3), (2, 3, 5)]
    assert all(x.dtype == wide for x in stacks)
    for i, (p, start) in enumerate(zip(params, before, strict=True)):
        x = (grad_of(p).to(wide) + start.to(wide)).flatten(1)
        expected = start.to(wide) - ((2.0 if i < 3 else 0.5) * x @ x.t() @ x).reshape(p.shape) * 0.1
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(p.detach(), expected.to(dtype), rtol=8 * eps, atol=2 * eps)


def test_what_a_matrix_function_returns_must_have_the_shape() -> None:
    def cut(x: Tensor) -> Tensor:
        return x[:, 1:]

    p = leaf(torch.ones(3, 4), torch.ones(3, 4))
    with pytest.raises(RuntimeError, match=r"matrices of shape \(3, 4\) and returned \(1, 2, 4\) where \(1, 3, 4\)"):
        optimizer_of(lambda p, g, s, h: p - matrix(cut, g), [p]).step()
    assert torch.equal(p.detach(), torch.ones(3, 4))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_dtype_of_a_matrix_step_and_of_slots_can_be_chosen(dtype: torch.dtype) -> None:
    seen: list[torch.dtype] = []

    def note(x: Tensor) -> Tensor:
        seen.append(x.dtype)
        return x

    def rule(p: Any, g: Any, s: Any, h: Any) -> Any:
        s.count = s.count + 1
        return p - matrix(note, g, dtype="bfloat16")

    p = leaf(torch.zeros(3, 4, dtype=dtype), normal(3, 4, dtype=dtype))
    optimizer_of(rule, [p], "llvm", {"count": scalar()}).step()
    assert seen == [torch.bfloat16]
    assert torch.equal(-p.detach(), grad_of(p).bfloat16().to(dtype))


# What no compiled kernel takes.


def test_state_that_no_kernel_takes_goes_to_torch_operations() -> None:
    def rule(p: Any, g: Any, s: Any, h: Any) -> Any:
        s.count = s.count + (g > 0)
        return p + s.count

    p = leaf(torch.zeros(4), torch.tensor([1.0, -1.0, 2.0, 0.0]))
    optimizer = optimizer_of(rule, [p], slots={"count": array(dtype="float8_e5m2")})
    for _ in range(3):
        optimizer.step()
    assert optimizer.state[p]["count"].tolist() == [3, 0, 3, 0]
    assert p.tolist() == [6, 0, 6, 0]
    assert optimizer.explain().startswith("eager: state 'count' is torch.float8_e5m2")
    insisting = optimizer_of(
        rule, [leaf(torch.zeros(4), torch.ones(4))], "llvm", {"count": array(dtype=torch.float8_e5m2)}
    )
    with pytest.raises(RuntimeError, match=r"backend='llvm' can't serve parameter 0 of group 0: state 'count'"):
        insisting.step()


def test_float8_parameters_go_to_torch_operations() -> None:
    p = leaf(torch.ones(4).to(torch.float8_e4m3fn))
    p.grad_dtype = None
    p.grad = torch.ones(4)
    optimizer = optimizer_of(lambda p, g, s, h: p - 0.5 * g, [p])
    optimizer.step()
    assert p.float().tolist() == [0.5] * 4
    assert optimizer.explain().startswith("eager: the parameter is torch.float8_e4m3fn")


@pytest.mark.parametrize("backend", COMPILED)
def test_sums_of_16_bit_parameters_are_taken_in_double_precision(backend: str) -> None:
    p = leaf(torch.full((4096,), 1.0, dtype=torch.bfloat16), torch.zeros(4096, dtype=torch.bfloat16))
    optimizer_of(lambda p, g, s, h: 0 * p + sum(p) / 4096, [p], backend).step()
    assert p.unique().tolist() == [1.0]
