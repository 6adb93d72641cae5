"""Parameters whose gradients come and go: every step is what it would be if it were planned anew."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch
from comparing import same
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tensors import grad_of, normal
from torch import Tensor

import steprule
from steprule import schedules
from steprule.stepping.planning import Planner

SHAPES: list[tuple[int, ...]] = [(7,), (4, 3), (), (0, 2), (2, 3, 2, 2), (5, 2), (70, 300)]

MEASURED = ("grad_norm", "update_norm")
CASES: list[tuple[str, str, dict[str, Any], tuple[str, ...]]] = [
    (name, backend, options, MEASURED)
    for name, options in (
        ("SGD", {"momentum": 0.9}),
        ("AdamW", {"clip_norm": 1.0}),
        ("NAdam", {}),
        ("Lamb", {"clip_norm": 0.5}),
    )
    for backend in ("auto", "eager")
]
# in one pass that computes each element by itself, parameters are left out of a plan that has them all
CASES += [(name, "auto", {"lr": 0.05 * schedules.exponential(0.9)}, ()) for name in ("SGD", "AdamW", "NAdam", "ASGD")]
CASES += [("SGD", "auto", {"momentum": 0.9}, ()), ("AdamW", "auto", {"state_dtype": "8bit"}, ())]
SPARSE = "SGD", "AdamW"
"""The algorithms that take sparse gradients here, where nothing is measured and no state is in codes."""


def parameters_of_any_gradient() -> list[Tensor]:
    params = [normal(*shape, seed=i).requires_grad_() for i, shape in enumerate(SHAPES)]
    for p in params:
        p.grad_dtype = None
    return params


def turned(tensor: Tensor) -> Tensor:
    """The same values, lying otherwise in memory."""
    return tensor.transpose(0, -1).contiguous().transpose(0, -1) if tensor.ndim else tensor.clone()


def gradient_of_kind(kind: str, p: Tensor, seed: int) -> Tensor | None:
    if kind == "none":
        return None
    grad = normal(*p.shape, seed=seed)
    if kind == "sparse" and p.ndim and p.numel():
        return some_rows(grad, seed)
    if kind == "turned":
        return turned(grad)
    return grad.bfloat16() if kind == "bfloat16" else grad


def some_rows(grad: Tensor, seed: int) -> Tensor:
    """A sparse gradient of every other row, or of one."""
    rows = torch.arange(seed % 2, len(grad), 2) if seed % 3 else torch.tensor([len(grad) - 1])
    return torch.sparse_coo_tensor(rows[None], grad[rows], grad.shape, is_coalesced=True, check_invariants=True)


def replace_state(optimizer: Any, p: Tensor) -> None:
    for name, value in optimizer.state.get(p, {}).items():
        optimizer.state[p][name] = value + 1


def rewrite_state(optimizer: Any, p: Tensor) -> None:
    for value in optimizer.state.get(p, {}).values():
        value.fill_(3.0)


def replace_whole_state(optimizer: Any, p: Tensor) -> None:
    if p in optimizer.state:
        optimizer.state[p] = {name: 2 * value for name, value in optimizer.state[p].items()}


def turn_state(optimizer: Any, p: Tensor) -> None:
    for value in optimizer.state.get(p, {}).values():
        value.data = turned(value)


def drop_state(optimizer: Any, p: Tensor) -> None:
    optimizer.state.pop(p, None)


def move_parameter(optimizer: Any, p: Tensor) -> None:
    p.data = p.detach().clone()


def turn_parameter(optimizer: Any, p: Tensor) -> None:
    if p.ndim == 4:
        p.data = p.detach().to(memory_format=torch.channels_last)


def move_to_other_group(optimizer: Any, p: Tensor) -> None:
    first, second = (group["params"] for group in optimizer.param_groups)
    if first[0] is p:
        second.append(first.pop(0))


def other_rate(optimizer: Any, p: Tensor) -> None:
    optimizer.param_groups[1]["lr"] *= 0.75


def resume(optimizer: Any, p: Tensor) -> None:
    optimizer.load_state_dict(optimizer.state_dict())


def other_rule(optimizer: Any, p: Tensor) -> None:
    optimizer.param_groups[0]["l1"] = 0.1 - optimizer.param_groups[0]["l1"]


EVENTS = [
    replace_state,
    replace_whole_state,
    rewrite_state,
    turn_state,
    drop_state,
    move_parameter,
    turn_parameter,
    move_to_other_group,
    other_rate,
    resume,
    other_rule,
]

KINDS = st.sampled_from(["none", "none", "dense", "dense", "dense", "turned", "bfloat16", "sparse"])
SETS = st.lists(st.lists(KINDS, min_size=len(SHAPES), max_size=len(SHAPES)), min_size=1, max_size=3)
HAPPENING = st.tuples(st.sampled_from([*EVENTS, other_rule, other_rule]), st.integers(0, len(SHAPES) - 1))
# the sets of gradients, and which of them comes with what in each step: few, so that plans come again
STEPS = st.tuples(SETS, st.lists(st.tuples(st.integers(0, 2), st.lists(HAPPENING, max_size=2)), min_size=2, max_size=8))


TURNED_AND_BACK = [["none", "turned", *["none"] * 4, "dense"], ["none", "dense", "dense", *["none"] * 4]]
"""One plan's gradient lies as another's does not, and both plans come again."""


@pytest.mark.parametrize(("algorithm", "backend", "options", "measured"), CASES)
@settings(max_examples=10, deadline=None)
@given(steps=STEPS)
@example(steps=(TURNED_AND_BACK, [(1, []), (0, []), (1, []), (0, [])]))
def test_a_step_has_the_bits_of_one_that_is_planned_anew(
    algorithm: str, backend: str, options: dict[str, Any], measured: tuple[str, ...], steps: Any
) -> None:
    """The other optimizer loads its own state before each step, after which it knows nothing any more."""
    runs = []
    for _ in range(2):
        params = parameters_of_any_gradient()
        groups = [{"params": params[0::2]}, {"params": params[1::2], "lr": 0.1}]
        optimizer = getattr(steprule, algorithm)(groups, backend=backend, **{"lr": 0.05, **options})
        optimizer.track(*measured)
        runs.append((params, optimizer))
    (ours, mine), (theirs, anew) = runs
    sets, order = steps
    if measured or algorithm not in SPARSE or "state_dtype" in options:
        sets = [["dense" if kind == "sparse" else kind for kind in kinds] for kinds in sets]
    left_out = (turn_state, turn_parameter) if "state_dtype" in options else ()  # blocks of codes go by their place
    for seed, (which, events) in enumerate(order):
        kinds = sets[which % len(sets)]
        for params, optimizer in runs:
            for event, i in events:
                if event not in left_out:
                    event(optimizer, params[i])
            for i, (kind, p) in enumerate(zip(kinds, params, strict=True)):
                p.grad = gradient_of_kind(kind, p, 10 * seed + i)
        anew.load_state_dict(anew.state_dict())
        mine.step()
        anew.step()
        assert mine.tracked() == anew.tracked()
        assert mine.explain() == anew.explain()
        for p, q in zip(ours, theirs, strict=True):
            assert same(p, q)
            state, other = mine.state.get(p, {}), anew.state.get(q, {})
            assert state.keys() == other.keys()
            assert all(same(value, other[name]) for name, value in state.items())


@pytest.mark.parametrize("name", ["AdamW", "NAdam", "ASGD"])
def test_numbers_that_move_in_memory_are_looked_up_again(name: str) -> None:
    params = [normal(3).requires_grad_() for _ in range(2)]
    optimizer = getattr(steprule, name)(params)
    for step in range(1, 5):
        for value in optimizer.state.get(params[1], {}).values():
            if step == 3 and not value.ndim:
                value.data = value.data.clone()
        for p in params:
            p.grad = torch.ones(3)
        optimizer.step()
        assert [optimizer.state[p]["step"].item() for p in params] == [step, step]
    numbers = ([v for v in optimizer.state[p].values() if not v.ndim] for p in params)
    assert all(torch.equal(a, b) for a, b in zip(*numbers, strict=True))


def test_another_backend_serves_from_the_next_set_on() -> None:
    params = parameters_of_any_gradient()
    for i, p in enumerate(params):
        p.grad = gradient_of_kind("dense", p, i)
    optimizer = steprule.AdamW(params)
    optimizer.step()
    optimizer.param_groups[0]["backend"] = "eager"
    params[0].grad = None
    optimizer.step()
    assert optimizer.explain().startswith("eager: backend='eager' was asked for\n    6 tensors")


def test_a_refused_step_leaves_nothing_behind() -> None:
    """One gradient has become another dtype when another one is refused: both are looked at again."""
    params = parameters_of_any_gradient()
    for i, p in enumerate(params):
        p.grad = gradient_of_kind("dense", p, i)
    optimizer = steprule.SGD(params, lr=1.0)
    optimizer.step()
    start, memory = [p.detach().clone() for p in params], params[1].data
    params[0].grad = gradient_of_kind("bfloat16", params[0], 1)
    params[1].grad, params[1].data = torch.ones(4, 3), torch.zeros(2)
    with pytest.raises(RuntimeError, match=r"was p\.data replaced after backward"):
        optimizer.step()
    params[1].grad, params[1].data = None, memory
    params[1].grad = gradient_of_kind("dense", params[1], 1)
    optimizer.step()
    assert torch.equal(params[0], start[0] - grad_of(params[0]).float())
    assert torch.equal(params[1], start[1] - grad_of(params[1]))


@pytest.mark.parametrize("name", ["SGD", "AdamW", "NAdam"])
def test_a_set_of_known_parameters_needs_no_new_plan(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    params, others = ([normal(5, seed=i).requires_grad_() for i in range(20)] for _ in range(2))
    ours, theirs = getattr(steprule, name)(params, lr=0.1), getattr(torch.optim, name)(others, lr=0.1)
    rng, made = Random(0), []
    make = Planner.make
    monkeypatch.setattr(Planner, "make", lambda self, *args: made.append(make(self, *args)) or made[-1])
    for step in range(30):
        present = [step in (0, 29) or rng.random() < 0.7 for _ in params]
        for i, (p, q, here) in enumerate(zip(params, others, present, strict=True)):
            p.grad = normal(5, seed=100 * step + i) if here else None
            q.grad = p.grad
        ours.step()
        theirs.step()
        assert ours.explain().splitlines()[1].startswith(f"    {sum(present)} tensors")
    assert len(made) <= 2
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
        assert all(torch.equal(ours.state[p]["step"], value) for key, value in theirs.state[q].items() if key == "step")


def test_steps_that_no_rule_counts_are_counted_where_they_were_taken() -> None:
    """What a rule that counts finds, once it takes over from one that does not."""
    params = [normal(3, seed=i).requires_grad_() for i in range(3)]
    optimizer = steprule.SGD(params, lr=0.1, momentum=0.9)
    for step in range(6):
        for i, p in enumerate(params):
            p.grad = None if step and step % (i + 2) == 0 else torch.ones(3)
        optimizer.step()
    entries = optimizer._workings.planner.entries
    optimizer._workings.planner.settle()
    assert [entry.uncounted for entry in entries] == [4, 5, 5]
