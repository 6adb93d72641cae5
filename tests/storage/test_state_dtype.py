"""Slots in another dtype than the parameter's: what they hold, what is refused, and what is loaded from what."""

import copy
import re
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from held_state import Make, gradients, hashed, run, stochastically_rounded
from hypothesis import given, settings
from hypothesis import strategies as st

import steprule
from steprule import SGD, Adagrad, AdamW, Lamb, Lion, RMSprop
from steprule.modifiers import EMA
from steprule.rule import lerp, sqrt

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@settings(deadline=None, max_examples=25)
@given(
    dtype=st.sampled_from(DTYPES),
    asked=st.sampled_from(["float32", "bfloat16", {"exp_avg_sq": "bfloat16"}, {"exp_avg": "bfloat16"}]),
    shape=st.sampled_from([(3,), (5, 7), (40, 300), (2, 3, 8, 9)]),
    kind=st.sampled_from([AdamW, Lamb]),
)
def test_every_kernel_gives_the_same_bits(dtype: torch.dtype, asked: Any, shape: tuple[int, ...], kind: Make) -> None:
    grads = gradients(shape, 3, dtype)
    ones = [
        run(lambda p, b=backend: kind(p, lr=1e-2, state_dtype=asked, backend=b), torch.ones(shape, dtype=dtype), grads)
        for backend in ("llvm", "eager")
    ]
    for name, value in ones[0][1].items():
        if kind is AdamW:  # norms are added up in another order
            assert torch.equal(value, ones[1][1][name]), name
        formats = asked if isinstance(asked, dict) else dict.fromkeys(("exp_avg", "exp_avg_sq"), asked)
        full = torch.float32 if name == "exp_avg_sq" and dtype == torch.float16 else dtype
        wanted = getattr(torch, formats[name]) if name in formats else torch.float32 if name == "step" else full
        assert value.dtype == wanted
    if kind is AdamW:
        assert torch.equal(ones[0][0], ones[1][0])


def test_second_moments_are_rounded_by_the_random_bits_of_element_step_parameter_and_slot() -> None:
    grads = gradients((70, 50), 2, torch.float32)
    _, state, _ = run(
        lambda p: AdamW(p, betas=(0.9, 0.99), seed=5, state_dtype={"exp_avg_sq": "bfloat16"}),
        torch.ones(70, 50),
        grads,
    )
    v = np.zeros((70, 50), np.float32)
    tag, key = (zlib.crc32(text) for text in (b"exp_avg_sq", b"0 of group 0"))
    index = np.arange(3500).reshape(70, 50)
    for step, grad in enumerate(grads, 1):
        g = grad.numpy()
        v = np.float32(0.99) * v + np.float32(1 - 0.99) * g * g
        v = stochastically_rounded(v, hashed(index, 5, tag, key, step))
    np.testing.assert_array_equal(state["exp_avg_sq"].float().numpy(), v)


def test_a_second_moment_in_bfloat16_follows_changes_of_less_than_half_a_unit() -> None:
    grads = [torch.full((4096,), 1.0)] * 20 + [torch.full((4096,), 0.5)] * 1000

    def second(asked: Any) -> torch.Tensor:
        _, state, _ = run(lambda p: AdamW(p, betas=(0.9, 0.999), state_dtype=asked), torch.ones(4096), grads)
        mean: torch.Tensor = state["exp_avg_sq"].double().mean()
        return mean

    assert abs(second("bfloat16") / second(None) - 1) < 2e-3


def test_float16_keeps_second_moments_in_float32_and_says_so() -> None:
    grads = gradients((50, 40), 60, torch.float16, scale=1e-3)
    start = torch.zeros(50, 40)
    moved, _, optimizer = run(lambda p: AdamW(p, lr=1e-3, weight_decay=0, eps=1e-12), start.half(), grads)
    wide, _, _ = run(lambda p: AdamW(p, lr=1e-3, weight_decay=0, eps=1e-12), start, [g.float() for g in grads])
    assert (moved.float() - wide).norm() < 0.02 * wide.norm()
    assert "exp_avg_sq in float32" in optimizer.explain()


class Own(steprule.Optimizer):
    """A rule of one's own, whose running mean of squares nobody declares."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, dict(lr=0.1, beta=0.99), **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        s.square = lerp(s.square, g * g, 1 - h.beta)
        s.mean = lerp(s.mean, g, 0.1)
        return p - h.lr * s.mean / (sqrt(s.square) + 1e-8)


def test_a_rule_of_ones_own_is_known_to_keep_squares() -> None:
    _, _, optimizer = run(lambda p: Own(p, state_dtype="bfloat16"), torch.ones(9), gradients((9,), 1, torch.float32))
    program = optimizer._workings.planner.plan.launches[0].program
    assert {slot.name: slot.positive for slot in program.slots} == {"square": True, "mean": False}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: Adagrad(p, state_dtype="bfloat16"), "sum of Adagrad: it only grows"),
        (lambda p: AdamW(p, amsgrad=True, state_dtype="bfloat16"), "max_exp_avg_sq of AdamW: it only grows"),
        (lambda p: AdamW(p, modifiers=[EMA()], state_dtype="bfloat16"), "ema_mean of AdamW: it begins as the weights"),
        (lambda p: steprule.ASGD(p, state_dtype="bfloat16"), "ax of ASGD: it is an average"),
        (lambda p: steprule.Rprop(p, state_dtype="bfloat16"), "of Rprop"),
        (lambda p: steprule.SOAP(p, state_dtype="bfloat16"), "has a matrix of another shape"),
        (lambda p: RMSprop(p, centered=True, state_dtype="bfloat16"), "centered=True"),
        (lambda p: steprule.LBFGS(p, state_dtype="float32"), "LBFGS does not support state_dtype"),
        (lambda p: AdamW(p, state_dtype="bfloat"), "did you mean 'bfloat16'"),
        (lambda p: AdamW(p, state_dtype=torch.bfloat16), "did you mean 'bfloat16'"),
        (lambda p: AdamW(p, state_dtype={"exp_avg": "fp8"}), "for the slot 'exp_avg'"),
        (lambda p: AdamW(p, state_dtype={"exp_av": "bfloat16"}), "'exp_av', but AdamW has exp_avg, exp_avg_sq"),
        (lambda p: AdamW(p, differentiable=True, state_dtype="bfloat16"), "differentiable=True"),
        (lambda p: AdamW(p, capturable=True, state_dtype="bfloat16"), "capturable=True"),
    ],
)
def test_what_can_not_be_held_so_is_refused_by_name(make: Make, words: str) -> None:
    weight = torch.ones(6, 5, requires_grad=True)
    weight.grad = torch.ones(6, 5)
    with pytest.raises(ValueError, match=re.escape(words)):
        make([weight]).step()
    assert torch.equal(weight, torch.ones(6, 5))


def test_slots_that_may_be_are_held_beside_those_that_may_not() -> None:
    _, state, _ = run(
        lambda p: AdamW(p, amsgrad=True, state_dtype={"exp_avg": "bfloat16"}),
        torch.ones(6),
        gradients((6,), 2, torch.float32),
    )
    assert {n: v.dtype for n, v in state.items() if n != "step"} == {
        "exp_avg": torch.bfloat16,
        "exp_avg_sq": torch.float32,
        "max_exp_avg_sq": torch.float32,
    }


def test_groups_and_overrides_hold_state_each_in_its_own_way() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))
    optimizer = AdamW(model, state_dtype="bfloat16", overrides={torch.nn.LayerNorm: dict(state_dtype=None)})
    model(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()
    held = {n: optimizer.state[p]["exp_avg"].dtype for n, p in model.named_parameters()}
    assert (held["0.weight"], held["1.weight"]) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize(("first", "then"), [("bfloat16", None), (None, "bfloat16"), ("float32", "bfloat16")])
def test_a_group_may_change_how_its_state_is_held(first: Any, then: Any) -> None:
    grads = gradients((30,), 6, torch.float32)
    weight = torch.ones(30, requires_grad=True)
    optimizer = Lion([weight], state_dtype=first)
    for k, grad in enumerate(grads):
        if k == 3:
            before = optimizer.state[weight]["exp_avg"].clone()
            optimizer.param_groups[0]["state_dtype"] = then
        weight.grad = grad.clone()
        optimizer.step()
        if k == 3:
            expected = torch.lerp(before.float(), grad, 0.01)
            torch.testing.assert_close(optimizer.state[weight]["exp_avg"].float(), expected, rtol=1e-2, atol=1e-6)
    assert optimizer.state[weight]["exp_avg"].dtype == getattr(torch, then or first)


@pytest.mark.parametrize("saved", [None, "float32", "bfloat16"])
@pytest.mark.parametrize("loaded", [None, "float32", "bfloat16"])
def test_loading_converts_to_how_state_is_held_here(saved: Any, loaded: Any) -> None:
    grads, start = gradients((20, 30), 4, torch.bfloat16), torch.ones(20, 30, dtype=torch.bfloat16)
    weight, state, optimizer = run(lambda p: AdamW(p, state_dtype=saved), start, grads)
    other = weight.clone().requires_grad_()
    new = AdamW([other], state_dtype=loaded)
    new.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert new.param_groups[0]["state_dtype"] == loaded
    held = new.state[other]["exp_avg_sq"]
    assert held.dtype == getattr(torch, loaded or saved or "bfloat16")
    torch.testing.assert_close(held.float(), state["exp_avg_sq"].float(), rtol=2**-8, atol=0)
    if saved == loaded:
        for w, o in ((weight, optimizer), (other, new)):
            o.param_groups[0]["params"][0].grad = grads[0].clone()
            o.step()
            assert w.dtype == torch.bfloat16
        assert torch.equal(optimizer.param_groups[0]["params"][0], other)


def test_what_torch_saved_is_loaded_into_float32_and_back() -> None:
    grads, start = gradients((20, 30), 3, torch.bfloat16), torch.ones(20, 30, dtype=torch.bfloat16)
    _, state, theirs = run(lambda p: torch.optim.AdamW(p), start, grads)
    weight = start.clone().requires_grad_()
    optimizer = AdamW([weight], state_dtype="float32")
    optimizer.load_state_dict(theirs.state_dict())
    held = optimizer.state[weight]["exp_avg"]
    assert held.dtype == torch.float32
    assert torch.equal(held, state["exp_avg"].float())
    other = torch.optim.AdamW([start.clone().requires_grad_()])
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(other.state[other.param_groups[0]["params"][0]]["exp_avg"], state["exp_avg"])


def test_threads_make_no_difference() -> None:
    grads, found = gradients((300, 1000), 2, torch.float32), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(run(lambda p: AdamW(p, state_dtype="bfloat16"), torch.ones(300, 1000), grads))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1]["exp_avg_sq"], found[1][1]["exp_avg_sq"])


def test_infinities_and_nan_stay_visible() -> None:
    weight = torch.ones(8, requires_grad=True)
    optimizer = AdamW([weight], state_dtype="bfloat16")
    weight.grad = torch.tensor([1.0, torch.inf, -torch.inf, torch.nan, 0.0, 1e-30, 1e30, -1.0])
    optimizer.step()
    second = optimizer.state[weight]["exp_avg_sq"]
    assert second[1:4].isinf().tolist() == [True, True, False]
    assert bool(second[3].isnan())
    assert second[4] == 0


def test_a_group_of_sgd_without_momentum_holds_nothing() -> None:
    _, state, _ = run(
        lambda p: SGD(p, lr=0.1, state_dtype="bfloat16"), torch.ones(4), gradients((4,), 1, torch.float32)
    )
    assert state == {}
