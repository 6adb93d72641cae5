"""Modifiers around algorithms: against formulas written out, against each other, and over every algorithm."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from every_algorithm import CLASSES, MOVING, ONLY_MATRICES, OVER_ALL, RULES
from tensors import give_gradients, grad_of, parameters
from torch import Tensor, nn
from training import take_steps

import steprule
from steprule import SGD, AdamW, Optimizer, modifiers, schedules
from steprule.modifiers import (
    EMA,
    SAM,
    AdaptiveClip,
    Cautious,
    CautiousDecay,
    Centralize,
    ClipStep,
    Grams,
    Grokfast,
    IndependentDecay,
    Lookahead,
    Mars,
    MatchRMS,
    Modifier,
    OrthoGrad,
    ScheduleFree,
    Trust,
)
from steprule.rule import lerp, sign, sqrt

ALL = [getattr(modifiers, name) for name in modifiers.__all__ if name != "Modifier"]

SHAPES = [(4, 3), (5,), (2, 3, 2, 2)]

Params = list[Tensor]


def trained(make: Callable[[Params], Any], steps: int = 12) -> Params:
    params = parameters(SHAPES, torch.float64)
    take_steps(make(params), params, steps)
    return [p.detach() for p in params]


def close(a: Params, b: Params, tolerance: float = 1e-12) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


# -- formulas written out ----------------------------------------------------------------------------------------


class ByHand:
    """AdamW with decay 0.1 and rate 0.05 in torch operations, and what a modifier makes of gradient, step and decay."""

    lr, decay = 0.05, 0.1

    def __init__(self, params: Params) -> None:
        self.params = params
        self.state: dict[Tensor, Any] = {}
        self.t = 0

    def gradient(self, p: Tensor, g: Tensor, s: dict[str, Any]) -> Tensor:
        return g

    def moved(self, p: Tensor, g: Tensor, u: Tensor, s: dict[str, Any]) -> Tensor:
        return p - self.lr * self.decay * p - u

    @torch.no_grad()
    def step(self) -> None:
        self.t += 1
        for p in self.params:
            s = self.state.setdefault(p, {"m": torch.zeros_like(p), "v": torch.zeros_like(p)})
            g = self.gradient(p, grad_of(p), s)
            s["m"] = 0.9 * s["m"] + 0.1 * g
            s["v"] = 0.999 * s["v"] + 0.001 * g * g
            u = self.lr * (s["m"] / (1 - 0.9**self.t)) / ((s["v"] / (1 - 0.999**self.t)).sqrt() + 1e-8)
            p.copy_(self.moved(p, g, u, s))


def kept(p: Tensor) -> Tensor:
    return p * (1 - ByHand.lr * ByHand.decay)


class CautiousByHand(ByHand):
    def moved(self, p: Tensor, g: Tensor, u: Tensor, s: Any) -> Tensor:
        mask = (u * g > 0).double()
        return kept(p) - u * mask / mask.mean().clamp(min=1e-3)


class CautiousDecayByHand(ByHand):
    def moved(self, p: Tensor, g: Tensor, u: Tensor, s: Any) -> Tensor:
        return p - u - self.lr * self.decay * p * (u * p >= 0)


class GramsByHand(ByHand):
    def moved(self, p: Tensor, g: Tensor, u: Tensor, s: Any) -> Tensor:
        return kept(p) - u.abs() * g.sign()


class LookaheadByHand(ByHand):
    def moved(self, p: Tensor, g: Tensor, u: Tensor, s: Any) -> Tensor:
        slow, new = s.setdefault("slow", p.clone()), kept(p) - u
        if self.t % 5 == 0:
            new = s["slow"] = slow + 0.5 * (new - slow)
        return new


class IndependentDecayByHand(ByHand):
    def moved(self, p: Tensor, g: Tensor, u: Tensor, s: Any) -> Tensor:
        return kept(p) - u - 0.01 * p


class ClipStepByHand(ByHand):
    def moved(self, p: Tensor, g: Tensor, u: Tensor, s: Any) -> Tensor:
        return kept(p) - u / max(1.0, (u / self.lr).square().mean().sqrt().item() / 0.5)


class MatchRMSByHand(ByHand):
    def moved(self, p: Tensor, g: Tensor, u: Tensor, s: Any) -> Tensor:
        return kept(p) - 0.2 * self.lr * u / u.square().mean().sqrt()


class TrustByHand(ByHand):
    def moved(self, p: Tensor, g: Tensor, u: Tensor, s: Any) -> Tensor:
        return kept(p) - self.lr * p.norm() / u.norm() * u


class OrthoGradByHand(ByHand):
    def gradient(self, p: Tensor, g: Tensor, s: Any) -> Tensor:
        across = g - (p * g).sum() / (p * p).sum() * p
        return across * g.norm() / across.norm()


class GrokfastByHand(ByHand):
    def gradient(self, p: Tensor, g: Tensor, s: Any) -> Tensor:
        s["slow"] = 0.98 * s["slow"] + 0.02 * g if "slow" in s else g
        return g + 2.0 * s["slow"]


class MarsByHand(ByHand):
    def gradient(self, p: Tensor, g: Tensor, s: Any) -> Tensor:
        c = g + 0.025 * 0.95 / 0.05 * (g - s.get("last", torch.zeros_like(g)))
        s["last"] = g.clone()
        return c / max(1.0, c.norm().item())


BY_HAND = [
    (Cautious(), CautiousByHand),
    (CautiousDecay(), CautiousDecayByHand),
    (Grams(), GramsByHand),
    (Lookahead(), LookaheadByHand),
    (IndependentDecay(0.01), IndependentDecayByHand),
    (ClipStep(0.5), ClipStepByHand),
    (MatchRMS(), MatchRMSByHand),
    (Trust(), TrustByHand),
    (OrthoGrad(), OrthoGradByHand),
    (Grokfast(), GrokfastByHand),
    (Mars(), MarsByHand),
]


@pytest.mark.parametrize(("modifier", "by_hand"), BY_HAND, ids=lambda x: getattr(x, "name", ""))
def test_a_modifier_is_its_formula(modifier: Modifier, by_hand: type[ByHand]) -> None:
    made = trained(lambda p: AdamW(p, lr=ByHand.lr, weight_decay=ByHand.decay, modifiers=[modifier]))
    close(made, trained(by_hand))


def test_the_gradient_is_centralized_and_clipped_by_rows() -> None:
    p, q = (torch.tensor([[3.0, 1.0], [0.5, 0.0]], requires_grad=True) for _ in range(2))
    for weight, modifier in ((p, Centralize()), (q, AdaptiveClip(0.1))):
        weight.grad = torch.tensor([[4.0, 2.0], [0.03, 0.04]])
        SGD([weight], lr=1.0, modifiers=[modifier]).step()
    torch.testing.assert_close(p.detach(), torch.tensor([[2.0, 2.0], [0.505, -0.005]]))
    first = torch.tensor([4.0, 2.0]) * 0.1 * 10**0.5 / 20**0.5
    torch.testing.assert_close(q.detach(), torch.stack([torch.tensor([3.0, 1.0]) - first, torch.tensor([0.47, -0.04])]))


# -- equalities --------------------------------------------------------------------------------------------------


class Signum(Optimizer):
    def __init__(self, params: Any, lr: float, beta: float, weight_decay: float, **options: Any) -> None:
        super().__init__(params, dict(lr=lr, beta=beta, weight_decay=weight_decay), **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        s.mean = lerp(s.mean, g, 1 - h.beta)
        return p * (1 - h.lr * h.weight_decay) - h.lr * sign(s.mean)


def test_trust_around_adamw_is_lamb() -> None:
    settings: Any = dict(lr=0.02, eps=1e-6, weight_decay=0)
    close(
        trained(lambda p: AdamW(p, modifiers=[Trust()], **settings)),
        trained(lambda p: steprule.Lamb(p, **settings)),
    )


def test_signum_with_mars_is_mars_lion() -> None:
    class MarsLion(MarsByHand):
        @torch.no_grad()
        def step(self) -> None:
            for p in self.params:
                s = self.state.setdefault(p, {"m": torch.zeros_like(p)})
                s["m"] = 0.95 * s["m"] + 0.05 * self.gradient(p, grad_of(p), s)
                p.copy_(p - 0.01 * (s["m"].sign() + 0.1 * p))

    close(trained(lambda p: Signum(p, lr=0.01, beta=0.95, weight_decay=0.1, modifiers=[Mars()])), trained(MarsLion))


def test_radam_with_lookahead_is_ranger() -> None:
    class Ranger:
        def __init__(self, params: Params) -> None:
            self.params, self.inner, self.t = params, torch.optim.RAdam(params, lr=0.05), 0
            self.slow = [p.detach().clone() for p in params]

        @torch.no_grad()
        def step(self) -> None:
            self.inner.step()
            self.t += 1
            for p, slow in zip(self.params, self.slow, strict=True):
                if self.t % 6 == 0:
                    slow += 0.5 * (p - slow)
                    p.copy_(slow)

    close(trained(lambda p: steprule.RAdam(p, lr=0.05, modifiers=[Lookahead(k=6)]), 20), trained(Ranger, 20))


class ScheduleFreeByHand:
    """Algorithm 1 of The Road Less Scheduled, with x kept: SGD, or Adam without its first moment."""

    def __init__(self, params: Params, adam: bool, rate: Callable[[int], float]) -> None:
        self.params, self.adam, self.rate, self.t, self.total, self.largest = params, adam, rate, 0, 0.0, 0.0
        self.z, self.x = ([p.detach().clone() for p in params] for _ in range(2))
        self.v = [torch.zeros_like(p) for p in params]

    @torch.no_grad()
    def step(self) -> None:
        lr = self.rate(self.t)
        self.t, self.largest = self.t + 1, max(lr, self.largest)
        self.total += self.largest**2
        c = self.largest**2 / self.total if self.total else 0.0
        for p, z, x, v in zip(self.params, self.z, self.x, self.v, strict=True):
            u = grad_of(p).clone()
            if self.adam:
                v.mul_(0.99).add_(0.01 * u * u)
                u /= (v / (1 - 0.99**self.t)).sqrt() + 1e-8
            z -= lr * (u + 0.1 * p)
            x += c * (z - x)
            p.copy_(0.1 * z + 0.9 * x)


@pytest.mark.parametrize("warmed", [False, True])
@pytest.mark.parametrize("adam", [False, True])
def test_schedule_free(adam: bool, warmed: bool) -> None:
    rate: Any = 0.05 * schedules.warmup(4) if warmed else 0.05
    lr = rate if callable(rate) else lambda t: 0.05
    a, b = parameters(SHAPES, torch.float64), parameters(SHAPES, torch.float64)
    made: Optimizer = (
        AdamW(a, lr=rate, betas=(0.0, 0.99), weight_decay=0.1, modifiers=[ScheduleFree()])
        if adam
        else SGD(a, lr=rate, weight_decay=0.1, modifiers=[ScheduleFree()])
    )
    reference = ScheduleFreeByHand(b, adam, lr)
    for step in range(15):
        give_gradients(a, step)
        give_gradients(b, step)
        made.step()
        reference.step()
    tolerance = 1e-6 if warmed else 1e-12  # what is summed is kept in float32
    close([p.detach() for p in a], [p.detach() for p in b], tolerance)
    with made.evaluating():
        close([p.detach() for p in a], reference.x, tolerance)


def test_sam_takes_the_gradient_at_the_worst_point() -> None:
    """SAM against the gradients taken by hand at both points."""

    def loss(params: Params) -> Tensor:
        return sum((torch.arange(1, p.numel() + 1).view(p.shape) * p.square()).sum() for p in params)  # type: ignore[return-value]

    a, b = parameters(SHAPES, torch.float64), parameters(SHAPES, torch.float64)
    made = AdamW(a, lr=0.1, modifiers=[SAM(rho=0.5)])
    plain = torch.optim.AdamW(b, lr=0.1)

    def closure() -> Tensor:
        made.zero_grad()
        value = loss(a)
        value.backward()
        return value

    for _ in range(5):
        torch.testing.assert_close(made.step(closure), loss(b))
        first = torch.autograd.grad(loss(b), b)
        scale = 0.5 / torch.stack([g.norm() for g in first]).norm()
        away = [(p.detach() + scale * g).requires_grad_() for p, g in zip(b, first, strict=True)]
        for p, g in zip(b, torch.autograd.grad(loss(away), away), strict=True):
            p.grad = g
        plain.step()
        close([p.detach() for p in a], [p.detach() for p in b])


# -- every modifier with every algorithm -------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in RULES if name != "SparseAdam"])
def test_every_modifier_goes_around(name: str) -> None:
    """All of one algorithm at once: one group for each modifier, by torch operations and, for some, machine code."""
    shapes = [(3, 2)] if name in ONLY_MATRICES | OVER_ALL else [(3, 2), (3,)]
    parts = CLASSES[name].parts
    allowed = [m for m in ALL if not any(m.__name__ in p.excludes or type(p).__name__ in m.excludes for p in parts)]
    one_point = [m for m in allowed if m.points == 1]
    found = []
    for backend in ("eager", "auto") if name in ("Adafactor", "Lamb", "Muon", "ScheduleFreeAdamW") else ("eager",):
        groups = [{"params": parameters(shapes), "modifiers": [m()]} for m in one_point]
        params = [p for group in groups for p in group["params"]]
        before = [p.detach().clone() for p in params]
        for some in [[group] for group in groups] if name in OVER_ALL else [groups]:
            optimizer = CLASSES[name](some, lr=0.01, backend=backend, **MOVING.get(name, {}))
            take_steps(optimizer, [p for group in some for p in group["params"]], 3)
        found.append([p.detach() for p in params])
        assert all(p.isfinite().all() and not torch.equal(p, q) for p, q in zip(params, before, strict=True))
    close(found[0], found[-1], tolerance=1e-5)


def test_five_modifiers_take_four_passes_at_most() -> None:
    [p] = parameters([(4, 3)])
    five = [Centralize(), Cautious(), ClipStep(), Lookahead(), EMA()]
    optimizer = AdamW([p], modifiers=five)
    give_gradients([p], 0)
    optimizer.step()
    assert "in 4 passes" in optimizer.explain()
    assert "AdamW, modified by Centralize, Cautious, ClipStep, Lookahead, EMA, in this" in optimizer.explain()


@pytest.mark.parametrize(
    ("made", "passes"),
    [
        ([EMA()], 1),
        ([Lookahead(), EMA()], 1),
        ([ScheduleFree()], 1),
        ([Grams(), CautiousDecay()], 1),
        ([Cautious()], 2),
    ],
    ids=str,
)
def test_passes(made: list[Modifier], passes: int) -> None:
    [p] = parameters([(4, 3)])
    optimizer = AdamW([p], modifiers=made)
    give_gradients([p], 0)
    optimizer.step()
    assert f"in {passes} pass{'es' * (passes > 1)} over" in optimizer.explain()


# -- the step of a rule ------------------------------------------------------------------------------------------


class Taken(Modifier):
    """Keeps the step that a rule takes."""

    def step(self, p: Any, g: Any, u: Any, s: Any, h: Any) -> Any:
        s.u = u
        return u


@pytest.mark.parametrize("algorithm", [AdamW, steprule.Lion, steprule.NAdam, SGD, steprule.Muon])
def test_decoupled_decay_is_kept_out_of_the_step_exactly(algorithm: Any) -> None:
    decoupled = {"decoupled_weight_decay": True} if algorithm is steprule.NAdam else {}
    [p], [q] = (parameters([(4, 3)]) for _ in range(2))
    with torch.no_grad():
        p *= 1000
        q *= 1000
    with_decay = 0.0 if algorithm is SGD else 0.5
    a = algorithm([p], lr=1e-6, weight_decay=with_decay, modifiers=[Taken()], **decoupled)
    b = algorithm([q], lr=1e-6, weight_decay=0.0, modifiers=[Taken()], **decoupled)
    for x, optimizer in ((p, a), (q, b)):
        x.grad = torch.linspace(-1, 1, 12).reshape(4, 3)
        optimizer.step()
    assert torch.equal(a.state[p]["taken_u"], b.state[q]["taken_u"])
    assert b.state[q]["taken_u"].abs().max() < 1e-4


def test_a_penalty_stays_in_the_step() -> None:
    for momentum in (0.0, 0.9):
        p = torch.tensor([2.0], requires_grad=True)
        p.grad = torch.tensor([1.0])
        optimizer = SGD([p], lr=0.5, momentum=momentum, weight_decay=0.25, modifiers=[Taken()])
        optimizer.step()
        assert optimizer.state[p]["taken_u"].item() == 0.5 * (1.0 + 0.25 * 2.0)


def test_signs_are_known_without_what_cannot_change_them() -> None:
    [p] = parameters([(4, 3)])
    optimizer = AdamW([p], modifiers=[Cautious()])
    give_gradients([p], 0)
    optimizer.step()
    assert "36 bytes an element in 2 passes" in optimizer.explain()  # the first reads the gradient and its mean alone


class Opposed(Optimizer):
    """Divides by what is negative, and multiplies by what the modifier must not leave out."""

    def __init__(self, params: Any, lr: float, below: float, **options: Any) -> None:
        super().__init__(params, dict(lr=lr, below=below), **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        return p - h.lr * (g / h.below) * (p / sqrt(p * p))


@pytest.mark.parametrize("below", [-2.0, 2.0])
def test_a_sign_that_numbers_turn_is_turned(below: float) -> None:
    p = torch.tensor([1.0, 1.0, -1.0, -1.0], requires_grad=True)
    p.grad = torch.tensor([1.0, -1.0, 1.0, -1.0])
    optimizer = Opposed([p], lr=1.0, below=below, modifiers=[Cautious()])
    optimizer.step()
    u = torch.tensor([1.0, -1.0, -1.0, 1.0]) / below
    agrees = (u * p.grad > 0).float()
    torch.testing.assert_close(p.detach(), torch.tensor([1.0, 1.0, -1.0, -1.0]) - u * agrees * 2)


def test_rows_of_a_convolution_are_its_channels() -> None:
    [p] = parameters([(2, 3, 2, 2)])
    before = p.detach().clone()
    p.grad = torch.arange(24.0).reshape(2, 3, 2, 2)
    SGD([p], lr=1.0, modifiers=[Centralize()]).step()
    torch.testing.assert_close(before - p.detach(), p.grad - p.grad.mean(dim=(1, 2, 3), keepdim=True))


# -- order, hyperparameters, state -------------------------------------------------------------------------------


class Doubled(Modifier):
    defaults: ClassVar = {"by": 2.0}

    def gradient(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        return g * h.by


class Raised(Modifier):
    def gradient(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        return g + 1


def test_modifiers_act_in_the_order_of_the_list() -> None:
    results = []
    for order in ([Doubled(), Raised()], [Raised(), Doubled()]):
        p = torch.zeros(1, requires_grad=True)
        p.grad = torch.ones(1)
        optimizer = SGD([p], lr=1.0, modifiers=order)
        optimizer.step()
        results.append(p.item())
        names = [type(m).__name__ for m in order]
        assert f"SGD, modified by {names[0]}, {names[1]}, in this order" in optimizer.explain()
        assert f"modifiers=({order[0].name}, {order[1].name})" in repr(optimizer)
    assert results == [-3.0, -4.0]


def test_hyperparameters_of_modifiers_are_those_of_groups() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    optimizer = AdamW(
        model,
        modifiers=[Cautious(), EMA(decay=0.9 * schedules.linear(10))],
        overrides={steprule.norms: dict(cautious=False, ema_decay=0.5), "0.bias": dict(modifiers=[Grams()])},
    )
    assert [(g.get("cautious"), g.get("ema_decay"), g["modifiers"]) for g in optimizer.param_groups] == [
        (True, 0.9, ("cautious", "ema")),
        (None, None, ("grams",)),
        (False, 0.5, ("cautious", "ema")),
    ]
    for _ in range(3):
        model(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
    assert optimizer.param_groups[0]["ema_decay"] == pytest.approx(0.9 * 0.8)
    assert set(optimizer.state[model[0].weight]) == {"step", "exp_avg", "exp_avg_sq", "ema_mean"}
    assert set(optimizer.state[model[0].bias]) == {"step", "exp_avg", "exp_avg_sq"}
    assert "ema_decay" in repr(optimizer)


def test_a_modifier_is_switched_off_and_exchanged_while_training_runs() -> None:
    p = torch.zeros(1, requires_grad=True)
    optimizer = SGD([p], lr=1.0, modifiers=[Doubled(by=3.0)])
    changes: list[tuple[float, dict[str, Any]]] = [
        (-3.0, {"doubled": False}),
        (-4.0, {"modifiers": [Raised()]}),
        (-6.0, {}),
    ]
    for expected, change in changes:
        p.grad = torch.ones(1)
        optimizer.step()
        assert p.item() == expected
        optimizer.param_groups[0].update(change)


@pytest.mark.parametrize("through", ["dict", "pickle", "file"])
def test_training_goes_on_with_the_same_bits(through: str, tmp_path: Any) -> None:
    def made() -> tuple[Params, Optimizer]:
        params = parameters(SHAPES)
        named = [(f"p{i}", p) for i, p in enumerate(params)]
        return params, AdamW(named, lr=0.05, modifiers=[Mars(), Cautious(), Lookahead(k=3), EMA(0.9)])

    (a, whole), (b, first) = made(), made()
    take_steps(whole, a, 9)
    take_steps(first, b, 4)
    if through == "pickle":
        second = copy.deepcopy(first)
        c = [p for group in second.param_groups for p in group["params"]]
        for p, q in zip(c, b, strict=True):
            assert torch.equal(p, q)
    else:
        c, second = made()
        if through == "file":
            steprule.save(tmp_path / "run", first)
            steprule.load(tmp_path / "run", second)
        else:
            buffer = io.BytesIO()
            torch.save(first.state_dict(), buffer)
            buffer.seek(0)
            second.load_state_dict(torch.load(buffer, weights_only=True))
        with torch.no_grad():
            for p, q in zip(c, b, strict=True):
                p.copy_(q)
    for step in range(4, 9):
        give_gradients(c, step)
        second.step()
    assert all(torch.equal(p, q) for p, q in zip(a, c, strict=True))


# -- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([ScheduleFree(), ScheduleFree(0.5, name="other")], ValueError, "ScheduleFree does not go together with Sched"),
        ([Lookahead(), ScheduleFree()], ValueError, "Lookahead does not go together with ScheduleFree"),
        ([SAM(), modifiers.ASAM()], ValueError, "SAM does not go together with ASAM"),
        ([EMA(), EMA()], ValueError, "two modifiers are called 'ema'"),
        ([EMA(decay=1.5)], ValueError, "Invalid ema_decay value: 1.5"),
        ([Lookahead(k=2.5)], ValueError, "lookahead_k must be a whole number"),
        ([Cautious], TypeError, "write Cautious()"),
        (Cautious(), TypeError, "a list of modifiers"),
        ([EMA(name="lr")], ValueError, "lr of EMA exists already"),
    ],
    ids=lambda x: None,
)
def test_refusals(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        SGD(parameters(SHAPES, torch.float64), modifiers=given)
    assert message in str(caught.value)


def test_what_is_given_to_a_modifier_is_refused_as_python_does() -> None:
    class Idle(Modifier):
        def helper(self, g: Any) -> Any:
            return 0.0 * g

    with pytest.raises(TypeError, match="Idle changes nothing: it defines none of gradient, step, decay"):
        Idle()
    with pytest.raises(TypeError, match="unexpected keyword argument 'rate'"):
        EMA(rate=0.1)
    with pytest.raises(TypeError, match="takes 1 hyperparameters, 2 were given"):
        EMA(0.1, 0.2)
    with pytest.raises(TypeError, match="multiple values for argument 'decay'"):
        EMA(0.1, decay=0.2)


def test_a_misspelt_method_beside_a_right_one_is_refused() -> None:
    right = {"gradient": lambda self, p, g, s, h: g}
    for name, value, meant in (
        ("steps", lambda self, p, g, u, s, h: u, "step"),
        ("slot", {"mean": None}, "slots"),
        ("default", {"rho": 1.0}, "defaults"),
        ("exclude", frozenset({"EMA"}), "excludes"),
    ):
        with pytest.raises(TypeError, match=f"Mine.{name} is never asked for; did you mean '{meant}'"):
            type("Mine", (Modifier,), {**right, name: value})
    type("Mine", (Modifier,), {**right, "steps": lambda self: 3, "slot": 1, "_step": lambda self, p, g, u, s, h: u})


def test_a_method_that_takes_other_arguments_is_refused_when_it_is_made() -> None:
    class Mine(Modifier):
        def gradient(self, g: Any) -> Any:  # type: ignore[override]
            return g

    with pytest.raises(TypeError, match=r"Mine.gradient\(self, g.* is called with self, p, g, s, h: .*; write def"):
        Mine()


def test_sam_says_what_to_do_under_grad_scaler() -> None:
    weight = torch.ones(1, requires_grad=True)
    optimizer = SGD([weight], modifiers=[SAM()])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale(weight.sum()).backward()
    with pytest.raises(RuntimeError, match=r"as with GradScaler, whose step\(\) takes none, call first_step"):
        scaler.step(optimizer)


def test_two_means_of_the_weights() -> None:
    params = parameters(SHAPES, torch.float64)
    optimizer = SGD(params, lr=0.1, modifiers=[EMA(0.5), EMA(0.9, name="slow")])
    take_steps(optimizer, params, 3)
    assert {"ema_mean", "slow_mean"} <= set(optimizer.state[params[0]])
    slow = optimizer.state[params[0]]["slow_mean"].clone()
    with optimizer.evaluating():
        assert torch.equal(params[0], slow)


def test_an_algorithm_without_a_rule_takes_none() -> None:
    with pytest.raises(ValueError, match="LBFGS has no update rule"):
        steprule.LBFGS(parameters(SHAPES, torch.float64), modifiers=[Cautious()])


def test_a_modifier_that_returns_nothing() -> None:
    class Forgetful(Modifier):
        def step(self, p: Any, g: Any, u: Any, s: Any, h: Any) -> Any:
            s.u = u

    [p] = parameters([(2,)], torch.float64)
    give_gradients([p], 0)
    with pytest.raises(TypeError, match=r"Forgetful\.step returns None"):
        SGD([p], modifiers=[Forgetful()]).step()


def test_sam_wants_two_gradients() -> None:
    [p] = parameters([(2,)], torch.float64)
    optimizer = SGD([p], lr=0.1, modifiers=[SAM()])
    give_gradients([p], 0)
    with pytest.raises(RuntimeError, match="SAM takes gradients at two points"):
        optimizer.step()
    with pytest.raises(RuntimeError, match="second_step"):
        optimizer.second_step()
    before = p.detach().clone()
    optimizer.first_step()
    with pytest.raises(RuntimeError, match="first_step"):
        optimizer.first_step()
    assert not torch.equal(p, before)
    optimizer.second_step(zero_grad=True)
    assert p.grad is None


def test_a_rate_of_zero_makes_no_nan() -> None:
    for modifier in (ClipStep(), MatchRMS(), Trust(), ScheduleFree()):
        params = parameters(SHAPES, torch.float64)
        before = [p.detach().clone() for p in params]
        optimizer = SGD(params, lr=0.0, modifiers=[modifier])
        take_steps(optimizer, params, 2)
        close([p.detach() for p in params], before, 1e-15)
