"""The language of update rules: what tracing makes of a rule, what it refuses and with which words."""

from __future__ import annotations

import ast
import builtins
import math
import random
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from inside import launches
from tensors import weight

from steprule import SGD, AdamW, Optimizer
from steprule.rule import (
    Expression,
    Program,
    RuleError,
    array,
    ceil,
    clip,
    column,
    exp,
    floor,
    isnan,
    lerp,
    matrix,
    max_abs,
    maximum,
    mean,
    minimum,
    norm,
    power,
    row,
    rsqrt,
    scalar,
    sign,
    size,
    sqrt,
    square,
    stored,
    sum,
    trace,
    where,
)
from steprule.rule.expression import Level
from steprule.rule.functions import __all__ as functions
from steprule.rule.host import OPERATIONS, compile_scalars, evaluate
from steprule.rule.links import Clip, Unscale

BASE: dict[str, Any] = {"maximize": False, "l1": 0.0, "clip_norm": None}


def traced(rule: Callable[..., Any], slots: dict[str, Any] | None = None, **hyper: Any) -> Program:
    return trace(rule, BASE | {"lr": 0.1} | hyper, slots, name="Rule")


def refused(rule: Callable[..., Any], slots: dict[str, Any] | None = None, **hyper: Any) -> str:
    with pytest.raises(RuleError) as error:
        traced(rule, slots, **hyper)
    return str(error.value)


class Counted(Optimizer):
    """Counts how often its rule is traced."""

    def __init__(self, params: Any, **hyper: Any) -> None:
        self.calls = 0
        super().__init__(params, {"lr": 0.1, **hyper})

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        self.calls += 1
        return self.rule(p, g, s, h)

    def rule(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        return p - h.lr * g


# Wrong rules.


@pytest.mark.parametrize(
    ("question", "shown"),
    [
        (lambda p, g, s, h: h.lr > 0, "lr > 0"),
        (lambda p, g, s, h: g > 0, "g > 0"),
        (lambda p, g, s, h: p, "p"),
        (lambda p, g, s, h: s.is_new, "is_new"),
        (lambda p, g, s, h: s.step - 1, "step - 1"),
        (lambda p, g, s, h: h.lr == 0.1, "lr == 0.1"),
        (lambda p, g, s, h: s.m == 0, "m == 0"),
        (lambda p, g, s, h: s.step % h.k == 0, "step % k == 0"),
        (lambda p, g, s, h: norm(g), "sqrt(sum_of_squares(g))"),
        (lambda p, g, s, h: (h.lr == 0) & (h.l1 == 0), "lr == 0 and l1 == 0"),
        (lambda p, g, s, h: isnan(h.lr), "isnan(lr)"),
        (lambda p, g, s, h: size(p, 0), "size(p, 0)"),
        (lambda p, g, s, h: h.lr in (0.1, 0.2), "lr == 0.1"),
        (lambda p, g, s, h: 0 < h.lr < 1, "lr > 0"),
        (lambda p, g, s, h: max(h.lr, 1), "lr < 1"),
    ],
)
def test_a_comparison_in_an_if_says_to_use_where(question: Callable[..., Any], shown: str) -> None:
    def rule(p: Any, g: Any, s: Any, h: Any) -> Any:
        return p - g if question(p, g, s, h) else p

    message = refused(rule, k=3.0)

    assert f"({shown}) holds" in message
    assert "use where(condition, a, b)" in message.lower()


def test_groups_and_states_are_not_dictionaries_in_a_rule() -> None:
    assert "write h.lr in place of h['lr']" in refused(lambda p, g, s, h: p - h["lr"] * g)
    assert "write s.m in place of s['m']" in refused(lambda p, g, s, h: p - s["m"] * g)
    assert "write s.m = ..." in refused(lambda p, g, s, h: (s.__setitem__("m", g), p)[1])
    assert "ask s.is_new" in refused(lambda p, g, s, h: p if "m" in s else g)


def test_hyperparameters_are_only_read() -> None:
    message = refused(lambda p, g, s, h: (setattr(h, "lr", h.lr * 0.9), p - h.lr * g)[1])
    assert "h.lr is what the group says; a rule only reads it" in message


def test_a_hyperparameter_is_no_count_of_a_loop() -> None:
    message = refused(lambda p, g, s, h: next(p for _ in range(h.times)), times=3)
    assert "range() or an index does not apply to (times)" in message


def test_outside_of_a_rule_an_expression_has_no_truth_value() -> None:
    kept: list[Any] = []
    traced(lambda p, g, s, h: (kept.append(h.lr), p - g)[1])
    with pytest.raises(RuleError, match=r"\(lr\) has no truth value outside of a rule's tracing"):
        bool(kept[0])


def test_missing_return_and_other_values_returned() -> None:
    assert "Rule.update returns None; it must return the parameter's new value" in refused(lambda p, g, s, h: None)
    assert "returns 0.5" in refused(lambda p, g, s, h: 0.5)
    assert "returns (p, g)" in refused(lambda p, g, s, h: (p, g))


def test_a_slot_under_two_shapes() -> None:
    def read_then_number(p: Any, g: Any, s: Any, h: Any) -> Any:
        s.count = s.count + 1
        s.count = s.step
        return p - s.count * g

    def read_then_reduced(p: Any, g: Any, s: Any, h: Any) -> Any:
        old = s.best
        s.best = norm(g)
        return p - old * g

    def array_to_scalar(p: Any, g: Any, s: Any, h: Any) -> Any:
        s.eta = s.eta * g
        return p - g

    message = refused(read_then_number)
    assert "s.count is read as an array but given one number, (step)" in message
    assert 'slots = {"name": scalar(0.0)}' in message
    assert "s.best is read as an array but given one number" in refused(read_then_reduced)
    assert "is given an array, (eta * g)" in refused(array_to_scalar, {"eta": scalar(1.0)})


def test_a_slot_that_adds_up_numbers_must_be_declared() -> None:
    def total(p: Any, g: Any, s: Any, h: Any) -> Any:
        s.total = 0.9 * s.total + norm(g)
        return p - g / s.total

    def in_turns(p: Any, g: Any, s: Any, h: Any) -> Any:
        s.one, s.two = s.two + mean(g, dim=-1), 0.5 * s.one
        return p - g * s.one

    def shifted(p: Any, g: Any, s: Any, h: Any) -> Any:
        s.before, s.last = s.last, g
        return p - s.before

    message = refused(total)
    assert "s.total is not declared, and so an array, but it is given one number and itself" in message
    assert 'slots = {"name": scalar(0.0)}, or as array() if it is meant to be one' in message
    assert "given one number for each row and itself" in refused(in_turns)
    assert {slot.kind for slot in traced(shifted).state} == {"array"}
    assert traced(total, {"total": array()}).slots
    assert traced(total, {"total": scalar()}).reduced_slots


@pytest.mark.parametrize("dtype", ["int8", torch.int32, "bool", "flaot32", 3])
def test_slots_and_stacks_hold_numbers_with_fractions(dtype: Any) -> None:
    for declare in (array, row, column, lambda initial, dtype: matrix(abs, traced_array(), dtype=dtype)):
        with pytest.raises(RuleError, match="holds no numbers of a rule; it is one of float16, bfloat16, float32"):
            declare(0.0, dtype)


def traced_array() -> Expression:
    return Expression("param", level=Level.ARRAY)


def test_dtypes_are_named_as_torch_has_them_too() -> None:
    assert array(dtype=torch.float32) == array(dtype="float32")
    with pytest.raises(RuleError, match="did you mean 'float32'"):
        row(dtype="flaot32")


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: torch.rand(()).item()])
def test_a_number_drawn_in_a_rule_is_refused(draw: Callable[[], float]) -> None:
    draw()  # the first draw after a seed renews the whole state, later ones only move within it
    assert "Rule.update draws a random number: it runs once" in refused(lambda p, g, s, h: p - draw() * g)


def test_slots_hold_expressions_and_step_is_counted_by_the_optimizer() -> None:
    def assign(name: str, value: Any) -> Callable[..., Any]:
        return lambda p, g, s, h: (setattr(s, name, value), p)[1]

    assert "s.m is given a str" in refused(assign("m", "zero"))
    assert "s.m is given a Tensor" in refused(assign("m", torch.zeros(3)))
    assert "s.step is counted by the optimizer" in refused(assign("step", 3))
    assert "s.is_new is counted by the optimizer" in refused(assign("is_new", True))


@pytest.mark.parametrize(
    ("call", "instead"),
    [
        (lambda p, g: torch.sqrt(g), "torch.sqrt is not of the language of update rules; use steprule.rule.sqrt"),
        (lambda p, g: torch.clamp(g, 0, 1), "torch.clamp is not .*; use clip\\(x, low, high\\)"),
        (lambda p, g: torch.where(g > 0, p, g), "use steprule.rule.where"),
        (lambda p, g: torch.max(p, g), "use maximum\\(a, b\\) or max_abs\\(x\\)"),
        (lambda p, g: torch.add(p, g), "torch.add is not .*; use \\+"),
        (lambda p, g: torch.linalg.vector_norm(g), "use norm\\(x\\)"),
        (lambda p, g: torch.nn.functional.relu(g), "use maximum\\(x, 0\\)"),
        (lambda p, g: torch.lgamma(g), "torch.lgamma is not .*; the functions are abs, atan2, ceil, clip, cos"),
        (lambda p, g: torch.tensor(2.0) * g, "plain numbers, not with Tensor .*make a hyperparameter of a number"),
        (lambda p, g: g * torch.ones(3), "plain numbers, not with Tensor .*a slot \\(s.name\\) of an array"),
        (lambda p, g: p + g.sqrt(), r"\(g\) is a symbol .* and has no .sqrt; use steprule.rule.sqrt"),
        (lambda p, g: p.add_(g), r"has no .add_; use \+ \(rules return new values"),
        (lambda p, g: p.mul_(0.5).clamp_(0), r"has no .mul_; use \*"),
        (lambda p, g: p.shape, "has no .shape; use size\\(p\\), size\\(p, dim\\) or ndim\\(p\\)"),
        (lambda p, g: p.data, "has no .data; the functions are"),
        (lambda p, g: math.sqrt(g), "use the function of that name from steprule.rule"),
        (lambda p, g: math.log(g), "use the function of that name from steprule.rule"),
        (lambda p, g: float(g), "float\\(\\) or a function of math does not apply to \\(g\\)"),
        (lambda p, g: int(g), "int\\(\\) does not apply to \\(g\\)"),
        (lambda p, g: len(p), "len\\(\\) does not apply to \\(p\\).*use size"),
        (lambda p, g: next(iter(p)), "iteration does not apply to \\(p\\).*use sum\\(x\\) or norm\\(x\\)"),
        (lambda p, g: np.sqrt(g), "numpy.sqrt is not .*; use steprule.rule.sqrt"),
        (lambda p, g: np.maximum(g, 0), "numpy.maximum is not .*; use steprule.rule.maximum"),
        (lambda p, g: np.where(g, p, 0), "numpy.where is not .*; use steprule.rule.where"),
        (lambda p, g: p - g * None, "not with NoneType None"),
        (lambda p, g: sum(0.5), "sum\\(\\) reduces an array, but \\(0.5\\) is a single number"),  # type: ignore[arg-type]
        (lambda p, g: norm(p, "group"), "scope is 'tensor' .*, not 'group'"),  # type: ignore[arg-type]
        (lambda p, g: size(norm(g)), "size\\(\\) is a property of the parameter, or of an array of its shape"),
        (lambda p, g: stored(norm(g)), "stored\\(\\) is for arrays, and for the numbers that the host computes"),
        (lambda p, g: stored(g, g), "takes the slot that holds x, an array read before it is written, not \\(g\\)"),
        (lambda p, g: matrix(abs, g, norm(g)), "is not a scalar: matrix\\(\\) hands on numbers that the host knows"),
    ],
)
def test_what_is_not_of_the_language_names_what_is(call: Callable[..., Any], instead: str) -> None:
    with pytest.raises(RuleError, match=instead):
        traced(lambda p, g, s, h: call(p, g))


@pytest.mark.parametrize("name", sorted(set(functions) & set(dir(torch))))
def test_each_function_that_torch_has_too_is_named(name: str) -> None:
    given = {"where": 3, "lerp": 3, "clip": 1}.get(name, 2 if name in ("minimum", "maximum", "atan2") else 1)

    message = refused(lambda p, g, s, h: getattr(torch, name)(*[g > 0, g, g][-given:]))

    assert f"torch.{name} is not of the language of update rules; use steprule.rule.{name}" in message


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        *((f"p {o} g", f"{o} does not apply to") for o in ("//", "@")),
        *((f"2 {o} g", f"{o} does not apply to") for o in ("//", "@")),
        ("p << g", "<< or >> does not apply to"),
        ("p ^ g", r"\^ does not apply to"),
        ("g[0]", r"\[...\] does not apply to \(g\).*sum\(x, dim=-1\).*matrix\(function, x\)"),
        ("g.__setitem__(0, p)", "does not apply to"),
        ("g in [p]", "can't decide by `if`"),
        ("0 in g", "in does not apply to"),
        ("g(2)", "a call does not apply to"),
        ("round(g)", r"use round\(x\) from steprule.rule"),
        ("divmod(p, g)", r"use floor\(a / b\) and a % b"),
        ("math.floor(g)", "use floor"),
        ("math.ceil(g)", "use ceil"),
        ("math.trunc(g)", "use floor"),
        ("complex(g)", "does not apply to"),
    ],
)
def test_other_operators_say_what_to_write(expression: str, message: str) -> None:
    names = {"math": math, "round": builtins.round}
    with pytest.raises(RuleError, match=message):
        traced(lambda p, g, s, h: eval(expression, names, {"p": p, "g": g}))


def test_a_rule_with_other_arguments_says_how_it_is_called() -> None:
    for rule in (lambda p, g: p, lambda p, g, s, h, x: p):
        with pytest.raises(RuleError, match=r"called with p, g, s and h, beside self: .*def update\(self, p, g, s, h"):
            traced(rule)
    traced(lambda p, g, *others: p - g)


def test_a_misspelt_slot_is_refused() -> None:
    def rule(p: Any, g: Any, s: Any, h: Any) -> Any:
        s.buf = 0.9 * s.buff + g
        return p - s.buf

    with pytest.raises(RuleError, match=r"reads s\.buff and never writes it, and writes s\.buf without having read it"):
        traced(rule)
    traced(rule, slots={"buff": array()})


def test_a_remainder_has_the_sign_of_the_divisor_as_in_python() -> None:
    for a, b in [(7.0, 3.0), (-7.0, 3.0), (7.0, -3.0), (6.0, 3.0), (0.5, 2.0)]:
        program = traced(lambda p, g, s, h: p - (h.lr % h.other) * (s.step % 3) * g, lr=a, other=b)
        values = program.host({"lr": a, "other": b}, 5.0, False, [], lambda _: 0.0, float)
        assert a % b * 2.0 in values


def test_an_unknown_hyperparameter_names_the_nearest() -> None:
    message = refused(lambda p, g, s, h: p - h.momentun * g, momentum=0.9, weight_decay=0.0)
    assert "the rule reads h.momentun, and 'momentun' is no hyperparameter; did you mean 'momentum'?" in message
    assert "'zzz' is no hyperparameter; there are " in refused(lambda p, g, s, h: p - h.zzz * g)


def test_a_wrong_rule_is_an_error_at_the_first_step_and_changes_nothing() -> None:
    class Wrong(Counted):
        def rule(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            s.m = s.m + g
            return p - g if h.lr > 0 else p

    p = weight()
    optimizer = Wrong([p])
    for _ in range(2):
        with pytest.raises(RuleError, match="Use where"):
            optimizer.step()
    assert torch.equal(p, torch.ones(3, dtype=torch.float64))
    assert not optimizer.state


def test_an_option_of_the_rules_own_must_be_read() -> None:
    class Deaf(Counted):
        pass

    class Hears(Counted):
        def rule(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            return p - h.lr * (-2 * g if h.maximize else g)

    with pytest.raises(RuleError, match=r"maximize=True stands among the rule's own .* does not read h.maximize"):
        Deaf([weight()], maximize=True).step()
    Deaf([weight()], maximize=False).step()
    p = weight()
    Hears([p], maximize=True).step()
    assert p[0].item() == pytest.approx(1.2, rel=1e-15)


# When a rule is traced again.


def test_a_changed_number_never_traces_again() -> None:
    class Rule(Counted):
        def rule(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            first, second = h.betas
            s.m = lerp(s.m, g, 1 - first)
            return p - h.lr * s.m / second

    p = weight()
    optimizer = Rule([p], betas=(0.5, 0.25))
    for step in range(20):
        optimizer.param_groups[0]["lr"] = [0.1 / (step + 1), 3, torch.tensor(0.25), np.float32(0.5)][step % 4]
        optimizer.param_groups[0]["betas"] = (0.5 / (step + 1), 0.25)
        optimizer.step()
    assert optimizer.calls == 1


def test_a_changed_answer_traces_again_by_itself_and_going_back_finds_the_old_program() -> None:
    p, q = weight(), weight()
    ours, theirs = SGD([p], lr=0.1), torch.optim.SGD([q], lr=0.1)
    calls = []
    original = ours.update
    ours.update = lambda *a: (calls.append(1), original(*a))[1]  # type: ignore[method-assign]
    traces = []
    for decay, momentum in [(0, 0), (0.1, 0), (0.2, 0), (0, 0), (0.1, 0.9), (0.1, 0), (0.0, 0), (0.3, 0.5), (0, 0)]:
        for optimizer in (ours, theirs):
            optimizer.param_groups[0].update(weight_decay=decay, momentum=momentum)
            optimizer.step()
        traces.append(len(calls))
        torch.testing.assert_close(p, q, rtol=1e-14, atol=0)
    assert traces == [1, 2, 2, 2, 3, 3, 3, 3, 3]


def test_flags_none_and_strings_are_branched_on() -> None:
    class Rule(Counted):
        def rule(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            if h.mode == "sign":
                g = sign(g)
            if h.limit is not None:
                g = minimum(g, h.limit)
            return p - h.lr * (2 * g if h.twice else g)

    p = weight(value=0.0, grad=3.0)
    optimizer = Rule([p], mode="plain", limit=None, twice=False, lr=1.0)
    group = optimizer.param_groups[0]

    def moved() -> float:
        with torch.no_grad():
            p.zero_()
        optimizer.step()
        return -p[0].item()

    assert moved() == 3
    group["limit"] = 2
    assert moved() == 2
    group["limit"] = 2.5
    assert moved() == 2.5
    assert optimizer.calls == 2
    group["limit"] = None
    assert moved() == 3
    assert optimizer.calls == 2
    group["twice"] = True
    assert moved() == 6
    group["mode"] = "sign"
    assert moved() == 2
    group["limit"] = 0.25
    assert moved() == 0.5
    assert optimizer.calls == 5
    group.update(mode="plain", limit=None, twice=False)
    assert moved() == 3
    assert optimizer.calls == 5


def test_every_kind_of_zero_question() -> None:
    class Rule(Counted):
        def rule(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            step = g
            if h.a == 0:
                step = step + 10
            if h.a != 0:
                step = step + 20
            if not h.b:
                step = step + 100
            if h.a * h.b - 1 == 0:
                step = step + 1000
            if h.a and h.b:
                step = step + 10000
            return p - step

    p = weight(value=0.0)
    optimizer = Rule([p], a=0, b=0)

    def moved(a: float, b: float) -> float:
        optimizer.param_groups[0].update(a=a, b=b)
        with torch.no_grad():
            p.zero_()
        optimizer.step()
        return -p[0].item()

    assert [moved(0, 0), moved(2, 0), moved(0, 2), moved(2, 2), moved(2, 0.5), moved(4, 0.25)] == [
        111,
        121,
        11,
        10021,
        11021,
        11021,
    ]
    assert optimizer.calls == 5


def test_questions_that_differ_in_the_last_digit_are_two_questions() -> None:
    class Rule(Counted):
        def rule(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            first = 1 if h.x - 1.0000001 else 2
            second = 1 if h.x - 1.00000011 else 2
            return p * 0 + first + 10 * second

    p = weight()
    optimizer = Rule([p], x=0.0)
    found = []
    for x in (0.0, 1.0000001, 1.00000011):
        optimizer.param_groups[0]["x"] = x
        optimizer.step()
        found.append(p[0].item())
    assert found == [11, 12, 21]


class Configured(Sequence[float]):
    """A list as configuration libraries have them."""

    def __init__(self, values: list[float]) -> None:
        self.values = values

    def __getitem__(self, index: Any) -> Any:
        return self.values[index]

    def __setitem__(self, index: int, value: float) -> None:
        self.values[index] = value

    def __len__(self) -> int:
        return len(self.values)


@pytest.mark.parametrize("kind", [list, Configured, np.array])
def test_any_list_of_numbers_counts_as_it_is_at_each_step(kind: Any) -> None:
    class Rule(Counted):
        def rule(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            first, second = h.betas
            return p - first * second * g

    p, betas = weight(value=0.0), kind([2.0, 3.0])
    optimizer = Rule([p], betas=betas)
    optimizer.step()
    betas[0] = 0.5
    optimizer.step()
    assert p[0].item() == -6.0 - 1.5
    assert optimizer.calls == 1


def test_a_flag_that_is_changed_in_place_is_asked_again() -> None:
    class Rule(Counted):
        def rule(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            return p - (1.0 if h.table["slow"] else 2.0) * g

    p, table = weight(value=0.0), {"slow": True}
    optimizer = Rule([p], table=table)
    optimizer.step()
    table["slow"] = False
    optimizer.step()
    assert p[0].item() == -3.0
    assert optimizer.calls == 2


def test_a_number_in_a_table_that_is_changed_in_place_is_read_again() -> None:
    class Rule(Counted):
        def rule(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            return p - h.table["rate"] * g

    p, table = weight(value=0.0), {"rate": 1.0}
    optimizer = Rule([p], table=table)
    optimizer.step()
    table["rate"] = 2.0
    optimizer.step()
    assert p[0].item() == -3.0


def test_betas_as_a_list_and_a_rate_tensor_changed_in_place() -> None:
    class Rule(Counted):
        def rule(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            first, second = h.betas
            return p - h.lr * first * second * g

    p = weight(value=0.0)
    rate, betas = torch.tensor(0.5, dtype=torch.float64), [2.0, 3.0]
    optimizer = Rule([p], betas=betas)
    optimizer.param_groups[0]["lr"] = rate
    optimizer.step()
    assert p[0].item() == -3.0
    rate.mul_(2)
    optimizer.param_groups[0]["betas"][1] = 5.0
    optimizer.step()
    assert p[0].item() == -13.0
    assert optimizer.calls == 1


def test_groups_that_differ_in_numbers_share_a_program_and_a_launch() -> None:
    p, q, r = weight(), weight(), weight()
    optimizer = SGD([{"params": [p], "lr": 0.1}, {"params": [q], "lr": 0.2}, {"params": [r], "momentum": 0.5}], lr=1.0)
    optimizer.step()
    assert optimizer.explain().count("llvm:") == 2
    assert [t[0].item() for t in (p, q, r)] == pytest.approx([0.9, 0.8, 0.0], rel=1e-15)


# What a rule may say.


def test_groups_that_differ_in_what_the_host_computes_share_no_launch() -> None:
    """A flag and a zero that leave the passes over memory as they are, and change only the numbers that they get."""

    class Scaled(Optimizer):
        def __init__(self, params: Any, lr: float = 1.0, doubled: bool = False, extra: float = 0.0) -> None:
            super().__init__(params, dict(lr=lr, doubled=doubled, extra=extra))

        def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            rate = h.lr * 2 if h.doubled else h.lr * 3
            if h.extra:
                rate = rate + h.extra
            s.count = s.count + (2 if h.doubled else 1)
            return p - rate * g

        slots = {"count": scalar(0.0)}  # noqa: RUF012

    options: list[dict[str, Any]] = [{"doubled": True}, {}, {"extra": 10.0}, {"extra": 20.0}]
    params = [torch.zeros(3, requires_grad=True) for _ in options]
    optimizer = Scaled([{"params": [p], **o} for p, o in zip(params, options, strict=True)])
    for p in params:
        p.grad = torch.ones(3)
    optimizer.step()
    assert [p[0].item() for p in params] == [-2, -3, -13, -23]
    assert [optimizer.state[p]["count"].item() for p in params] == [2, 1, 1, 1]
    assert len(launches(optimizer)) == 3


def test_operators_and_functions_accept_numbers_on_either_side() -> None:
    def rule(p: Any, g: Any, s: Any, h: Any) -> Any:
        total = 2 + p
        total = total - (3 - p) + 4 * p - 8 / p + 2**p + (+p) - (-p) + abs(p)
        total = total + where(True, p, 0) + where(g > 0, 1, 0) + (p < 5) * 1 + minimum(1, p) + maximum(p, 7)
        return total + power(2, p) + lerp(0, p, 0.5) + clip(p, 1, 2) + square(3) + rsqrt(4) + exp(0) + floor(1.5)

    x = 1.5
    p = torch.tensor([x], dtype=torch.float64, requires_grad=True)
    p.grad = torch.ones_like(p)

    class Rule(Optimizer):
        update = staticmethod(rule)

    Rule([p]).step()
    expected = 2 + x - (3 - x) + 4 * x - 8 / x + 2**x + x + x + x + x + 1 + 1 + 1 + 7 + 2**x + x / 2 + x + 9.5 + 1 + 1
    assert p.item() == pytest.approx(expected, rel=1e-15)


def test_flags_combine_with_conditions() -> None:
    def rule(p: Any, g: Any, s: Any, h: Any) -> Any:
        return where(h.on & (g > 0), p, 0.0) + where((g < 0) | h.on, 1, 2) + where(~(g > 0), 4, 8)

    p = weight()

    class Rule(Optimizer):
        update = staticmethod(rule)

    Rule([p], {"on": True}).step()
    assert p[0].item() == 1 + 1 + 8


def test_slots_by_use_by_declaration_and_with_what_they_start() -> None:
    class Rule(Counted):
        slots = {  # noqa: RUF012
            "full": array(2.5),
            "rate": array("lr"),
            "copy": array("parameter"),
            "half": array(1.0, "float16"),
            "count": scalar(3.0),
            "start": scalar("lr"),
        }

        def rule(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            s.plain = s.plain + g
            s.made = s.step
            s.full = s.full + 1
            s.half = s.half + 1
            s.count = s.count * 2
            s.start = s.start + 1
            return p + s.rate + s.copy

    p = weight(value=1.0)
    optimizer = Rule([p], lr=0.5)
    optimizer.step()
    state = optimizer.state[p]
    assert p[0].item() == 1 + 0.5 + 1
    names = ["step", "count", "start", "made", "plain", "full", "half", "rate", "copy"]
    assert sorted(state) == sorted(names)
    assert [state[n].ndim for n in names] == [0, 0, 0, 0, 1, 1, 1, 1, 1]
    assert [state[n].flatten()[0].item() for n in names] == [1, 6, 1.5, 1, 1, 3.5, 2, 0.5, 1]
    assert state["half"].dtype == torch.float16
    assert state["count"].dtype == torch.float32


def test_is_new_holds_in_the_first_update_only_also_without_any_slot() -> None:
    class Rule(Counted):
        def rule(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            return p + where(s.is_new, 100, 1)

    p, q = weight(value=0.0), weight(value=0.0)
    optimizer = Rule([p, q])
    for step in range(4):
        q.grad = None if step in (0, 2) else torch.ones_like(q)
        optimizer.step()
    assert (p[0].item(), q[0].item()) == (103, 101)


def test_scalars_are_computed_in_double_precision_on_the_host() -> None:
    class Rule(Counted):
        def rule(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            return p - h.lr * ((1 - h.beta**s.step) / (1 - h.beta) - 1)

    p = weight(value=0.0, dtype=torch.float32)
    optimizer = Rule([p], beta=1 - 2.0**-30, lr=1.0)
    optimizer.step()
    optimizer.step()
    # in float32 beta would be 1, and the quotient NaN
    assert p[0].item() == pytest.approx(-1.0, rel=1e-6)


def test_equal_expressions_are_computed_once() -> None:
    def rule(p: Any, g: Any, s: Any, h: Any) -> Any:
        a, b = sqrt(g * g + h.eps), sqrt(g * g + h.eps)
        s.first, s.second = s.first + 1 / a, s.second + 1 / b
        return p - (1 - h.lr) * a * (1 - h.lr) / b

    program = traced(rule, eps=1e-8)

    [phase] = program.phases
    operations = [o.op for o in phase.operations]
    assert operations.count("sqrt") == 1
    assert operations.count("read") == len({o.detail for o in phase.operations if o.op == "read"}) == 4
    assert len(program.scalars) == 2  # eps, 1 - lr


def test_a_long_rule_is_traced_in_no_time() -> None:
    def rule(p: Any, g: Any, s: Any, h: Any) -> Any:
        x, rate = g, h.lr
        for _ in range(60):
            x = x * (1.5 - 0.5 * x * x)
            rate = rate * (1 - rate) + rate
        s.x = x
        if rate:
            return p - rate * x
        return p

    program = traced(rule)

    [phase] = program.phases
    assert len(phase.operations) < 400


# Phases.


def stages(program: Program) -> list[tuple[list[int], int, int]]:
    """For each pass: the operands it stores, how many reductions and how many matrix steps end it."""
    return [(sorted(o for o, _ in f.stores), len(f.reductions), len(f.matrices)) for f in program.phases]


def test_reductions_make_phases() -> None:
    def elementwise(p: Any, g: Any, s: Any, h: Any) -> Any:
        return p - h.lr * g

    def normed(p: Any, g: Any, s: Any, h: Any) -> Any:
        return p - h.lr * g / norm(g) / sum(p)

    def chained(p: Any, g: Any, s: Any, h: Any) -> Any:
        x = g / norm(g)
        y = x - mean(x)
        return p - y / max_abs(y)

    assert stages(traced(elementwise)) == [([0], 0, 0)]
    assert stages(traced(normed)) == [([], 2, 0), ([0], 0, 0)]
    assert stages(traced(chained)) == [([], 1, 0), ([], 1, 0), ([], 1, 0), ([0], 0, 0)]


def test_a_slot_is_stored_in_the_earliest_pass_after_which_nothing_reads_what_it_was() -> None:
    def identity(x: Any) -> Any:
        return x

    def muon(p: Any, g: Any, s: Any, h: Any) -> Any:
        s.m = 0.9 * s.m + g
        return p - matrix(identity, s.m)

    def recomputed(p: Any, g: Any, s: Any, h: Any) -> Any:
        s.m = 0.9 * s.m + g
        return p - s.m / norm(s.m)

    def read_late(p: Any, g: Any, s: Any, h: Any) -> Any:
        s.m, old = g, s.m
        s.late = s.late + old / norm(old)
        return p - g

    # what a function of matrices may raise, it raises before anything but its operand is written
    assert stages(traced(muon)) == [([3], 0, 1), ([0, 2], 0, 0)]
    assert stages(traced(recomputed)) == [([], 1, 0), ([0, 2], 0, 0)]
    assert stages(traced(read_late)) == [([], 1, 0), ([0, 2, 3], 0, 0)]


@pytest.mark.parametrize("backend", ["llvm", "eager"])
def test_old_and_new_values_of_slots_over_several_passes(backend: str) -> None:
    class Rule(Counted):
        def rule(self, p: Any, g: Any, s: Any, h: Any) -> Any:
            old, s.a = s.a, g + 1
            s.b = s.b + old + norm(old)
            s.c = s.a
            return p - s.a * norm(s.b) - old

    p = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
    optimizer = Rule([p])
    optimizer.param_groups[0]["backend"] = backend
    a = b = torch.zeros(2, dtype=torch.float64)
    expected = p.detach().clone()
    for step in range(3):
        p.grad = g = torch.tensor([step, -2.0], dtype=torch.float64)
        optimizer.step()
        old, a = a, g + 1
        b = b + old + old.norm()
        expected = expected - a * b.norm() - old
        torch.testing.assert_close(p.detach(), expected, rtol=1e-14, atol=0)
        for name, value in {"a": a, "b": b, "c": a}.items():
            torch.testing.assert_close(optimizer.state[p][name], value, rtol=1e-14, atol=0)


# A Program as text.

SGD_TEXT = """\
SGD  [maximize is False, l1 = 0, weight_decay ≠ 0, momentum ≠ 0, nesterov is True, rounding is 'nearest']
  host     c4 = 1 - dampening
  pass 1   t0 = g + weight_decay * p
  pass 1   t1 = where(is_new, t0, momentum * momentum_buffer + c4 * t0)
  pass 1   p ← p - lr * (t0 + momentum * t1)
  pass 1   momentum_buffer ← t1"""

ADAMW_TEXT = """\
AdamW  [maximize is False, l1 = 0, decoupled_weight_decay is True, amsgrad is False, rounding is 'nearest']
  host     c0 = 1 - lr * weight_decay
  host     c1 = lr / (1 - betas[0] ** step)
  host     c2 = 1 - betas[0]
  host     c4 = 1 - betas[1]
  host     c5 = 1 / sqrt(1 - betas[1] ** step)
  pass 1   t0 = exp_avg + c2 * (g - exp_avg)
  pass 1   t1 = betas[1] * exp_avg_sq + c4 * g * g
  pass 1   p ← p * c0 - c1 * t0 / (sqrt(t1) * c5 + eps)
  pass 1   exp_avg ← t0
  pass 1   exp_avg_sq ← t1"""

LAMB_TEXT = """\
Rule
  host     c0 = 1 - betas[0]
  host     c1 = 1 - betas[0] ** step
  host     c3 = 1 - betas[1]
  host     c4 = 1 - betas[1] ** step
  pass 1   r0 = sum_of_squares(p)
  pass 1   t0 = exp_avg + c0 * (g - exp_avg)
  pass 1   t1 = betas[1] * exp_avg_sq + c3 * g * g
  pass 1   t2 = t0 / c1 / (sqrt(t1 / c4) + eps) + weight_decay * p
  pass 1   r1 = sum_of_squares(t2)
  pass 2   t3 = sqrt(r0)
  pass 2   t4 = sqrt(r1)
  pass 2   p ← p - lr * where(t3 > 0 and t4 > 0, t3 / t4, 1) * t2
  pass 2   exp_avg ← t0
  pass 2   exp_avg_sq ← t1"""


def lamb(p: Any, g: Any, s: Any, h: Any) -> Any:
    beta1, beta2 = h.betas
    s.exp_avg = lerp(s.exp_avg, g, 1 - beta1)
    s.exp_avg_sq = beta2 * s.exp_avg_sq + (1 - beta2) * g * g
    update = s.exp_avg / (1 - beta1**s.step) / (sqrt(s.exp_avg_sq / (1 - beta2**s.step)) + h.eps) + h.weight_decay * p
    of_p, of_update = norm(p), norm(update)
    return p - h.lr * where((of_p > 0) & (of_update > 0), of_p / of_update, 1.0) * update


def program_of(optimizer: Optimizer) -> Program:
    optimizer.step()
    [(_, program)] = optimizer._workings.planner.programs
    return program


def test_a_program_reads_as_mathematics() -> None:
    assert str(program_of(SGD([weight()], momentum=0.9, weight_decay=0.1, nesterov=True))) == SGD_TEXT
    assert str(program_of(AdamW([weight()]))) == ADAMW_TEXT
    assert str(traced(lamb, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01)) == LAMB_TEXT


def test_scalar_slots_inputs_and_matrix_steps_are_shown() -> None:
    def rule(p: Any, g: Any, s: Any, h: Any) -> Any:
        s.eta = s.eta * 0.5
        s.m = s.m + g
        return p - s.eta * matrix(orthogonal, s.m)

    def orthogonal(x: Any) -> Any:
        return x

    program = trace(rule, BASE | {"clip_norm": 0.5}, {"eta": scalar(1.0)}, name="Rule", modifiers=[Unscale(), Clip()])

    assert str(program).splitlines()[1:] == [
        "  host     c1 = eta * 0.5",
        "  pass 1   t0 = g * (1 / grad_scale)",
        "  pass 1   r1 = sum_of_squares(t0, all)",
        "  pass 2   t1 = m + t0 * minimum(1, clip_norm / (sqrt(r1) + 1e-06))",
        "  pass 2   m0 ← orthogonal(t1)",
        "  pass 3   p ← p - c1 * m0",
        "  pass 3   m ← t1",
        "  pass 3   g ← t0",
        "  host     eta ← eta * 0.5",
    ]


BINARY = ["add", "sub", "mul", "div", "pow", "lt", "le", "gt", "ge", "eq", "ne", "and", "or", "minimum", "maximum"]
UNARY = ["neg", "not", "abs", "sqrt", "exp", "isnan"]

leaves = st.sampled_from([Expression("hyper", detail=(n,)) for n in "abc"]) | st.sampled_from(
    [Expression("constant", detail=v) for v in (0.0, 1.0, -2.0, 0.5, 1e-6, 1 / 3)]
)
expressions = st.recursive(
    leaves,
    lambda inner: (
        st.builds(lambda op, a: Expression(op, (a,)), st.sampled_from(UNARY), inner)
        | st.builds(lambda op, a, b: Expression(op, (a, b)), st.sampled_from(BINARY), inner, inner)
        | st.builds(lambda a, b, c: Expression("where", (a, b, c)), inner, inner, inner)
    ),
    max_leaves=8,
)


NODES = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.Div: "div",
    ast.Pow: "pow",
    ast.USub: "neg",
    ast.Not: "not",
    ast.Lt: "lt",
    ast.LtE: "le",
    ast.Gt: "gt",
    ast.GtE: "ge",
    ast.Eq: "eq",
    ast.NotEq: "ne",
    ast.And: "and",
    ast.Or: "or",
}


def meaning(node: Any, names: dict[str, float]) -> Any:
    """What a piece of Python text is as mathematics: its grammar, with the operations of a rule."""
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            return names[node.id]
        case ast.BinOp():
            return OPERATIONS[NODES[type(node.op)]](meaning(node.left, names), meaning(node.right, names))
        case ast.UnaryOp():
            return OPERATIONS[NODES[type(node.op)]](meaning(node.operand, names))
        case ast.Compare(ops=[operator]):
            return OPERATIONS[NODES[type(operator)]](meaning(node.left, names), meaning(node.comparators[0], names))
        case ast.BoolOp():
            values = [meaning(value, names) for value in node.values]
            return reduce(OPERATIONS[NODES[type(node.op)]], values)
        case ast.Call():
            return OPERATIONS[node.func.id](*(meaning(a, names) for a in node.args))
    raise AssertionError(f"not one expression: {ast.unparse(node)}")


def equal(a: Any, b: Any) -> bool:
    a, b = float(a), float(b)
    return a == b or (a != a and b != b)


VALUES = st.tuples(*[st.sampled_from([0.0, 1.0, -1.5, 2.0, math.inf, -math.inf, math.nan])] * 3)


@given(expressions, VALUES)
def test_the_text_of_an_expression_means_the_expression(e: Expression, values: tuple[float, ...]) -> None:
    group = dict(zip("abc", values, strict=True))
    expected = evaluate(e, lambda leaf: group[leaf.detail[0]])

    assert equal(meaning(ast.parse(repr(e), mode="eval").body, group), expected)


@given(expressions, VALUES)
def test_compiled_scalars_are_what_evaluation_gives(e: Expression, values: tuple[float, ...]) -> None:
    group = dict(zip("abc", values, strict=True))
    [compiled] = compile_scalars([e], [])(group, 1.0, False, [], None, float)
    assert equal(compiled, evaluate(e, lambda leaf: group[leaf.detail[0]]))


def test_levels_decide_where_an_expression_is_computed() -> None:
    seen: dict[str, Any] = {}

    def rule(p: Any, g: Any, s: Any, h: Any) -> Any:
        seen["scalar"] = h.lr * (1 - 0.9**s.step)
        seen["reduced"] = seen["scalar"] / norm(g)
        seen["array"] = seen["reduced"] * g
        return p - seen["array"] + where(ceil(s.step) > 3, 1, 2) * g

    traced(rule)
    assert [seen[k].level for k in ("scalar", "reduced", "array")] == [Level.SCALAR, Level.REDUCED, Level.ARRAY]


class OnGPU:
    """A number that nobody may wait to look at."""

    is_cuda = True

    def __float__(self) -> float:
        raise AssertionError("somebody waited for it")


def test_a_number_on_a_gpu_is_taken_as_not_zero() -> None:
    hyper: dict[str, Any] = dict(lr=0.1, weight_decay=OnGPU())
    program = trace(lambda p, g, s, h: p - h.lr * (g + h.weight_decay * p if h.weight_decay else g), hyper)
    assert program.serves(hyper)
    assert any(e.op == "hyper" and e.detail == ("weight_decay",) for e in program.scalars)
    assert not program.serves(hyper | {"weight_decay": 0.0})
    assert program.serves(hyper | {"weight_decay": 0.5})
