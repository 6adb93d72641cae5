"""State in 8 bits: against an encoder written here, and against the same training in float32."""

import copy
import re
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from held_state import Make, gradients, hashed, run
from hypothesis import given, settings
from hypothesis import strategies as st

import steprule
from steprule import SGD, Adam, AdamW, Lamb, Lion, Muon, SparseAdam
from steprule.kernels.coding import decoded, encoded
from steprule.modifiers import Cautious

F32 = np.float32


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    found: np.ndarray = torch.from_numpy(x.astype(F32)).to(torch.bfloat16).float().numpy()
    return found


def scales_of(x: np.ndarray, positive: bool) -> np.ndarray:
    largest = np.sqrt(np.abs(x).max(1).astype(F32))
    factor = (1 + 2.0**-8 + 2.0**-15) / 255 if positive else 1 / 127
    return to_bfloat16(largest * F32(factor))


def numpy_codes(x: np.ndarray, positive: bool, noise: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of a line of numbers, by the description in docs/low_bits.md."""
    rows = np.zeros((-(-len(x) // 256), 256), F32)
    rows.reshape(-1)[: len(x)] = x
    scales = scales_of(rows, positive)
    with np.errstate(divide="ignore"):
        inverse = np.where(scales > 0, F32(1) / scales, F32(0)).astype(F32)[:, None]
    z = np.sqrt(np.abs(rows)) * inverse
    if noise is None:
        codes = np.rint(z)
    else:
        upper = np.zeros(rows.size, F32)
        upper[: len(x)] = noise >> 16
        codes = np.floor(z + upper.reshape(rows.shape) * F32(2.0**-16))
    if positive:
        codes = np.where((codes < 1) & (rows > 0), 1, np.minimum(codes, 255))
    else:
        codes = np.copysign(np.minimum(codes, 127), rows)
    return codes.reshape(-1)[: len(x)], scales


def numpy_numbers(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    roots = codes.astype(F32) * np.repeat(scales.astype(F32), 256)[: len(codes)]
    found: np.ndarray = roots * np.abs(roots)
    return found


@settings(deadline=None, max_examples=25)
@given(
    size=st.integers(1, 900),
    seed=st.integers(0, 2**31),
    spread=st.floats(0, 12),
    zeros=st.floats(0, 1),
    positive=st.booleans(),
)
def test_codes_are_what_the_description_says(size: int, seed: int, spread: float, zeros: float, positive: bool) -> None:
    random = np.random.default_rng(seed)
    x = (random.standard_normal(size) * 10.0 ** random.uniform(-spread, spread, size)).astype(F32)
    x[random.random(size) < zeros] = 0
    x = np.abs(x) if positive else x
    codes, scales = encoded(torch.from_numpy(x), torch.uint8 if positive else torch.int8)
    wanted, wanted_scales = numpy_codes(x, positive)
    np.testing.assert_array_equal(codes.numpy().astype(F32), wanted)
    np.testing.assert_array_equal(scales.float().numpy(), wanted_scales)
    numbers = decoded(codes, scales)
    np.testing.assert_array_equal(numbers.numpy(), numpy_numbers(wanted, wanted_scales))
    assert ((numbers.numpy() == 0) == ((x == 0) if positive else (wanted == 0))).all()
    if not positive:  # what stands for numbers stands for them again
        again, scales_again = encoded(numbers, codes.dtype)
        assert torch.equal(again, codes)
        assert torch.equal(scales_again, scales)
    half = np.repeat(wanted_scales, 256)[:size] * (1.01 if positive else 0.51)
    root_error = np.abs(np.sqrt(np.abs(numbers.numpy())) - np.sqrt(np.abs(x)))
    assert (root_error <= half * (1 + 1e-5)).all()


def test_two_steps_of_adam_in_numpy() -> None:
    grads = gradients((90, 71), 3, torch.float32)
    _, state, _ = run(lambda p: Adam(p, betas=(0.75, 0.96875), seed=9, state_dtype="8bit"), torch.ones(90, 71), grads)
    m, v = (np.zeros(90 * 71, F32) for _ in range(2))
    tag, key = (zlib.crc32(text) for text in (b"exp_avg_sq", b"0 of group 0"))
    for step, grad in enumerate(grads, 1):
        g = grad.numpy().reshape(-1)
        m = m + F32(0.25) * (g - m)
        v = F32(0.96875) * v + F32(0.03125) * g * g
        first = numpy_codes(m, False)
        second = numpy_codes(v, True, hashed(np.arange(90 * 71), 9, tag, key, step))
        m, v = numpy_numbers(*first), numpy_numbers(*second)
    np.testing.assert_array_equal(state["exp_avg"].numpy().reshape(-1), first[0])
    np.testing.assert_array_equal(state["exp_avg_sq"].numpy().reshape(-1), second[0])
    np.testing.assert_array_equal(state["exp_avg_sq::scale"].float().numpy(), second[1])


KINDS: dict[str, Make] = {
    "AdamW": lambda p, **o: AdamW(p, lr=1e-2, **o),
    "Lion": lambda p, **o: Lion(p, lr=1e-3, **o),
    "SGD": lambda p, **o: SGD(p, lr=1e-2, momentum=0.9, **o),
    "clipped and cautious": lambda p, **o: AdamW(p, lr=1e-2, clip_norm=0.1, modifiers=[Cautious()], **o),
    "Lamb": lambda p, **o: Lamb(p, lr=1e-2, **o),
}


@settings(deadline=None, max_examples=12)
@given(
    dtype=st.sampled_from((torch.float32, torch.bfloat16, torch.float16)),
    asked=st.sampled_from(["8bit", "first"]),
    shape=st.sampled_from([(4096,), (4097,), (75, 311), (17, 3, 12, 11), (70000,)]),
    kind=st.sampled_from(sorted(KINDS)),
    last=st.booleans(),
)
def test_every_kernel_gives_the_same_bits(
    dtype: torch.dtype, asked: str, shape: tuple[int, ...], kind: str, last: bool
) -> None:
    slot = "momentum_buffer" if kind == "SGD" else "exp_avg"
    grads, start = gradients(shape, 3, dtype), torch.ones(shape, dtype=dtype)
    if last and len(shape) == 4:
        start = start.to(memory_format=torch.channels_last)
    option: Any = "8bit" if asked == "8bit" else {slot: "8bit"}
    (p, a, _), (q, b, _) = [
        run(lambda p, name=name: KINDS[kind](p, state_dtype=option, backend=name), start, grads)
        for name in ("llvm", "eager")
    ]
    assert a[slot].dtype == torch.int8
    if "Lamb" in kind or "clipped" in kind:  # reductions are added up in another order
        torch.testing.assert_close(p, q, rtol=2e-2, atol=1e-3)
        return
    assert torch.equal(p, q)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("kind", ["AdamW", "Lion", "SGD"])
def test_training_in_8_bits_ends_where_float32_does(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(4480, generator=generator)
    curvature = torch.logspace(-2, 0, 4480)[torch.randperm(4480, generator=generator)]
    rate = {"AdamW": 0.05, "Lion": 0.02, "SGD": 0.1}[kind]

    def loss(**options: Any) -> float:
        weight = torch.zeros(4480, requires_grad=True)
        optimizer = KINDS[kind]([weight], **options)
        noise = torch.Generator().manual_seed(1)
        for step in range(300):
            gradient = curvature * (weight.detach() - target)
            weight.grad = gradient + 0.05 * torch.randn(4480, generator=noise)
            optimizer.param_groups[0]["lr"] = rate * (1 - step / 300)
            optimizer.step()
        return float((curvature * (weight.detach() - target).square()).mean())

    held, wanted = loss(state_dtype="8bit"), loss()
    assert held < 1.15 * wanted
    assert wanted < 0.1 * float((curvature * target.square()).mean())


def test_the_second_moment_does_not_drift() -> None:
    grads = gradients((8192,), 200, torch.float32)

    def second(asked: Any) -> torch.Tensor:
        _, state, _ = run(lambda p: AdamW(p, betas=(0.9, 0.999), state_dtype=asked), torch.ones(8192), grads)
        held = state["exp_avg_sq"]
        return decoded(held, state["exp_avg_sq::scale"]) if asked else held

    found, wanted = second("8bit").sqrt(), second(None).sqrt()
    assert abs(found.mean() / wanted.mean() - 1) < 2e-3
    assert ((found / wanted - 1).square().mean().sqrt()) < 0.05


def test_small_parameters_stay_full_and_so_do_embeddings_unless_asked() -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(100, 64), torch.nn.Linear(64, 80))

    def held(**options: Any) -> list[str]:
        optimizer = AdamW(model, state_dtype="8bit", **options)
        model(torch.arange(9)).sum().backward()
        optimizer.step()
        return [str(optimizer.state[p]["exp_avg_sq"].dtype).removeprefix("torch.") for p in model.parameters()]

    assert held() == ["float32", "uint8", "float32"]
    assert held(overrides={torch.nn.Embedding: dict(state_dtype="8bit")}) == ["uint8", "uint8", "float32"]


def test_memory_is_a_code_for_each_element_and_a_scale_for_each_256() -> None:
    _, state, optimizer = run(
        lambda p: AdamW(p, state_dtype="8bit"), torch.ones(64, 257), gradients((64, 257), 1, torch.float32)
    )
    held = {name: v.numel() * v.element_size() for name, v in state.items()}
    assert held == {
        "exp_avg": 16448,
        "exp_avg_sq": 16448,
        "exp_avg::scale": 130,
        "exp_avg_sq::scale": 130,
        "step": 4,
    }
    assert "exp_avg, exp_avg_sq in 8bit" in optimizer.explain()
    assert "16.0312 bytes an element" in optimizer.explain()


@pytest.mark.parametrize("threads", [2])
def test_threads_make_no_difference(threads: int) -> None:
    grads, found = gradients((300, 1001), 2, torch.float32), []
    before = torch.get_num_threads()
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            found.append(run(lambda p: AdamW(p, state_dtype="8bit"), torch.ones(300, 1001), grads))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0][0], found[1][0])
    for name in found[0][1]:
        assert torch.equal(found[0][1][name], found[1][1][name])


@pytest.mark.parametrize("backend", ["llvm", "eager"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_block_with_nan_or_infinity_shows_it_and_the_others_do_not(backend: str, bad: float) -> None:
    weight = torch.ones(5000, requires_grad=True)
    optimizer = AdamW([weight], state_dtype="8bit", backend=backend)
    for k in range(2):
        weight.grad = torch.ones(5000)
        weight.grad[300] = bad if k == 0 else 1.0
        optimizer.step()
    finite = decoded(optimizer.state[weight]["exp_avg_sq"], optimizer.state[weight]["exp_avg_sq::scale"]).isfinite()
    assert not finite[256:512].any()
    assert finite[:256].all()
    assert finite[512:].all()
    assert not bool(weight[300].isfinite())


@pytest.mark.parametrize("part", range(3))
def test_resuming_gives_the_same_bits(part: int, tmp_path: Any) -> None:
    grads, start = gradients((70, 80), 6, torch.bfloat16), torch.ones(70, 80, dtype=torch.bfloat16)
    wanted, state, _ = run(lambda p: AdamW(p, state_dtype="8bit"), start, grads)
    weight, _, optimizer = run(lambda p: AdamW(p, state_dtype="8bit"), start, grads[:3])
    other = weight.clone().requires_grad_()
    resumed = AdamW([other], state_dtype="8bit")
    if part == 0:
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    elif part == 1:
        torch.save(optimizer.state_dict(), tmp_path / "state.pt")
        resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    else:
        steprule.save(tmp_path / "state.steprule", optimizer)
        steprule.load(tmp_path / "state.steprule", resumed)
    for grad in grads[3:]:
        other.grad = grad.clone()
        resumed.step()
    assert torch.equal(other, wanted)
    for name, value in resumed.state[other].items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize("asked", [None, "float32", "bfloat16", {"exp_avg": "8bit"}])
def test_loading_converts_between_codes_and_numbers(asked: Any) -> None:
    grads, start = gradients((70, 80), 3, torch.float32), torch.ones(70, 80)
    _, coded, eight = run(lambda p: AdamW(p, state_dtype="8bit"), start, grads)
    numbers = {n: decoded(coded[n], coded[f"{n}::scale"]) for n in ("exp_avg", "exp_avg_sq")}
    weight = start.clone().requires_grad_()
    other = AdamW([weight], state_dtype=asked)
    other.load_state_dict(eight.state_dict())
    held = other.state[weight]
    assert ("exp_avg::scale" in held) == isinstance(asked, dict)
    assert "exp_avg_sq::scale" not in held
    torch.testing.assert_close(held["exp_avg_sq"].float(), numbers["exp_avg_sq"], rtol=2**-8, atol=0)
    back = AdamW([start.clone().requires_grad_()], state_dtype="8bit")
    back.load_state_dict(other.state_dict())
    again = back.state[back.param_groups[0]["params"][0]]
    error = decoded(again["exp_avg"], again["exp_avg::scale"]) - numbers["exp_avg"]
    assert error.abs().max() <= (0.02 if asked == "bfloat16" else 0) * numbers["exp_avg"].abs().max()


def test_torch_takes_the_full_form_and_gives_its_own() -> None:
    grads, start = gradients((70, 80), 3, torch.float32), torch.ones(70, 80)
    weight, coded, eight = run(lambda p: AdamW(p, state_dtype="8bit"), start, grads)
    theirs = torch.optim.AdamW([weight.clone().requires_grad_()])
    theirs.load_state_dict(eight.state_dict(full=True))
    entry = theirs.state[theirs.param_groups[0]["params"][0]]
    assert set(entry) == {"step", "exp_avg", "exp_avg_sq"}
    assert torch.equal(entry["exp_avg"], decoded(coded["exp_avg"], coded["exp_avg::scale"]))
    ours = AdamW([weight.clone().requires_grad_()], state_dtype="8bit")
    ours.load_state_dict(theirs.state_dict())
    held = ours.state[ours.param_groups[0]["params"][0]]
    assert torch.equal(held["exp_avg"], coded["exp_avg"])
    assert torch.equal(held["exp_avg::scale"], coded["exp_avg::scale"])


def test_a_damaged_scale_is_named_and_nothing_changes() -> None:
    _, _, eight = run(lambda p: AdamW(p, state_dtype="8bit"), torch.ones(70, 80), gradients((70, 80), 1, torch.float32))
    saved = copy.deepcopy(eight.state_dict())
    saved["state"][0]["exp_avg::scale"] = torch.ones(3)
    other = AdamW([torch.ones(70, 80, requires_grad=True)], state_dtype="8bit")
    with pytest.raises(ValueError, match=re.escape("exp_avg::scale was saved as (3) float32")):
        other.load_state_dict(saved)
    assert not other.state
    del eight.state[eight.param_groups[0]["params"][0]]["exp_avg::scale"]
    with pytest.raises(RuntimeError, match="need 22 scales"):
        eight.step()


@pytest.mark.parametrize(("first", "then"), [("8bit", None), (None, "8bit"), ("8bit", "bfloat16")])
def test_a_group_may_change_how_its_state_is_held(first: Any, then: Any) -> None:
    grads = gradients((5000,), 4, torch.float32)
    weight = torch.ones(5000, requires_grad=True)
    optimizer = Lion([weight], state_dtype=first)
    for k, grad in enumerate(grads):
        if k == 2:
            optimizer.param_groups[0]["state_dtype"] = then
        weight.grad = grad.clone()
        optimizer.step()
    state = optimizer.state[weight]
    full = decoded(state["exp_avg"], state["exp_avg::scale"]) if then == "8bit" else state["exp_avg"].float()
    assert ("exp_avg::scale" in state) == (then == "8bit")
    _, wanted, _ = run(lambda p: Lion(p), torch.ones(5000), grads)
    assert (full - wanted["exp_avg"]).norm() < 0.02 * wanted["exp_avg"].norm()


def test_muon_holds_its_momentum_in_8_bits() -> None:
    grads, start = gradients((64, 80), 3, torch.float32), torch.zeros(64, 80)
    a, state, _ = run(lambda p: Muon(p, state_dtype="8bit"), start, grads)
    b, _, _ = run(lambda p: Muon(p), start, grads)
    assert state["momentum_buffer"].dtype == torch.int8
    assert (a - b).norm() < 0.05 * b.norm()


@pytest.mark.parametrize(
    ("make", "weight", "words"),
    [
        (lambda p: AdamW(p, state_dtype="8bit"), torch.ones(70, 80, dtype=torch.float64), "it is torch.float64"),
        (lambda p: AdamW(p, state_dtype="8bit"), torch.ones(70, 80, dtype=torch.complex64), "which is torch.complex64"),
        (lambda p: AdamW(p, state_dtype="8bit"), torch.ones(70, 160)[:, ::2], "it is not dense"),
        (lambda p: SparseAdam(p, state_dtype="8bit"), torch.ones(70, 80), "it has sparse gradients"),
    ],
)
def test_parameters_that_have_no_blocks_are_refused_by_name(make: Make, weight: torch.Tensor, words: str) -> None:
    weight = weight.requires_grad_()
    optimizer = make([("w", weight)])
    sparse = isinstance(optimizer, SparseAdam)
    rows = torch.sparse_coo_tensor(torch.tensor([[1]]), torch.ones(1, 80), (70, 80), check_invariants=True)
    weight.grad = rows if sparse else torch.ones_like(weight)
    with pytest.raises(RuntimeError, match=f"of parameter 'w'.*{words}"):
        optimizer.step()
    assert not optimizer.state


@pytest.mark.parametrize("into", ["channels_last", "contiguous"])
@pytest.mark.parametrize("saved", ["channels_last", "contiguous"])
def test_a_file_of_weights_that_lie_otherwise_in_memory_stands_for_the_same_numbers(
    saved: str, into: str, tmp_path: Any
) -> None:
    """A scale is that of codes beside each other in memory; a file is in the order of indices."""

    def made(layout: str) -> tuple[torch.Tensor, AdamW]:
        format_ = getattr(torch, f"{layout}_format", torch.channels_last)
        weight = torch.zeros(16, 32, 3, 3).to(memory_format=format_).requires_grad_()
        return weight, AdamW([("weight", weight)], state_dtype="8bit")

    (first, one), (_, other) = made(saved), made(into)
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(-3, 0, 32).view(1, 32, 1, 1)
    for _ in range(2):
        first.grad = torch.randn(16, 32, 3, 3, generator=generator) * scales
        one.step()
    steprule.save(tmp_path / "file", one)
    steprule.load(tmp_path / "file", other)
    here, there = (o.state_dict(full=True)["state"][0] for o in (one, other))
    for slot in ("exp_avg", "exp_avg_sq"):
        if saved == into:
            assert torch.equal(here[slot], there[slot])
        apart = (here[slot] - there[slot]).norm() / here[slot].norm()
        assert apart < 0.02
    form = one.state_dict()
    form["steprule"]["parameters"][0]["order"] = [0, 1, 2, 2]
    with pytest.raises(ValueError, match="must name the dimensions"):
        other.load_state_dict(form)
