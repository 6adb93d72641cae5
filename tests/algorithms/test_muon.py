"""Muon: what torch.optim.Muon does to matrices, within bfloat16, and who is sorted where in a model."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from algorithm_cases import gradient, missing
from torch import Tensor, nn
from torch.optim._muon import _zeropower_via_newtonschulz as orthogonalized_by_torch

import steprule
from steprule.algorithms.matrix.newton_schulz import orthogonalized

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
SHAPES = [(256, 520), (514, 257), (384, 96), (64, 96), (7, 40), (1, 9), (9, 1), (5, 4)]
EMPTY = [(0, 3), (2, 0)]


def exact(x: Tensor, steps: int) -> Tensor:
    """The iteration in float64, from what both begin with: bfloat16 numbers divided by their norm."""
    x = (x.bfloat16() / x.bfloat16().norm().clamp(min=1e-7)).double()
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def with_spectrum(shape: tuple[int, int], kind: str) -> Tensor:
    torch.manual_seed(sum(shape))
    noise = torch.randn(shape)
    u, s, v = torch.linalg.svd(noise, full_matrices=False)
    i = torch.arange(1.0, len(s) + 1)
    shapes = {"noise": s, "slow": i**-0.5, "fast": i**-2.0, "low rank": torch.where(i < 9, 1.0, 1e-4)}
    return u * shapes[kind] @ v


def error(x: Tensor, expected: Tensor) -> float:
    return float((x.double() - expected).norm() / expected.norm()) if expected.numel() else 0.0


@pytest.mark.parametrize("steps", [0, 1, 3, 5, 7])
@pytest.mark.parametrize("kind", ["noise", "slow", "fast", "low rank"])
def test_the_iteration_is_as_near_to_the_exact_one_as_that_of_torch(kind: str, steps: int) -> None:
    for shape in [*(SHAPES if steps == 5 else SHAPES[2:]), *EMPTY]:
        x = with_spectrum(shape, kind)
        stack = torch.stack([x, torch.randn(shape)]).bfloat16()
        ours = orthogonalized(stack, *COEFFICIENTS, 1e-7, steps)[0]
        assert ours.shape == shape
        expected = exact(x, steps)
        theirs = orthogonalized_by_torch(x, COEFFICIENTS, steps, 1e-7)
        oblong = min(shape) >= 256
        assert error(ours, expected) < (0.025 if oblong else 1e-3) + 1.1 * error(theirs, expected), shape


def test_a_stack_is_its_matrices_and_zero_stays_zero() -> None:
    torch.manual_seed(0)
    stack = torch.randn(4, 20, 50).bfloat16()
    stack[2] = 0
    alone = [orthogonalized(x[None].clone(), *COEFFICIENTS, 1e-7, 5)[0] for x in stack]
    together = orthogonalized(stack, *COEFFICIENTS, 1e-7, 5)
    assert torch.equal(together, torch.stack(alone))
    assert not together[2].any()


def test_an_empty_matrix_takes_part() -> None:
    params = [torch.zeros(shape, requires_grad=True) for shape in [*EMPTY, (2, 2)]]
    for p in params:
        p.grad = torch.ones_like(p)
    steprule.Muon(params).step()
    assert params[2].abs().sum() > 0


def test_singular_values_come_near_one() -> None:
    result = orthogonalized(with_spectrum((40, 100), "slow")[None].bfloat16(), *COEFFICIENTS, 1e-7, 5)[0]
    values = torch.linalg.svdvals(result.float())
    assert (values > 0.6).all()
    assert (values < 1.3).all()


OPTIONS: list[dict[str, Any]] = [
    {},
    {"nesterov": False, "momentum": 0.8, "weight_decay": 0.0, "lr": 0.05},
    {"adjust_lr_fn": "match_rms_adamw", "ns_steps": 3, "lr": torch.tensor(0.02)},
    {"adjust_lr_fn": "original", "ns_coefficients": (2.0, -1.5, 0.5), "ns_steps": 8, "eps": 1e-3},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "defaults")
@pytest.mark.parametrize("backend", ["llvm", "eager"])
def test_the_trajectory_of_torch_within_bfloat16(backend: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    # without bfloat16 instructions the products of large matrices take long: one case has them
    shapes = SHAPES if (backend, options, dtype) == ("llvm", {}, torch.float32) else SHAPES[2:]
    ours = [(0.02 * torch.randn(shape)).to(dtype).requires_grad_() for shape in [*shapes, *SHAPES[2:4]]]
    theirs = [p.detach().clone().requires_grad_() for p in ours]
    start = [p.detach().clone() for p in ours]
    groups: Any = [[{"params": params[::2]}, {"params": params[1::2], "lr": 0.03}] for params in (ours, theirs)]
    optimizers = [steprule.Muon(groups[0], **options, backend=backend), torch.optim.Muon(groups[1], **options)]
    for step in range(10 if shapes is SHAPES else 30):
        for params in (ours, theirs):
            for index, p in enumerate(params):
                p.grad = None if missing(index, step) else gradient(tuple(p.shape), dtype, index, step)
        for optimizer in optimizers:
            optimizer.step()
    for p, q, p0 in zip(ours, theirs, start, strict=True):
        moved = (q - p0).double().norm()
        allowed = 0.025 if min(p.shape) >= 256 else 0.01
        assert (p - q).double().norm() <= allowed * moved, tuple(p.shape)
        mine, other = optimizers[0].state[p], optimizers[1].state[q]
        assert set(mine) == set(other) == {"momentum_buffer"}
        torch.testing.assert_close(mine["momentum_buffer"], other["momentum_buffer"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "defaults")
def test_bfloat16_parameters_are_rounded_once(options: dict[str, Any]) -> None:
    ours = [gradient(shape, torch.bfloat16, 7, 7).clone().requires_grad_() for shape in SHAPES]
    optimizer = steprule.Muon(ours, **options)
    for step in range(3):
        theirs = [p.detach().float().requires_grad_() for p in ours]
        peer = torch.optim.Muon(theirs, **options)
        peer.load_state_dict(optimizer.state_dict())
        for params in (ours, theirs):
            for index, p in enumerate(params):
                p.grad = gradient(tuple(p.shape), torch.bfloat16, index, step).to(p.dtype)
        start = [p.detach().clone() for p in theirs]
        optimizer.step()
        peer.step()
        for p, q, p0 in zip(ours, theirs, start, strict=True):
            allowed = 0.15 * (q - p0).abs().max() + 2.0**-8 * q.abs()
            assert ((p.float() - q).abs() <= allowed).all(), tuple(p.shape)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.mlp = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))


class Transformer(nn.Module):
    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.head = nn.Linear(8, 20, bias=False) if tied else None  # a tied head need not be the last Linear
        self.tokens = nn.Embedding(20, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.output = nn.Linear(8, 20)
        if self.head is not None:
            self.head.weight = self.tokens.weight


MATRICES = [
    f"blocks.{i}.{name}"
    for i in range(2)
    for name in ("attention.in_proj_weight", "attention.out_proj.weight", "mlp.0.weight", "mlp.2.weight")
]


def sorted_names(optimizer: steprule.Muon, use_muon: bool = True) -> list[str]:
    return [name for g in optimizer.param_groups if g["use_muon"] is use_muon for name in g["param_names"]]


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_is_sorted(tied: bool) -> None:
    model = Transformer(tied)
    optimizer = steprule.Muon(model, lr=0.02, adamw={"lr": 3e-4, "betas": (0.8, 0.9)})
    assert sorted_names(optimizer) == MATRICES + (["output.weight"] if tied else [])
    everything = [name for name, _ in model.named_parameters()]
    assert sorted(sorted_names(optimizer) + sorted_names(optimizer, False)) == sorted(everything)
    for group in optimizer.param_groups:
        numbers = (0.02, 0.1, 1e-7) if group["use_muon"] else (3e-4, 0.01, 1e-8)
        assert (group["lr"], group["weight_decay"], group["eps"]) == numbers
        assert group["betas"] == (0.8, 0.9)
    shown = str(optimizer)
    assert "tokens.weight" in shown or "head.weight" in shown
    assert "use_muon" in shown


def test_what_was_guessed_is_shown_and_a_model_without_a_hidden_matrix_is_said() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    assert str(steprule.Muon(model)).splitlines()[-1] == "guessed: 1.weight for the last layer"
    with pytest.warns(UserWarning, match=r"no hidden matrix in Linear \(guessed: weight for the last layer\): AdamW"):
        steprule.Muon(model[0])
    steprule.Muon(model[0], overrides={"weight": dict(use_muon=True)})


def test_each_side_steps_as_its_algorithm_would_alone() -> None:
    model = Transformer(tied=False)
    rest, hidden = copy.deepcopy(model), copy.deepcopy(model)
    optimizer = steprule.Muon(model, lr=0.02, adamw={"lr": 3e-3, "weight_decay": 0.2})
    muon = steprule.Muon([p for name, p in hidden.named_parameters() if name in MATRICES], lr=0.02)
    adamw = torch.optim.AdamW([p for n, p in rest.named_parameters() if n not in MATRICES], lr=3e-3, weight_decay=0.2)
    for step in range(5):
        for net in (model, rest, hidden):
            for index, p in enumerate(net.parameters()):
                p.grad = gradient(tuple(p.shape), p.dtype, index, step)
        for each in (optimizer, muon, adamw):
            each.step()
    for (name, p), q, r in zip(model.named_parameters(), hidden.parameters(), rest.parameters(), strict=True):
        if name in MATRICES:
            assert torch.equal(p, q)
        else:
            torch.testing.assert_close(p, r, rtol=1e-6, atol=1e-7)


def test_overrides_put_parameters_on_the_other_side_with_its_numbers() -> None:
    model = Transformer(tied=False)
    overrides: Any = {
        "blocks.0.mlp.*.weight": {"use_muon": False},
        "output.weight": {"use_muon": True, "momentum": 0.5},
    }
    optimizer = steprule.Muon(model, lr=0.02, adamw={"lr": 3e-4}, overrides=overrides)
    assert sorted_names(optimizer) == [n for n in MATRICES if "0.mlp" not in n] + ["output.weight"]
    for group in optimizer.param_groups:
        assert group["lr"] == (0.02 if group["use_muon"] else 3e-4)
        assert group["momentum"] == (0.5 if "output.weight" in group["param_names"] else 0.95)


def test_groups_of_tensors_may_be_adamws_too() -> None:
    matrix, bias, later = (torch.ones(shape, requires_grad=True) for shape in ((3, 4), (4,), (2,)))
    optimizer = steprule.Muon(
        [{"params": [matrix]}, {"params": [bias], "use_muon": False, "eps": 1e-4}], lr=0.5, adamw={"lr": 0.25}
    )
    optimizer = pickle.loads(pickle.dumps(optimizer))
    optimizer.add_param_group({"params": [later], "use_muon": False})
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.25, 0.25]
    assert [group["eps"] for group in optimizer.param_groups] == [1e-7, 1e-4, 1e-8]
    later.grad = torch.ones(2)
    optimizer.step()
    torch.testing.assert_close(later.detach(), torch.full((2,), 1 - 0.25 * 0.01 - 0.25))


def test_convolutions_are_matrices_when_asked_for() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3), nn.Flatten(), nn.Linear(12, 5))
    with pytest.warns(UserWarning, match="no hidden matrix"):
        assert sorted_names(steprule.Muon(model)) == []
    optimizer = steprule.Muon(model, lr=0.1, convolutions=True, weight_decay=0.0)
    assert sorted_names(optimizer) == ["0.weight", "1.weight"]
    for memory_format in (torch.contiguous_format, torch.channels_last):
        weight = model.get_parameter("1.weight").detach().clone().to(memory_format=memory_format).requires_grad_()
        flat = weight.detach().reshape(12, 72).clone().requires_grad_()
        pair = steprule.Muon([weight], lr=0.1, convolutions=True), torch.optim.Muon([flat], lr=0.1)
        for step in range(3):
            flat.grad = gradient((12, 72), torch.float32, 0, step)
            weight.grad = flat.grad.view(12, 8, 3, 3)
            for each in pair:
                each.step()
        moved = (flat - model.get_parameter("1.weight").reshape(12, 72)).norm()
        assert (weight.reshape(12, 72) - flat).norm() < 0.02 * moved


def test_what_is_no_matrix_is_refused() -> None:
    for library in (steprule, torch.optim):
        with pytest.raises(ValueError, match=r"Muon only supports 2D parameters .* size: torch.Size\(\[3\]\)"):
            library.Muon([torch.ones(3, requires_grad=True)])
        p = torch.ones(3, 3, requires_grad=True)
        p.grad = torch.eye(3).to_sparse()
        with pytest.raises(RuntimeError, match="Muon does not support sparse gradients"):
            library.Muon([p]).step()
        q = torch.ones(3, 3, dtype=torch.complex64, requires_grad=True)
        optimizer = library.Muon([q])
        q.grad = torch.ones_like(q)
        with pytest.raises(RuntimeError, match="Muon does not support complex parameters"):
            optimizer.step()
    with pytest.raises(TypeError, match="adamw takes lr, betas, eps, weight_decay, not beta"):
        steprule.Muon([torch.ones(3, 3, requires_grad=True)], adamw={"beta": 0.9})
    for options in ({"ns_steps": 100}, {"ns_coefficients": (1.0, 2.0)}, {"adjust_lr_fn": "else"}, {"momentum": -1.0}):
        with pytest.raises(ValueError, match=r"Number|Coefficients|Adjust|momentum"):
            steprule.Muon([torch.ones(3, 3, requires_grad=True)], **options)


def test_the_rate_for_a_shape() -> None:
    for adjust, ratios in {
        None: (1.0, 2.0),
        "original": (1.0, 2.0),
        "match_rms_adamw": (0.2 * math.sqrt(16), 0.2 * math.sqrt(16)),
    }.items():
        params = [torch.zeros(shape, requires_grad=True) for shape in ((4, 16), (16, 4))]
        for p in params:
            p.grad = gradient(tuple(p.shape), torch.float32, 0, 0)
        steprule.Muon(params, lr=0.5, adjust_lr_fn=adjust).step()
        for p, ratio in zip(params, ratios, strict=True):
            o = orthogonalized(p.grad[None].bfloat16(), *COEFFICIENTS, 1e-7, 5)[0]
            torch.testing.assert_close(p.detach(), -0.5 * ratio * o.float(), rtol=0.05, atol=0.01)


def test_groups_may_adjust_their_rates_in_different_ways() -> None:
    kinds = ["original", "match_rms_adamw"]
    results = []
    for library in (steprule, torch.optim):
        params = [torch.linspace(-1, 1, 24).view(6, 4).clone().requires_grad_() for _ in kinds]
        optimizer = library.Muon([{"params": [p], "adjust_lr_fn": kind} for p, kind in zip(params, kinds, strict=True)])
        for p in params:
            p.grad = torch.linspace(1, 2, 24).view(6, 4).sin()
        optimizer.step()
        results.append(torch.stack([p.detach() for p in params]))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(*results[0], atol=1e-4)
