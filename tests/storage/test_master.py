"""bfloat16 weights with what they lack of a float32 beside them."""

import copy
import warnings
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from every_algorithm import MATRIX, MOVING, ONLY_MATRICES, RULES
from held_state import Make, assert_refused, gradients, run
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import coo, give, normal
from torch import Tensor

import steprule
from steprule import LBFGS, SGD, AdamW, Lion
from steprule.kernels.masters import joined
from steprule.modifiers import EMA, SAM, Cautious, Lookahead, ScheduleFree

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
MASTERS = ("8bit", "16bit", "float32")
KINDS: dict[str, Make] = {
    "AdamW": lambda p, **o: AdamW(p, lr=1e-3, weight_decay=0.1, **o),
    "SGD": lambda p, **o: SGD(p, lr=1e-2, momentum=0.9, nesterov=True, **o),
    "Lion": lambda p, **o: Lion(p, lr=1e-4, **o),
}


def weights(p: Tensor, state: dict[str, Any]) -> Tensor:
    """The float32 weights, put together from the definition."""
    held = state["master"]
    if held.dtype == F32:
        return held.clone()
    upper = p.detach().contiguous().view(torch.int16).to(torch.int64) << 16
    lower = held.contiguous().to(torch.int64) << (0 if held.dtype == torch.int16 else 8)
    return ((upper + lower + 2**31) % 2**32 - 2**31).to(torch.int32).view(F32)


def parts(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bits of the nearest bfloat16, away from zero in a tie, and the rest."""
    bits = x.view(np.uint32).astype(np.int64)
    upper = (bits + 0x8000) >> 16
    return upper.astype(np.uint16), (bits - (upper << 16)).astype(np.int16)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


@settings(deadline=None, max_examples=25)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    shape=st.sampled_from([(), (1,), (7, 3), (257,), (40, 130), (2, 3, 8, 9)]),
    permuted=st.booleans(),
    held=st.sampled_from(["float32", "bfloat16", "8bit"]),
    backend=st.sampled_from(["llvm", "eager"]),
)
def test_16_bits_beside_train_as_float32_weights_do(
    kind: str, shape: tuple[int, ...], permuted: bool, held: str, backend: str
) -> None:
    grads = gradients(shape, 4, BF16, scale=1.0)
    start = normal(*shape, seed=3, dtype=BF16)
    if permuted:
        turned = tuple(reversed(range(len(shape))))
        start, grads = start.permute(turned), [g.permute(turned) for g in grads]
    known: dict[str, Any] = dict(state_dtype=held, backend=backend)
    wide, state, _ = run(lambda p: KINDS[kind](p, **known), start.float(), [g.float() for g in grads])
    for master in ("16bit", "float32"):
        weight, own, _ = run(lambda p, m=master: KINDS[kind](p, master=m, **known), start, grads)
        assert torch.equal(weights(weight, own), wide)
        upper = torch.from_numpy(np.asarray(parts(wide.numpy())[0]).view(np.int16))
        assert torch.equal(weight.view(torch.int16), upper)
        assert own["master"].stride() == weight.stride()
        assert all(torch.equal(value, own[name]) for name, value in state.items())


QUICK = {"Adafactor", "Adam", "AdamW", "AdEMAMix", "Lamb", "Lion", "Muon", "Prodigy", "ScheduleFreeAdamW", "SGD"}
"""One of each kind; the others are tested with what is slow."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in RULES if name != "SparseAdam"],
)
def test_every_algorithm_trains_so(name: str) -> None:
    shapes = [(70, 64)] if name in ONLY_MATRICES else [(70, 64), (9,)]

    def trained(dtype: torch.dtype, **options: Any) -> list[Tensor]:
        params = [normal(*shape, seed=i, dtype=BF16).to(dtype).requires_grad_() for i, shape in enumerate(shapes)]
        optimizer = getattr(steprule, name)(params, **MOVING.get(name, {}), **options)
        for step in range(3):
            for i, p in enumerate(params):
                p.grad = normal(*p.shape, seed=10 * step + i, dtype=BF16).to(dtype)
            optimizer.step()
        return [weights(p, optimizer.state[p]) if dtype == BF16 else p.detach() for p in params]

    one, other = (trained(BF16, master=master) for master in ("16bit", "float32"))
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)
    if name not in MATRIX and name not in ("CAME", "Adafactor"):
        full = trained(F32, state_dtype=None)
        for a, b in zip(one, full, strict=True):
            torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)


@settings(deadline=None, max_examples=20)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    shape=st.sampled_from([(7, 3), (257,), (80, 70)]),
    master=st.sampled_from(MASTERS),
    held=st.sampled_from([None, "float32", "8bit"]),
    rounding=st.sampled_from(["nearest", "stochastic"]),
)
def test_every_kernel_gives_the_same_bits(
    kind: str, shape: tuple[int, ...], master: str, held: Any, rounding: str
) -> None:
    known: dict[str, Any] = dict(master=master, state_dtype=held)
    if master == "8bit":
        known["rounding"] = rounding
    start, grads = normal(*shape, seed=1, dtype=BF16), gradients(shape, 3, BF16, scale=1.0)
    found = [run(lambda p, b=b: KINDS[kind](p, backend=b, **known), start, grads) for b in ("llvm", "eager")]
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(value, found[1][1][name]) for name, value in found[0][1].items())


def test_8_bits_beside_are_the_nearest_24_bits_of_each_float32() -> None:
    start, grad = normal(3000, seed=1, dtype=BF16), normal(3000, seed=2, dtype=BF16)
    weight, state, _ = run(lambda p: SGD(p, lr=1e-3, master="8bit"), start, [grad])
    new = start.float().numpy() - np.float32(1e-3) * grad.float().numpy()
    bits = new.view(np.uint32).astype(np.int64)
    nearest = ((bits + 0x7F + ((bits >> 8) & 1)) >> 8) << 8
    upper, lower = parts(nearest.astype(np.uint32).view(np.float32))
    np.testing.assert_array_equal(weight.view(torch.int16).numpy(), upper.view(np.int16))
    np.testing.assert_array_equal(state["master"].numpy(), lower >> 8)


@pytest.mark.parametrize("options", [{"master": "8bit"}, {"master": "8bit", "rounding": "stochastic"}])
def test_updates_below_half_a_unit_are_not_lost(options: dict[str, Any]) -> None:
    grads = [torch.ones(4096, dtype=BF16)] * 200
    lr = 1e-4 if options == {"master": "8bit"} else 1e-6
    weight, state, _ = run(lambda p: SGD(p, lr=lr, **options), torch.ones(4096, dtype=BF16), grads)
    lost = 1 - float(weights(weight, state).double().mean())
    assert abs(lost / (200 * lr) - 1) < 0.1


class Still(steprule.Optimizer):
    """Leaves the weights as they are."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, {}, **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        return p


@pytest.mark.parametrize("backend", ["llvm", "eager"])
def test_every_bit_survives_the_split(backend: str) -> None:
    """Of NaN the upper half of its bits, which are all that a bfloat16 shows."""
    random = np.random.default_rng(0).integers(0, 2**16, 2**16).astype(np.uint32)
    bits = (np.arange(2**16, dtype=np.uint32) << np.uint32(16)) | random
    bits[:4] = 0x7F7FFFFF, 0x00008000, 0xFF7F8000, 0x80000001
    signalling = np.isnan(bits.view(np.float32)) & (bits & 0x400000 == 0)
    bits = bits[~signalling]
    x = torch.from_numpy(bits.view(np.float32).copy())
    upper, lower = parts(x.numpy())
    isnan = torch.isnan(x).numpy()
    upper = np.where(isnan, (bits >> 16).astype(np.uint16), upper)
    weight = torch.from_numpy(upper.view(np.int16).copy()).view(BF16).requires_grad_()
    weight.grad = torch.ones_like(weight)
    optimizer = Still([weight], master="16bit", backend=backend)
    optimizer.state[weight] = {"master": torch.from_numpy(np.where(isnan, 0, lower))}
    optimizer.step()
    assert torch.equal(weight.detach().view(torch.int16), torch.from_numpy(upper.view(np.int16)))
    assert torch.equal(optimizer.state[weight]["master"], torch.from_numpy(np.where(isnan, 0, lower)))
    wide = x.clone()
    wide[torch.from_numpy(isnan)] = torch.from_numpy((bits[isnan] & np.uint32(0xFFFF0000)).view(np.float32))
    assert same_bits(joined(weight, optimizer.state[weight]["master"]), wide)


@pytest.mark.parametrize("master", MASTERS)
@pytest.mark.parametrize("backend", ["llvm", "eager"])
def test_nan_and_infinity_stay_what_they_are(master: str, backend: str) -> None:
    weight = torch.ones(4, dtype=BF16, requires_grad=True)
    optimizer = SGD([weight], lr=1.0, master=master, backend=backend)
    for _ in range(2):
        weight.grad = torch.tensor([1.0, torch.nan, torch.inf, -torch.inf], dtype=BF16)
        optimizer.step()
        assert weight.isnan().tolist() == [False, True, False, False]
        assert weight[2:].tolist() == [-torch.inf, torch.inf]


# -- who else writes to the weights -----------------------------------------------------------------------------------


@pytest.mark.parametrize("master", MASTERS)
def test_weights_that_somebody_has_written_to_start_anew_with_a_warning(master: str) -> None:
    grads = gradients((40, 30), 4, BF16, scale=1.0)
    weight, _, optimizer = run(lambda p: SGD(p, lr=1e-2, master=master), normal(40, 30, dtype=BF16), grads[:2])
    p = optimizer.param_groups[0]["params"][0]
    with torch.no_grad():
        p.mul_(2)
    other, _, _ = run(lambda p: SGD(p, lr=1e-2, master=master), p.detach(), grads[2:])
    p.grad = grads[2].clone()
    with pytest.warns(UserWarning, match="parameter 0 of group 0 was written to since the last step"):
        optimizer.step()
    p.grad = grads[3].clone()
    optimizer.step()
    assert torch.equal(weight, other)


def test_a_float32_that_does_not_round_to_the_weight_gives_way() -> None:
    """As after ``weight.data.copy_()``, which no version tells."""
    weight, _, optimizer = run(
        lambda p: SGD(p, lr=0.0, master="float32"), torch.ones(9, dtype=BF16), gradients((9,), 1, BF16)
    )
    p = optimizer.param_groups[0]["params"][0]
    p.data.fill_(3.0)
    p.grad = torch.zeros(9, dtype=BF16)
    optimizer.step()
    assert (p == 3).all()
    assert (optimizer.state[p]["master"] == 3).all()
    assert (weight == 3).all()


@pytest.mark.parametrize("modifier", [EMA(0.9), Lookahead(2, 0.5), ScheduleFree()])
def test_weights_to_evaluate_with_come_and_go_without_a_trace(modifier: Any) -> None:
    grads, start = gradients((40, 30), 6, BF16, scale=1.0), normal(40, 30, dtype=BF16)

    moved = []

    def trained(evaluated: bool) -> tuple[Tensor, Tensor]:
        weight = start.clone().requires_grad_()
        optimizer = SGD([weight], lr=1e-2, master="16bit", state_dtype=None, modifiers=[copy.deepcopy(modifier)])
        for grad in grads:
            weight.grad = grad.clone()
            optimizer.step()
            if evaluated:
                before = weight.detach().clone()
                with optimizer.evaluating():
                    moved.append(not torch.equal(weight, before))
                assert torch.equal(weight, before)
        return weight.detach(), optimizer.state[weight]["master"]

    assert all(map(torch.equal, trained(True), trained(False)))
    assert any(moved)


def test_a_second_point_is_gone_to_and_back_without_a_trace() -> None:
    def trained(dtype: torch.dtype, **options: Any) -> tuple[Tensor, dict[str, Any]]:
        p = normal(40, 30, dtype=BF16).to(dtype).requires_grad_()
        optimizer = SGD([p], lr=1e-2, modifiers=[SAM(0.05)], **options)
        for step in range(3):
            for part in range(2):
                p.grad = normal(40, 30, seed=10 * step + part, dtype=BF16).to(dtype)
                (optimizer.second_step if part else optimizer.first_step)()
        return p.detach(), optimizer.state[p]

    assert torch.equal(weights(*trained(BF16, master="16bit")), trained(F32)[0])


def test_a_step_that_is_tried_leaves_no_trace() -> None:
    weight = normal(40, 30, dtype=BF16).requires_grad_()
    optimizer = SGD([weight], lr=1e-2, master="16bit")
    for step in range(3):
        weight.grad = normal(40, 30, seed=step, dtype=BF16)
        optimizer.step()  # a warning would be an error
        before = optimizer.state[weight]["master"].clone()
        optimizer.untrained()
        assert torch.equal(optimizer.state[weight]["master"], before)


def test_modifiers_see_the_whole_weights() -> None:
    grads, start = gradients((40, 30), 5, BF16, scale=1.0), normal(40, 30, dtype=BF16)
    modifiers = [Cautious(), EMA(0.9)]
    wide, _, _ = run(lambda p: AdamW(p, modifiers=modifiers), start.float(), [g.float() for g in grads])
    weight, state, _ = run(
        lambda p: AdamW(
            p, modifiers=modifiers, master="16bit", state_dtype={"exp_avg": "float32", "exp_avg_sq": "float32"}
        ),
        start,
        grads,
    )
    assert torch.equal(weights(weight, state), wide)


@pytest.mark.parametrize("kind", ["AdamW", "Lion"])
@pytest.mark.parametrize("master", MASTERS)
def test_a_step_in_backward_has_the_bits_of_plain_steps(kind: str, master: str) -> None:
    found = []
    for in_backward in (True, False):
        torch.manual_seed(0)
        linear = torch.nn.Linear(150, 150)
        model = torch.nn.Sequential(linear, torch.nn.Tanh(), torch.nn.Linear(150, 3)).to(BF16)
        optimizer = KINDS[kind](model, master=master)
        if in_backward:
            optimizer.step_in_backward(model)
        for step in range(4):
            model(normal(5, 150, seed=step).to(BF16)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            linear.weight.mul_(1.5)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            model(normal(5, 150).to(BF16)).square().sum().backward()
            optimizer.step()
        assert ["'0.weight' was written to" in str(w.message) for w in said] == [True]
        found.append([*model.parameters(), *(optimizer.state[p]["master"] for p in model.parameters())])
    assert all(map(torch.equal, *found))


# -- states -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loaded", MASTERS)
@pytest.mark.parametrize("saved", MASTERS)
@pytest.mark.parametrize("full", [False, True])
def test_a_run_goes_on_from_what_was_saved_in_any_form(saved: str, loaded: str, full: bool) -> None:
    grads, start = gradients((40, 30), 6, BF16, scale=1.0), normal(40, 30, dtype=BF16)

    def make(master: str) -> Make:
        return lambda p: AdamW(p, master=master, state_dtype="float32")

    wanted, state, _ = run(make(saved), start, grads)
    weight, before, optimizer = run(make(saved), start, grads[:3])
    other = weight.clone().requires_grad_()
    resumed = make(loaded)([other])
    form = copy.deepcopy(optimizer.state_dict(full=full))  # type: ignore[call-arg]
    if full:
        assert torch.equal(form["state"][0]["master"], weights(weight, before))
    resumed.load_state_dict(form)
    assert resumed.param_groups[0]["master"] == loaded
    for grad in grads[3:]:
        other.grad = grad.clone()
        resumed.step()
    assert resumed.state[other]["master"].dtype == {"8bit": torch.int8, "16bit": torch.int16, "float32": F32}[loaded]
    if saved == loaded or "8bit" not in (saved, loaded):
        assert torch.equal(other, wanted)
        assert torch.equal(weights(other, resumed.state[other]), weights(wanted, state))
    else:
        torch.testing.assert_close(weights(other, resumed.state[other]), weights(wanted, state), rtol=1e-3, atol=1e-5)


def test_a_state_without_masters_is_loaded_and_one_with_them_where_there_are_none() -> None:
    grads, start = gradients((20, 30), 2, BF16), torch.ones(20, 30, dtype=BF16)
    weight, _, theirs = run(lambda p: torch.optim.AdamW(p), start, grads)
    other = weight.clone().requires_grad_()
    optimizer = AdamW([other], master="16bit")
    optimizer.load_state_dict(copy.deepcopy(theirs.state_dict()))
    other.grad = grads[0].clone()
    optimizer.step()
    assert optimizer.state[other]["master"].any()
    plain = other.detach().clone().requires_grad_()
    without = AdamW([plain])
    without.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    plain.grad = grads[1].clone()
    without.step()
    assert "master" not in without.state[plain]
    torch.optim.AdamW([plain]).load_state_dict(copy.deepcopy(optimizer.state_dict(full=True)))


def test_a_file_holds_them(tmp_path: Any) -> None:
    grads, found = gradients((70, 80), 4, BF16, scale=1.0), []
    for stop in (False, True):
        model = torch.nn.Linear(80, 70, bias=False, dtype=BF16)
        with torch.no_grad():
            model.weight.copy_(normal(70, 80))
        optimizer = AdamW(model, master="8bit", state_dtype="8bit")
        for step, grad in enumerate(grads):
            if stop and step == 2:
                steprule.save(tmp_path / "run.steprule", optimizer, model)
                model = torch.nn.Linear(80, 70, bias=False, dtype=BF16)
                optimizer = AdamW(model, master="8bit", state_dtype="8bit")
                steprule.load(tmp_path / "run.steprule", optimizer, model)
            model.weight.grad = grad.clone()
            optimizer.step()
        found.append((model.weight.detach(), optimizer.state[model.weight]["master"]))
    assert all(map(torch.equal, *found))


def test_a_group_may_change_what_stands_beside_its_weights() -> None:
    grads = gradients((40, 30), 8, BF16, scale=1.0)
    weight = normal(40, 30, dtype=BF16).requires_grad_()
    optimizer = SGD([weight], lr=1e-2)
    wanted = {None: None, "16bit": torch.int16, "float32": F32, "8bit": torch.int8}
    for grad, master in zip(grads, [None, "16bit", "16bit", "float32", "8bit", None, "8bit", "16bit"], strict=True):
        optimizer.param_groups[0]["master"] = master
        weight.grad = grad.clone()
        optimizer.step()
        held = optimizer.state[weight].get("master") if weight in optimizer.state else None
        assert (None if held is None else held.dtype) == wanted[master]


def test_overrides_and_float32_parameters_need_nothing() -> None:
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 3, dtype=BF16), torch.nn.LayerNorm(3), torch.nn.Linear(3, 2, dtype=BF16)
    )
    optimizer = AdamW(model, master="16bit", overrides={"2.*": dict(master="float32"), "0.bias": dict(master=None)})
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    for _ in range(2):
        optimizer.step()
    held = {name: optimizer.state[p].get("master") for name, p in model.named_parameters()}
    dtypes = {name: None if value is None else value.dtype for name, value in held.items()}
    assert dtypes == {
        "0.weight": torch.int16,
        "0.bias": None,
        "1.weight": None,
        "1.bias": None,
        "2.weight": F32,
        "2.bias": F32,
    }


def test_it_is_shown_and_counted() -> None:
    weight = torch.zeros(100, 100, dtype=BF16, requires_grad=True)
    optimizer = AdamW([weight], master="16bit", state_dtype="8bit")
    memory = optimizer.memory()
    assert (memory.masters, memory.slots["master"]) == (20_000, 20_000)
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert optimizer.memory().masters == 20_000
    found = AdamW([weight], master="16bit", state_dtype="8bit").memory()
    assert found.total / weight.numel() == pytest.approx(8, abs=0.02)  # of weight and gradient, 16 bits, and two codes
    assert "16 bits beside each weight" in optimizer.explain()
    assert "master=16bit" in str(optimizer)
    assert "master ← lower(" in optimizer.explain(source=True)


def test_a_sparse_gradient_updates_its_rows_alone() -> None:
    found = []
    for sparse in (False, True):
        weight = normal(50, 8, dtype=BF16).requires_grad_()
        optimizer = SGD([weight], lr=1e-2, master="16bit")
        for step in range(3):
            rows = [3 * step, 7, 40]
            values = normal(3, 8, seed=step, dtype=BF16)
            grad = coo(rows, values, (50, 8))
            give(weight, grad if sparse else grad.to_dense())
            optimizer.step()
        found.append((weight.detach(), optimizer.state[weight]["master"]))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("backend", ["llvm", "eager"])
def test_float16_weights_have_a_float32_beside_them(backend: str) -> None:
    grads, start = gradients((40, 30), 5, F16, scale=1.0), normal(40, 30, dtype=F16)
    wide, _, _ = run(lambda p: AdamW(p, lr=1e-3, backend=backend), start.float(), [g.float() for g in grads])
    weight, state, _ = run(
        lambda p: AdamW(p, lr=1e-3, backend=backend, master="float32", state_dtype="float32"), start, grads
    )
    assert torch.equal(state["master"], wide)
    assert torch.equal(weight, wide.half())


def test_threads_make_no_difference() -> None:
    grads, found = gradients((300, 1000), 2, BF16), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(run(lambda p: AdamW(p, master="8bit"), torch.ones(300, 1000, dtype=BF16), grads))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1]["master"], found[1][1]["master"])


ODD: dict[str, Any] = {"master": 1}


ANCHORED: dict[str, dict[str, Any]] = {
    "ASGD": {},
    "Adagrad": {},
    "MADGRAD": {"state_dtype": {"s": "float32"}},
    "DAdaptSGD": {"state_dtype": {"s": "float32"}},
    "ScheduleFreeSGD": {},
    "ScheduleFreeAdamW": {"state_dtype": {"exp_avg_sq": "float32"}},
}


@pytest.mark.parametrize("name", ANCHORED)
def test_averages_anchors_and_sums_have_all_bits_too(name: str) -> None:
    grads, start = gradients((40, 30), 5, BF16, scale=1.0), normal(40, 30, dtype=BF16)
    make = getattr(steprule, name)
    wide, _, _ = run(lambda p: make(p), start.float(), [g.float() for g in grads])
    weight, state, _ = run(lambda p: make(p, master="16bit", **ANCHORED[name]), start, grads)
    torch.testing.assert_close(weights(weight, state), wide, rtol=1e-6, atol=1e-7)
    assert {value.dtype for key, value in state.items() if value.ndim and key != "master"} == {F32}


class Taken(steprule.Optimizer):
    """Has a slot of that name."""

    slots: ClassVar[Any] = {"master": steprule.rule.array(0.0)}

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, {}, **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        s.master = s.master + g
        return p - s.master


@pytest.mark.parametrize(
    ("make", "dtype", "words"),
    [
        (lambda p: SGD(p, master="4bit"), BF16, "Invalid master: '4bit'"),
        (lambda p: SGD(p, **ODD), BF16, "Invalid master: 1"),
        (lambda p: SGD(p, master="16bit"), F16, "give its group master='float32'"),
        (lambda p: SGD(p, master="8bit"), F16, "give its group master='float32'"),
        (lambda p: SGD(p, master="16bit", differentiable=True), BF16, "differentiable=True"),
        (lambda p: SGD(p, master="16bit", rounding="stochastic"), BF16, "nothing is rounded away"),
        (lambda p: SGD(p, master="float32", rounding="stochastic"), BF16, "nothing is rounded away"),
        (lambda p: LBFGS(p, master="16bit"), BF16, "LBFGS does not support master"),
        (lambda p: Taken(p, master="16bit"), BF16, "has a slot 'master' of its own"),
        (lambda p: AdamW(p, master="16bit", state_dtype={"master": "float32"}), BF16, "names the slot 'master'"),
    ],
)
def test_what_is_not_served_is_refused_by_name(make: Make, dtype: torch.dtype, words: str) -> None:
    assert_refused(make, dtype, words)


@pytest.mark.parametrize(
    "value", [torch.zeros(3, dtype=torch.int16), "16bit", torch.zeros(4, dtype=torch.complex64), torch.ones(4).long()]
)
def test_what_can_not_stand_beside_a_weight_is_named(value: Any) -> None:
    weight = torch.ones(4, dtype=BF16, requires_grad=True)
    weight.grad = torch.ones(4, dtype=BF16)
    optimizer = SGD([weight], master="16bit")
    optimizer.state[weight] = {"master": value}
    with pytest.raises(RuntimeError, match="state 'master' of parameter 0 of group 0"):
        optimizer.step()
    assert torch.equal(weight, torch.ones(4, dtype=BF16))


@pytest.mark.parametrize("value", [torch.zeros(4, dtype=torch.int64), torch.zeros(3, dtype=torch.int16), 0.0])
def test_what_can_not_stand_beside_a_weight_is_not_loaded(value: Any) -> None:
    weight = torch.ones(4, dtype=BF16, requires_grad=True)
    weight.grad = torch.ones(4, dtype=BF16)
    optimizer = SGD([weight], master="16bit")
    optimizer.step()
    before, form = optimizer.state[weight]["master"].clone(), copy.deepcopy(optimizer.state_dict())
    form["state"][0]["master"] = value
    with pytest.raises(ValueError, match="master was saved as"):
        optimizer.load_state_dict(form)
    assert torch.equal(optimizer.state[weight]["master"], before)
