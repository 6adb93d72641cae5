import copy
import functools
import json
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler as peers

import steprule
from steprule import schedules
from steprule.schedules import (
    Schedule,
    Scheduled,
    constant,
    cosine,
    exponential,
    from_dict,
    function,
    inverse_sqrt,
    join,
    linear,
    milestones,
    one_cycle,
    plateau,
    plateaus,
    polynomial,
    repeat,
    separate,
    warmup,
    warmup_stable_decay,
    write,
)


def sgd(lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def torch_values(make: Callable[[torch.optim.Optimizer], Any], steps: int, lr: float = 0.1) -> list[float]:
    """The rates of a torch scheduler that is stepped after the optimizer."""
    optimizer = sgd(lr)
    scheduler = make(optimizer)
    values = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps - 1):
        optimizer.step()
        scheduler.step()
        values.append(optimizer.param_groups[0]["lr"])
    return values


def assert_values(schedule: Schedule, expected: list[float]) -> None:
    np.testing.assert_allclose([schedule(step) for step in range(len(expected))], expected, rtol=0, atol=1e-12)


def decay(step: int) -> float:
    return 1 / (1 + step)


COSINE = functools.partial(peers.CosineAnnealingLR, T_max=7)
EXPONENTIAL = functools.partial(peers.ExponentialLR, gamma=0.9)
LINEAR = functools.partial(peers.LinearLR, start_factor=0.25, total_iters=5)
CASES: dict[str, tuple[Schedule, Any]] = {
    "ConstantLR": (constant(1 / 3, 5), functools.partial(peers.ConstantLR, factor=1 / 3, total_iters=5)),
    "ConstantLR of nothing": (
        constant(0.5, 1),
        functools.partial(peers.ConstantLR, factor=0.5, total_iters=1),
    ),
    "LinearLR": (
        linear(9, 0.3, 0.7),
        functools.partial(peers.LinearLR, start_factor=0.3, end_factor=0.7, total_iters=9),
    ),
    "LinearLR down": (
        linear(9),
        functools.partial(peers.LinearLR, start_factor=1.0, end_factor=0.0, total_iters=9),
    ),
    "LinearLR as warmup": (warmup(5, 0.25), LINEAR),
    "CosineAnnealingLR": (cosine(29), functools.partial(peers.CosineAnnealingLR, T_max=29)),
    "CosineAnnealingLR eta_min": (
        cosine(31, end_factor=0.2),
        functools.partial(peers.CosineAnnealingLR, T_max=31, eta_min=0.02),
    ),
    "CosineAnnealingWarmRestarts": (
        cosine(7).repeat(),
        functools.partial(peers.CosineAnnealingWarmRestarts, T_0=7),
    ),
    "CosineAnnealingWarmRestarts T_mult": (
        cosine(4, end_factor=0.2).repeat(t_mult=2),
        functools.partial(peers.CosineAnnealingWarmRestarts, T_0=4, T_mult=2, eta_min=0.02),
    ),
    "PolynomialLR": (polynomial(9), functools.partial(peers.PolynomialLR, total_iters=9)),
    "PolynomialLR power": (
        polynomial(9, 1.7),
        functools.partial(peers.PolynomialLR, total_iters=9, power=1.7),
    ),
    "ExponentialLR": (exponential(0.9), EXPONENTIAL),
    "MultiStepLR": (milestones([3, 8]), functools.partial(peers.MultiStepLR, milestones=[3, 8])),
    "MultiStepLR twice": (
        milestones([8, 3, 3], gamma=0.5),
        functools.partial(peers.MultiStepLR, milestones=[8, 3, 3], gamma=0.5),
    ),
    "SequentialLR": (
        join([warmup(5, 0.25), cosine(7), exponential(0.9)], [5, 12]),
        lambda o: peers.SequentialLR(o, [LINEAR(o), COSINE(o), EXPONENTIAL(o)], milestones=[5, 12]),
    ),
    "SequentialLR cut short": (
        join([exponential(0.9), milestones([2], 0.5), constant(0.5, 4)], [3, 9]),
        lambda o: peers.SequentialLR(
            o,
            [EXPONENTIAL(o), peers.MultiStepLR(o, [2], 0.5), peers.ConstantLR(o, 0.5, 4)],
            milestones=[3, 9],
        ),
    ),
    "ChainedScheduler": (
        warmup(5, 0.25) * exponential(0.9),
        lambda o: peers.ChainedScheduler([LINEAR(o), EXPONENTIAL(o)], o),
    ),
    "LambdaLR": (function(decay), functools.partial(peers.LambdaLR, lr_lambda=decay)),
}


@pytest.mark.parametrize("case", CASES)
def test_same_values_as_torch(case: str) -> None:
    schedule, peer = CASES[case]
    assert_values(0.1 * schedule, torch_values(peer, 30))


@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize("strategy", ["cos", "linear"])
@pytest.mark.parametrize(("total", "pct_start"), [(40, 0.3), (41, 0.25), (50, 0.0), (13, 0.5), (1, 0.3)])
def test_one_cycle_has_the_values_of_torch(three_phase: bool, strategy: str, total: int, pct_start: float) -> None:
    arguments: dict[str, Any] = {
        "pct_start": pct_start,
        "anneal_strategy": strategy,
        "three_phase": three_phase,
    }

    def peer(optimizer: torch.optim.Optimizer) -> peers.OneCycleLR:
        return peers.OneCycleLR(optimizer, max_lr=0.1, total_steps=total, cycle_momentum=False, **arguments)

    schedule = 0.1 * one_cycle(total, **arguments)
    expected = torch_values(peer, total)
    assert_values(schedule, expected)
    assert schedule(total + 5) == pytest.approx(expected[-1], abs=1e-12)


def test_a_shape_stays_at_its_end() -> None:
    ended = [warmup(3).then(cosine(5)), cosine(5, end_factor=0.2), linear(4, 1.0, 0.3), cosine(3).repeat(2, gamma=0.5)]
    for schedule in ended:
        assert schedule.steps is not None
        last = schedule(schedule.steps)
        assert [schedule(schedule.steps + more) for more in (1, 2, 5, 1000)] == [last] * 4


def test_restarts_grow_longer_and_lower() -> None:
    schedule = cosine(4).repeat(3, t_mult=2, gamma=0.5)
    assert schedule.steps == 4 + 8 + 16
    assert [schedule(step) for step in (0, 4, 12)] == [1.0, 0.5, 0.25]
    assert [schedule(step) for step in (2, 8, 20)] == pytest.approx([0.5, 0.25, 0.125])
    assert schedule(27) > 0.0 == schedule(28) == schedule(500)
    assert cosine(4).repeat().steps is None


def test_one_cycle_that_only_goes_up_is_torch_too() -> None:
    expected = torch_values(
        lambda o: peers.OneCycleLR(o, max_lr=0.1, total_steps=20, pct_start=1.0, cycle_momentum=False), 20
    )
    assert_values(0.1 * one_cycle(20, pct_start=1.0), expected)


def test_one_cycle_whose_rise_is_one_step_starts_at_the_top() -> None:
    assert one_cycle(10, pct_start=0.1)(0) == 1.0


def test_inverse_sqrt_after_warmup_is_the_transformer_schedule() -> None:
    width, steps = 512, 400
    schedule = (width * steps) ** -0.5 * warmup(steps).then(inverse_sqrt(steps))
    for step in (1, 100, 399, 400, 401, 5000):
        assert schedule(step) == pytest.approx(width**-0.5 * min(step**-0.5, step * steps**-1.5), rel=1e-12)


def test_warmup_stable_decay_has_its_four_corners() -> None:
    schedule = warmup_stable_decay(10, 20, 5, start_factor=0.1, end_factor=0.2)
    assert [schedule(step) for step in (0, 5, 10, 30, 31, 35, 100)] == pytest.approx(
        [0.1, 0.55, 1.0, 1.0, 0.84, 0.2, 0.2], abs=1e-15
    )
    assert schedule.steps == 35


def test_then_starts_counting_where_the_first_ends() -> None:
    schedule = 3e-4 * warmup(1000).then(cosine(9000))
    assert schedule.steps == 10000
    for step in (0, 1, 999, 1000, 1001, 5500, 10000):
        factor = step / 1000 if step < 1000 else 0.5 + 0.5 * math.cos(math.pi * (step - 1000) / 9000)
        assert schedule(step) == pytest.approx(3e-4 * factor, abs=1e-18)


def test_arithmetic_ends_where_the_later_side_ends() -> None:
    assert [s.steps for s in (warmup(3) * cosine(9), cosine(9) - warmup(3), 2 / cosine(9))] == [9, 9, 9]
    assert (exponential(0.9) * cosine(9)).steps is None


def test_empty_warmup_is_none() -> None:
    schedule = warmup(0).then(linear(4))
    assert [schedule(step) for step in range(3)] == [1.0, 0.75, 0.5]


@pytest.mark.parametrize("endless", [exponential(0.9), constant(2.0), milestones([3]), cosine(3) * exponential(0.9)])
def test_then_after_an_endless_schedule_is_refused(endless: Schedule) -> None:
    with pytest.raises(ValueError, match=r"never ends; say where with join"):
        endless.then(cosine(3))


def test_plain_functions_and_numbers_are_schedules_wherever_one_is_accepted() -> None:
    assert (cosine(4) * decay)(1) == pytest.approx(cosine(4)(1) / 2)
    assert (decay - cosine(4))(0) == 0.0
    assert warmup(2).then(decay)(3) == 0.5
    assert join([decay, 7], [2])(9) == 7.0
    assert function(decay, steps=3).then(5.0)(3) == 5.0


finite = st.floats(-100, 100, allow_nan=False).map(lambda x: round(x, 3))
counts = st.integers(1, 30)
shapes = st.one_of(
    st.builds(warmup, st.integers(0, 30), finite),
    st.builds(constant, finite, st.none() | counts),
    st.builds(linear, counts, finite, finite),
    st.builds(cosine, counts, finite),
    st.builds(polynomial, counts, st.floats(0.5, 3), finite),
    st.builds(exponential, st.floats(0.5, 1.5)),
    st.builds(inverse_sqrt, counts),
    st.builds(milestones, st.lists(counts, max_size=4), finite),
    st.builds(one_cycle, counts, st.floats(0, 0.5), st.sampled_from(["cos", "linear"]), three_phase=st.booleans()),
    st.builds(warmup_stable_decay, counts, counts, counts),
    st.builds(repeat, st.builds(linear, counts), st.none() | st.integers(1, 5), st.integers(1, 3), finite),
)


def grown(parts: st.SearchStrategy[Schedule]) -> st.SearchStrategy[Schedule]:
    operators = st.sampled_from([lambda a, b: a + b, lambda a, b: a - b, lambda a, b: a * b])
    return st.one_of(
        st.builds(lambda op, a, b: op(a, b), operators, parts, parts | finite),
        st.builds(lambda op, a, b: op(a, b), operators, finite, parts),
        st.builds(lambda a, b: a / b, parts, finite.filter(bool)),
        st.builds(lambda a, b: a.then(b), parts.filter(lambda part: part.steps is not None), parts),
        st.builds(lambda a, b, c, m: join([a, b, c], sorted(m)), parts, parts, parts, st.tuples(counts, counts)),
    )


expressions = st.recursive(shapes, grown, max_leaves=6)


@settings(deadline=None)
@given(expressions, st.integers(0, 80))
def test_a_schedule_is_a_value(schedule: Schedule, step: int) -> None:
    described = json.loads(json.dumps(schedule.to_dict(), allow_nan=False, sort_keys=True))
    copies = [
        from_dict(described),
        eval(repr(schedule), vars(schedules).copy()),
        pickle.loads(pickle.dumps(schedule)),
        copy.deepcopy(schedule),
    ]
    for other in copies:
        assert other == schedule
        assert hash(other) == hash(schedule)
        assert other(step) == schedule(step)
        assert other.steps == schedule.steps
    assert schedule.matches(described)
    assert 2 * schedule != schedule


@settings(deadline=None)
@given(shapes, shapes, finite.filter(bool), st.integers(0, 80))
def test_arithmetic_is_that_of_the_values(a: Schedule, b: Schedule, number: float, step: int) -> None:
    x, y = a(step), b(step)
    pairs = [
        (a + b, x + y),
        (a - b, x - y),
        (a * b, x * y),
        (a + number, x + number),
        (number - a, number - x),
        (a * number, x * number),
        (number * a, number * x),
        (a / number, x / number),
        ((a - b) * (number - (a - b)), (x - y) * (number - (x - y))),
        (np.float64(number) * a, number * x),
        (np.float64(number) - a, number - x),
    ]
    if y:
        pairs += [(a / b, x / y), (number / b, number / y)]
    for schedule, expected in pairs:
        assert schedule(step) == expected


@pytest.mark.parametrize(
    "text",
    [
        "0.0003 * warmup(1000).then(cosine(9000))",
        "0.1 * warmup(3).then(cosine(5).repeat())",
        "(0.1 * cosine(3)).repeat(2, t_mult=2, gamma=0.5)",
        "1.0 - 0.5 * (cosine(3) - linear(4)) / 2.0",
        "(0.1 * warmup(10)).then(0.1 * cosine(3, end_factor=0.1))",
        "join([constant(0.5), milestones([2, 3]), exponential(0.9)], [1, 7])",
        "cosine(3) - (linear(2) - linear(3))",
        "plateau(patience=3)",
        "constant(steps=4)",
    ],
)
def test_prints_as_the_expression_that_makes_it(text: str) -> None:
    assert repr(eval(text, vars(schedules).copy())) == text


def test_is_immutable() -> None:
    schedule = cosine(3)
    with pytest.raises(AttributeError):
        schedule.steps = 4
    with pytest.raises(TypeError):
        schedule.arguments["steps"] = 4


BAD = {
    "steps": [
        lambda: cosine(0),
        lambda: linear(2.5),  # type: ignore[arg-type]
        lambda: warmup(-1),
        lambda: polynomial("9"),  # type: ignore[arg-type]
        lambda: cosine(True),
        lambda: constant(1.0, -1),
        lambda: milestones([-1]),
        lambda: milestones(3),  # type: ignore[arg-type]
        lambda: one_cycle(0),
        lambda: cosine(3).sparkline(-1),
        lambda: exponential(0.9).sparkline(),
        lambda: function(decay, -3),
        lambda: linear(10**400),
    ],
    "end_factor": [
        lambda: cosine(3, math.nan),
        lambda: linear(3, 1, math.inf),
        lambda: polynomial(3, 1, None),  # type: ignore[arg-type]
    ],
    "start_factor": [lambda: warmup(3, "0"), lambda: linear(3, math.nan)],  # type: ignore[arg-type]
    "factor": [lambda: constant(math.inf), lambda: plateau(factor=1.0), lambda: plateau(factor=0)],
    "gamma": [lambda: exponential(0), lambda: exponential(-1), lambda: milestones([3], math.nan)],
    "power": [lambda: polynomial(3, 0)],
    "timescale": [lambda: inverse_sqrt(0)],
    "milestones": [
        lambda: join([cosine(3)], [3]),
        lambda: join([], []),
        lambda: join([cosine(3)] * 3, [4, 3]),
        lambda: join([cosine(3)] * 2, [-1]),
    ],
    "schedules": [lambda: join(["cosine"], [])],  # type: ignore[list-item]
    "pct_start": [lambda: one_cycle(9, 1.1), lambda: one_cycle(9, 0.6, three_phase=True)],
    "anneal_strategy": [lambda: one_cycle(9, anneal_strategy="sin")],
    "three_phase": [lambda: one_cycle(9, three_phase=1)],  # type: ignore[arg-type]
    "div_factor": [lambda: one_cycle(9, div_factor=0)],
    "final_div_factor": [lambda: one_cycle(9, final_div_factor=-1)],
    "warmup_steps": [lambda: warmup_stable_decay(-1, 2, 2)],
    "stable_steps": [lambda: warmup_stable_decay(1, -2, 2)],
    "decay_steps": [lambda: warmup_stable_decay(1, 2, 0)],
    "mode": [lambda: plateau("least")],
    "threshold_mode": [lambda: plateau(threshold_mode="both")],
    "patience": [lambda: plateau(patience=-1)],
    "cooldown": [lambda: plateau(cooldown=0.5)],  # type: ignore[arg-type]
    "threshold": [lambda: plateau(threshold=-1)],
    "min_factor": [lambda: plateau(min_factor=-1)],
    "eps": [lambda: plateau(eps=math.nan)],
    "width": [lambda: cosine(3).sparkline(width=0)],
    "right": [lambda: cosine(3) * math.inf],
    "left": [lambda: math.nan - cosine(3)],
    "f": [lambda: function(3)],  # type: ignore[arg-type]
    "step": [lambda: cosine(3)(-1)],
}


@pytest.mark.parametrize(("name", "make"), [(name, make) for name, makes in BAD.items() for make in makes])
def test_a_bad_argument_is_named(name: str, make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must "):
        make()


@pytest.mark.parametrize("other", ["x", None, [1], 1j])
def test_arithmetic_with_something_else_is_a_type_error(other: Any) -> None:
    for apply in (lambda: cosine(3) * other, lambda: other - cosine(3), lambda: other / cosine(3)):
        with pytest.raises(TypeError, match=f"not with {type(other).__name__}"):
            apply()


@pytest.mark.parametrize("f", [lambda step: math.nan, lambda step: math.inf, lambda step: "x", lambda step: None])
def test_a_function_that_gives_no_number_is_named(f: Callable[[int], Any]) -> None:
    with pytest.raises(ValueError, match=r"test_schedules:<lambda> gave (nan|inf|'x'|None) at step 3"):
        (0.1 * function(f))(3)


def test_a_function_is_described_and_can_not_be_made_again() -> None:
    schedule = 0.1 * warmup(3).then(decay)
    assert repr(schedule) == "0.1 * warmup(3).then(function(decay))"
    described = json.loads(json.dumps(schedule.to_dict()))
    assert schedule.matches(described)
    with pytest.raises(ValueError, match=r"schedule function .*test_schedules:decay can't be made from its name"):
        from_dict(described)
    assert not (0.1 * warmup(3).then(lambda step: 1.0)).matches(described)


MALFORMED: list[Any] = [
    None,
    3,
    "cosine",
    [],
    {},
    {"schedule": 3},
    {"schedule": "cosin", "steps": 3},
    {"schedule": "cosine"},
    {"schedule": "cosine", "steps": "3"},
    {"schedule": "cosine", "steps": 3, "more": 1},
    {"schedule": "cosine", "steps": 3, 4: 1},
    {"schedule": "cosine", "steps": {"schedule": "cosine", "steps": 3}},
    {"schedule": "cosine", "steps": 3, "state": {}},
    {"schedule": "join", "schedules": 3, "milestones": []},
    {"schedule": "join", "schedules": [3, {"schedule": "cosine"}], "milestones": [1]},
    {"schedule": "milestones", "steps": [1, 2], "gamma": 1e200},
    {"schedule": "arithmetic", "op": "**", "left": 1.0, "right": 2.0},
    {"schedule": "arithmetic", "op": [], "left": 1.0, "right": 2.0},
    {"schedule": "arithmetic", "op": "*", "left": 1.0, "right": []},
    {"schedule": "from_dict", "data": {}},
    {"schedule": "__import__", "name": "os"},
    {k: v for k, v in plateau().to_dict().items() if k != "state"},
    plateau().to_dict() | {"state": {}},
    plateau().to_dict() | {"state": plateau().to_dict()["state"] | {"best": math.nan}},
    plateau().to_dict() | {"state": plateau().to_dict()["state"] | {"num_bad_epochs": -1}},
    plateau().to_dict() | {"state": plateau().to_dict()["state"] | {"value": "1"}},
]


@pytest.mark.parametrize("data", MALFORMED)
def test_a_malformed_description_is_refused(data: object) -> None:
    with pytest.raises(ValueError, match=r"\w+"):
        from_dict(data)
    assert not cosine(3).matches(data)


def test_an_unknown_schedule_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        from_dict({"schedule": "cosin", "steps": 3})


metrics = st.lists(st.floats(-3, 3) | st.sampled_from([math.nan, math.inf, -math.inf]), min_size=5, max_size=40)


@settings(deadline=None)
@given(
    metrics,
    st.fixed_dictionaries(
        {
            "mode": st.sampled_from(["min", "max"]),
            "factor": st.floats(0.05, 0.95),
            "patience": st.integers(0, 3),
            "threshold": st.floats(0, 0.5),
            "threshold_mode": st.sampled_from(["rel", "abs"]),
            "cooldown": st.integers(0, 3),
        }
    ),
    st.sampled_from([0.0, 0.05]),
    st.sampled_from([0.0, 1e-8, 0.1]),
)
def test_plateau_has_the_values_of_torch(
    metrics: list[float], arguments: dict[str, Any], least: float, eps: float
) -> None:
    optimizer = sgd(lr=2.0)
    peer = peers.ReduceLROnPlateau(optimizer, min_lr=2 * least, eps=2 * eps, **arguments)
    schedule = 2.0 * plateau(min_factor=least, eps=eps, **arguments)
    for metric in metrics:
        peer.step(metric)
        schedule.report(metric)
        assert schedule(0) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        schedule = from_dict(json.loads(json.dumps(schedule.to_dict(), allow_nan=False)))


def test_a_plateau_changes_wherever_it_stands_and_a_copy_is_on_its_own() -> None:
    shared = plateau(factor=0.5, patience=0)
    groups = {"a": 0.1 * shared, "b": warmup(0).then(0.2 * shared)}
    twin = copy.deepcopy(groups)
    assert len(plateaus(groups.values())) == len(plateaus(twin.values())) == 1
    twin["a"].report(torch.tensor(1.0))  # type: ignore[arg-type]
    twin["a"].report(2.0)
    assert (twin["a"](0), twin["b"](0)) == (0.05, 0.1)
    assert (groups["a"](0), groups["b"](0)) == (0.1, 0.2)
    assert groups["a"] == 0.1 * shared
    assert groups["a"] != twin["a"]
    assert plateau() != plateau()
    with pytest.raises(ValueError, match="no plateau"):
        cosine(3).report(1.0)


def test_load_state_takes_over_what_plateaus_have_seen_and_nothing_else() -> None:
    schedule = join([plateau(patience=0, factor=0.5), plateau("max", patience=0, factor=0.5)], [10])
    fresh = copy.deepcopy(schedule)
    for metric in (1.0, 2.0):
        schedule.report(metric)
    saved = json.loads(json.dumps(schedule.to_dict()))
    assert fresh.matches(saved)
    assert fresh != schedule

    torn = copy.deepcopy(saved)
    torn["schedules"][1]["state"]["best"] = None
    for bad in (torn, cosine(3).to_dict(), {}):
        with pytest.raises(ValueError, match=r"best must be|not of"):
            fresh.load_state(bad)
        assert fresh(0) == 1.0

    fresh.load_state(saved)
    assert (fresh(0), fresh(10)) == (0.5, 1.0)
    for twin in (schedule, fresh):
        twin.report(0.5)
    assert fresh.to_dict() == schedule.to_dict()


def test_pickled_plateau_keeps_what_it_has_seen() -> None:
    schedule = 0.1 * plateau(factor=0.5, patience=0)
    schedule.report(1.0)
    schedule.report(1.0)
    again = pickle.loads(pickle.dumps(schedule))
    again.report(1.0)
    assert (schedule(0), again(0)) == (0.05, 0.025)


def test_sparkline_runs_from_the_lowest_to_the_highest() -> None:
    assert linear(7).sparkline(width=8) == "█▇▆▅▄▃▂▁"
    assert constant(3.0).sparkline(10, 5) == "▄▄▄▄▄"
    assert (0.5 + warmup(8)).sparkline(width=9) == "▁▂▃▄▅▆▇██"
    assert exponential(0.5).sparkline(100, width=3) == "█▁▁"
    assert cosine(9).sparkline(width=1) == "▄"


def test_separate_leaves_numbers_and_gives_the_schedules() -> None:
    lr, beta = 0.1 * linear(10), 1 - 0.1 * cosine(10)
    params = [torch.zeros(3)]
    group = {
        "params": params,
        "lr": lr,
        "betas": [0.9, beta],
        "l1": decay,
        "nesterov": True,
        "wd": 0.1,
        "k": None,
    }
    scheduled = separate(group, step=5)
    assert group == {
        "params": params,
        "lr": 0.05,
        "betas": (0.9, beta(5)),
        "l1": decay(5),
        "nesterov": True,
        "wd": 0.1,
        "k": None,
    }
    assert scheduled == {"lr": lr, ("betas", 1): beta, "l1": function(decay)}
    assert separate({"lr": 0.1, "betas": (0.9, 0.99), "kind": dict}) == {}


def two_groups() -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = [
        {"lr": 0.1 * linear(10), "betas": (0.9, 1 - linear(10))},
        {"lr": 0.5},
        {"lr": 0.2 * linear(10)},
    ]
    for group in groups:
        if scheduled := separate(group):
            group["schedules"] = scheduled
    return groups


def test_write_writes_every_group_for_the_step() -> None:
    groups = two_groups()
    write(groups, 5)
    assert [group["lr"] for group in groups] == [0.05, 0.5, 0.1]
    assert groups[0]["betas"] == (0.9, 0.5)
    assert all(type(group["lr"]) is float for group in groups)


def test_a_number_that_somebody_else_wrote_is_refused_and_nothing_changes() -> None:
    groups = two_groups()
    write(groups, 1)
    groups[1]["lr"] = 0.7
    groups[2]["lr"] = 0.7
    with pytest.raises(RuntimeError, match=r"both a schedule and something else set lr of group 2: .* gave 0.18.* 0.7"):
        write(groups, 2)
    assert groups[0]["lr"] == 0.1 * linear(10)(1)
    groups[2]["lr"] = 0.2 * linear(10)(1)
    write(groups, 2)
    groups[0]["betas"] = (0.9, 0.7)
    with pytest.raises(RuntimeError, match=r"set betas\[1\] of group 0"):
        write(groups, 3)
    groups[0]["betas"] = (0.8, 1 - linear(10)(2))
    write(groups, 3)
    assert groups[0]["betas"] == (0.8, 1 - linear(10)(3))


def test_a_schedule_taken_away_leaves_the_number_to_others() -> None:
    groups = two_groups()
    del groups[2]["schedules"]["lr"]
    groups[2]["lr"] = 0.7
    write(groups, 4)
    assert groups[2]["lr"] == 0.7


def test_a_torch_scheduler_beside_a_schedule_is_found_out() -> None:
    optimizer = sgd()
    optimizer.param_groups[0]["lr"] = 0.1 * cosine(10)
    optimizer.param_groups[0]["schedules"] = separate(optimizer.param_groups[0])
    scheduler = peers.ExponentialLR(optimizer, gamma=0.9)
    write(optimizer.param_groups, 0)
    optimizer.step()
    scheduler.step()
    with pytest.raises(RuntimeError, match="both a schedule and something else set lr of group 0"):
        write(optimizer.param_groups, 1)


def test_copied_groups_go_on_by_themselves() -> None:
    groups = two_groups()
    write(groups, 1)
    twin = pickle.loads(pickle.dumps(copy.deepcopy(groups)))
    write(twin, 2)
    assert twin[0]["lr"] == 0.1 * linear(10)(2)
    assert groups[0]["lr"] == 0.1 * linear(10)(1)


def test_schedules_of_a_group_travel_as_plain_data() -> None:
    group = two_groups()[0]
    data = json.loads(json.dumps(group["schedules"].to_dict()))
    assert set(data) == {"lr", "betas[1]"}
    assert Scheduled.from_dict(data, group) == group["schedules"]
    for bad in (
        3,
        {"rate": data["lr"]},
        {"betas[2]": data["lr"]},
        {"lr[0]": data["lr"]},
        {"lr": 3},
        {3: data["lr"]},
    ):
        with pytest.raises(ValueError, match=r"schedule"):
            Scheduled.from_dict(bad, group)


def test_a_rate_held_at_zero_stays_there_and_the_schedule_goes_on_when_it_is_let_go() -> None:
    p = torch.ones(2, requires_grad=True)
    optimizer = steprule.SGD([p], lr=schedules.linear(10))
    for _ in range(2):
        p.grad = torch.ones(2)
        optimizer.step()
    before, rate = p.detach().clone(), optimizer.param_groups[0]["lr"]
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert torch.equal(p, before)
    optimizer.param_groups[0]["lr"] = rate
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.7)
    optimizer.param_groups[0]["lr"] = 0.1
    with pytest.raises(RuntimeError, match="both a schedule and something else set lr of group 0"):
        optimizer.step()


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("AdamW", {"lr": 0.1 * schedules.cosine(10), "weight_decay": 0.1}),
        ("SGD", {"lr": 0.1, "momentum": 0.9 * schedules.cosine(10)}),
    ],
)
def test_distributed_checkpoints_resume_a_fresh_optimizer_with_a_schedule(
    name: str, options: dict[str, Any], flat: bool
) -> None:
    """They keep of the dictionary only state and groups, and SGD counts no steps in its state."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

    how = StateDictOptions(flatten_optimizer_state_dict=flat)

    def trained(model: torch.nn.Module, optimizer: Any, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.ones(3, 2)).square().sum().backward()
            optimizer.step()

    def made() -> tuple[torch.nn.Module, Any]:
        torch.manual_seed(0)
        model = torch.nn.Linear(2, 2)
        return model, getattr(steprule, name)(model, **options)

    straight, optimizer = made()
    trained(straight, optimizer, 6)
    model, first = made()
    trained(model, first, 3)
    saved = copy.deepcopy(get_state_dict(model, first, options=how))
    again, optimizer = made()
    set_state_dict(again, optimizer, model_state_dict=saved[0], optim_state_dict=saved[1], options=how)
    trained(again, optimizer, 3)
    assert all(map(torch.equal, again.parameters(), straight.parameters()))
