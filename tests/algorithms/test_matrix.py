"""What algorithms of matrices have besides their formulas, which tests/parity holds to references."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from every_algorithm import CLASSES
from tensors import grad_of
from torch import Tensor, nn

import steprule
from steprule.algorithms.matrix.newton_schulz import optimal, orthogonalized, polar_express
from steprule.rule import normal

PRINTED = [
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
]
"""What the paper of the Polar Express prints; all but the last have a safety factor still to come."""


def test_the_coefficients_of_the_polar_express_are_those_that_the_paper_prints() -> None:
    found = [(1.01 * a, 1.01**3 * b, 1.01**5 * c) for a, b, c in optimal(7)] + optimal(8)[-1:]
    for ours, theirs in zip(found, PRINTED, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-8)


@pytest.mark.parametrize("shape", [(40, 60), (300, 700), (700, 300)], ids=str)
def test_the_polar_express_is_nearer_to_orthogonal_than_fixed_coefficients(shape: tuple[int, int]) -> None:
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    express = torch.linalg.svdvals(polar_express(x.clone(), 1e-7, 5))
    fixed = torch.linalg.svdvals(orthogonalized(x.clone(), 3.4445, -4.7750, 2.0315, 1e-7, 5))
    assert (express - 1).abs().max() < 0.6 * (fixed - 1).abs().max()
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    assert (polar_express(x.clone(), 1e-7, 12) - u @ v).abs().max() < 1e-4


@pytest.mark.parametrize("given", ["polar", (1.0, 2.0), [(1.0, 2.0, 3.0), (1.0,)], ()], ids=str)
@pytest.mark.parametrize("name", ["Muon", "NorMuon", "AdaMuon", "Scion"])
def test_other_coefficients_are_refused(name: str, given: Any) -> None:
    with pytest.raises(ValueError, match="Coefficients must be a tuple of exactly 3 values, a list of such tuples, or"):
        CLASSES[name]([torch.ones(2, 2, requires_grad=True)], ns_coefficients=given)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 9))


@pytest.mark.parametrize(("name", "flag"), [("NorMuon", "use_muon"), ("AdaMuon", "use_muon"), ("Dion", "use_dion")])
def test_a_model_is_sorted_and_the_rest_is_adamws(name: str, flag: str) -> None:
    ours, theirs = model(), model()
    optimizer = CLASSES[name](ours, lr=0.02, adamw={"lr": 3e-3}, overrides={"2.weight": {flag: False}})
    hidden = [n for group in optimizer.param_groups if group[flag] for n in group["param_names"]]
    assert hidden == ["1.weight"]
    rest = [p for n, p in theirs.named_parameters() if n not in hidden]
    pair = [CLASSES[name]([theirs[1].weight], lr=0.02), steprule.AdamW(rest, lr=3e-3)]
    for step in range(3):
        for net in (ours, theirs):
            for i, p in enumerate(net.parameters()):
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(10 * step + i))
        for each in (optimizer, *pair):
            each.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q)
    with pytest.raises(ValueError, match=rf"{name} only supports 2D parameters .* torch.Size\(\[3\]\)"):
        CLASSES[name]([torch.ones(3, requires_grad=True)])
    with pytest.warns(UserWarning, match=rf"{name} found no hidden matrix in Linear .*{flag}=True"):
        CLASSES[name](nn.Linear(2, 2))


@pytest.mark.parametrize("kind", ["sign", "row", "column", "spectral"])
def test_a_norm_that_is_not_for_such_parameters_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=rf"norm='{kind}' is for matrices.* size torch.Size\(\[3\]\); norm='auto'"):
        steprule.Scion([torch.ones(3, requires_grad=True)], norm=kind)
    steprule.Scion([{"params": [torch.ones(3, requires_grad=True)], "norm": "rms"}], norm=kind)


def test_a_constrained_weight_stays_within_its_ball() -> None:
    p = torch.full((3, 4), 9.0, requires_grad=True)
    optimizer = steprule.Scion([p], lr=0.1, norm="sign", scale=2.0)
    for step in range(150):
        p.grad = torch.randn(3, 4, generator=torch.Generator().manual_seed(step))
        optimizer.step()
    assert p.abs().max() <= 2.0 / 4 + 1e-5


class Drawn(steprule.Optimizer):
    """Leaves what it draws, as Kron draws it."""

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        s.noise = normal()
        return p


def test_krons_factors_of_a_vector_are_those_of_a_slow_loop() -> None:
    p, other = (torch.linspace(-1, 1, 7, dtype=torch.float64).requires_grad_() for _ in range(2))
    x, m, q = p.detach().clone(), torch.zeros(7).double(), torch.ones(7).double()
    optimizer, drawn = steprule.Kron([p], lr=0.02, weight_decay=0.3), Drawn([other])
    for t in range(1, 21):
        p.grad = torch.randn(7, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
        other.grad = torch.zeros(7, dtype=torch.float64)
        optimizer.step()
        drawn.step()
        m = 0.9 * m + 0.1 * p.grad
        mean = m / (1 - 0.9**t)
        a, b = q * mean, drawn.state[other]["noise"] / q
        q = q - 0.1 * (a**2 - b**2) / (a**2 + b**2).max() * q
        u = q * q * mean
        x = x - 0.02 * u * min(1.0, 1.1 / (u.square().mean().sqrt().item() + 1e-6))
    torch.testing.assert_close(p.detach(), x, rtol=1e-12, atol=1e-12)


def test_krons_factors_are_fitted_ever_more_seldom() -> None:
    p = torch.ones(3, 2, requires_grad=True)
    optimizer = steprule.Kron([p])
    seen = []
    for step in range(12):
        if step == 6:
            state = optimizer.state_dict()
            state["state"][0]["step"].fill_(1150)  # where 1 / exp(-0.65) is a little less than 2
            optimizer.load_state_dict(state)
        before = optimizer.state[p]["Q_rows"].clone() if step else torch.eye(3)
        p.grad = torch.randn(3, 2, generator=torch.Generator().manual_seed(step))
        optimizer.step()
        seen.append(not torch.equal(optimizer.state[p]["Q_rows"], before))
    assert seen == [True] * 6 + [False, True] * 3


@pytest.mark.parametrize("name", ["SOAP", "Shampoo", "GaLore", "Apollo", "Kron", "Dion", "NorMuon"])
def test_what_is_not_finite_spreads_and_raises_nothing(name: str) -> None:
    def run(value: float) -> list[Tensor]:
        params = [torch.ones(4, 3, requires_grad=True) for _ in range(2)]
        optimizer = CLASSES[name](params)
        for step in range(12):
            for i, p in enumerate(params):
                p.grad = torch.randn(4, 3, generator=torch.Generator().manual_seed(2 * step + i))
            params[0].grad[1, 1] = value if step == 3 else 1.0
            optimizer.step()
        return [p.detach() for p in params]

    (bad, good), (_, plain) = run(math.nan), run(1.0)
    assert bad.isnan().any()
    assert good.isfinite().all()
    assert torch.equal(good, plain)


def test_groups_without_a_rank_are_adamws() -> None:
    for name in ("GaLore", "Apollo"):
        p, q = (torch.ones(4, 3, requires_grad=True) for _ in range(2))
        CLASSES[name]([{"params": [p], "rank": None}, {"params": [q], "rank": 2}])
        optimizer = CLASSES[name]([{"params": [p], "rank": None}, {"params": [q], "rank": 2}])
        for x in (p, q):
            x.grad = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
        optimizer.step()
        assert set(optimizer.state[p]) == {"step", "exp_avg", "exp_avg_sq"}
        assert optimizer.state[q]["projected_exp_avg"].shape == (4, 2)
        close = grad_of(p).sign() * -1e-3
        torch.testing.assert_close(p.detach() - 1, close, rtol=1e-2, atol=1e-5)
