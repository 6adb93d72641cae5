"""LBFGS: the iterates of torch.optim, evaluation for evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steprule

Problem = Callable[[list[Tensor]], Tensor]


def rosenbrock(params: list[Tensor]) -> Tensor:
    x = torch.cat([p.reshape(-1) for p in params])
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def quartic(params: list[Tensor]) -> Tensor:
    x = torch.cat([p.reshape(-1) for p in params])
    scale = torch.arange(1, len(x) + 1, dtype=x.dtype)
    return (scale * (x - 3).abs() ** 4).sum() + (x * scale.flip(0)).sum().cos()


def hilly(params: list[Tensor]) -> Tensor:
    """Far from convex: the line search has to zoom."""
    x = torch.cat([p.reshape(-1) for p in params])
    return (x**2 / 40 + (3 * x).sin() + (x.roll(1) * 2).cos()).sum()


PROBLEMS: dict[str, Problem] = {"rosenbrock": rosenbrock, "quartic": quartic, "hilly": hilly}
OPTIONS: list[dict[str, Any]] = [
    {"line_search_fn": "strong_wolfe"},
    {"line_search_fn": "strong_wolfe", "history_size": 3, "max_iter": 7, "lr": 0.3},
    {"line_search_fn": "strong_wolfe", "max_iter": 4, "max_eval": 6, "lr": 30},
    {"line_search_fn": "strong_wolfe", "max_eval": 1},
    {"line_search_fn": "strong_wolfe", "tolerance_grad": 0.5, "tolerance_change": 1e-3},
    {"lr": 0.005},
    {"lr": torch.tensor(2.0**-7, dtype=torch.float64), "history_size": 2, "max_iter": 5},
    {"max_iter": 1, "lr": 1e-3},
    {"max_iter": 0},
]


def start(dtype: torch.dtype) -> list[Tensor]:
    return [torch.tensor(v, dtype=dtype).requires_grad_() for v in ([-1.2, 1.0], [[0.4, -0.7]], 0.3, [])]


def run(library: Any, problem: Problem, dtype: torch.dtype, options: dict[str, Any]) -> tuple[list[Any], Any, Tensor]:
    """Everything that is evaluated, the losses that steps return, and the state."""
    params = start(dtype)
    optimizer = library.LBFGS(params, **options)
    seen: list[Any] = []

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = problem(params)
        loss.backward()
        seen.append(torch.cat([p.detach().reshape(-1) for p in params]).clone())
        return loss

    losses = [optimizer.step(closure).item() for _ in range(4)]
    return seen, optimizer.state[params[0]], torch.tensor(losses, dtype=torch.float64)


def assert_same_run(ours: Any, theirs: Any, what: str = "") -> None:
    if isinstance(theirs, dict):
        known = {key for key, value in theirs.items() if value is not None}
        assert ours.keys() == known
        for key in known:
            assert_same_run(ours[key], theirs[key], key)
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), what
        for a, b in zip(ours, theirs, strict=True):
            assert_same_run(a, b, what)
    elif theirs is None:
        assert ours is None, what
    else:
        ours, theirs = (torch.as_tensor(x).double() for x in (ours, theirs))
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_evaluation_and_the_state_are_those_of_torch(
    problem: str, options: dict[str, Any], dtype: torch.dtype
) -> None:
    ours, our_state, our_losses = run(steprule, PROBLEMS[problem], dtype, options)
    theirs, their_state, their_losses = run(torch.optim, PROBLEMS[problem], dtype, options)
    assert_same_run(ours, theirs)
    assert_same_run(our_state, their_state)
    assert_same_run(our_losses, their_losses)


def test_maximize_climbs_as_minimizing_the_negative_descends() -> None:
    options = {"line_search_fn": "strong_wolfe"}
    descent, _, _ = run(steprule, hilly, torch.float64, options)
    climb, _, _ = run(steprule, lambda params: -hilly(params), torch.float64, {**options, "maximize": True})
    assert_same_run(climb, descent)


def various_gradients(library: Any, options: dict[str, Any]) -> list[Tensor]:
    """Where training goes when one gradient is missing, one sparse and one complex."""
    torch.manual_seed(0)
    table = nn.Embedding(5, 2, sparse=True, dtype=torch.float64)
    rotation = torch.tensor([1 + 1j, 0.5 - 2j], dtype=torch.complex128, requires_grad=True)
    unused = torch.ones(3, dtype=torch.float64, requires_grad=True)
    optimizer = library.LBFGS([unused, table.weight, rotation], **options)

    def closure() -> Tensor:
        optimizer.zero_grad()
        rows = table(torch.tensor([0, 3, 3]))
        loss = (rows * rotation - 1).abs().square().sum() + rotation.abs().square().sum()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    return [table.weight.detach(), torch.view_as_real(rotation.detach()), unused.detach()]


@pytest.mark.parametrize("options", [{"line_search_fn": "strong_wolfe"}, {"lr": 0.1}], ids=str)
def test_missing_sparse_and_complex_gradients(options: dict[str, Any]) -> None:
    assert_same_run(various_gradients(steprule, options), various_gradients(torch.optim, options))


def test_a_gradient_that_lies_otherwise_in_memory() -> None:
    conv = nn.Conv2d(2, 3, 2).double().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = steprule.LBFGS(conv.parameters(), line_search_fn="strong_wolfe")
    images = torch.linspace(-1, 1, 36, dtype=torch.float64).view(1, 2, 3, 6)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (conv(images) - 1).square().mean()
        loss.backward()
        return loss

    first = closure().item()
    for _ in range(3):
        optimizer.step(closure)
    assert closure().item() < 1e-6 * first


def test_groups_and_options_without_meaning_are_refused() -> None:
    a, b = (torch.ones(2, requires_grad=True) for _ in range(2))
    for library in (steprule, torch.optim):
        with pytest.raises(ValueError, match=r"LBFGS doesn't support per-parameter options \(parameter groups\)"):
            library.LBFGS([{"params": [a]}, {"params": [b]}])
        optimizer = library.LBFGS([a])
        optimizer.add_param_group({"params": [b]})
        with pytest.raises(AssertionError, match="Expected exactly one param_group, but got 2"):
            optimizer.step(lambda: a.sum())
        optimizer = library.LBFGS([a], line_search_fn="armijo")
        a.grad = torch.ones(2)
        with pytest.raises(RuntimeError, match="only 'strong_wolfe' is supported"):
            optimizer.step(lambda: a.sum())
    for option in ({"l1": 0.1}, {"clip_norm": 1.0}, {"backend": "llvm"}):
        with pytest.raises(ValueError, match="LBFGS"):
            steprule.LBFGS([a], **option)


@pytest.mark.parametrize("beyond", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("wall", [0.5, 0.05, 1e-3])
def test_a_line_search_that_meets_no_number_backtracks_to_the_best_point(beyond: float, wall: float) -> None:
    x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = steprule.LBFGS([x], line_search_fn="strong_wolfe")
    losses = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = ((x - 3) ** 2).sum() + (beyond if bool((x > wall).any()) else 0.0)
        loss.backward()
        losses.append(loss.item())
        return loss

    for _ in range(4):
        optimizer.step(closure)
        assert x.isfinite().all()
        assert bool((x <= wall).all())
    assert ((x - 3) ** 2).sum() < 18
    assert bool((x > 0).all())


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_where_the_first_loss_is_no_number_nothing_moves(search: str | None) -> None:
    x = torch.ones(2, requires_grad=True)
    optimizer = steprule.LBFGS([x], line_search_fn=search)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (x * torch.nan).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert x.tolist() == [1.0, 1.0]


def test_frozen_whole_numbers_beside_it_are_passed_over() -> None:
    found = []
    for extra in ([], [nn.Parameter(torch.arange(3), requires_grad=False)]):
        x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        optimizer = steprule.LBFGS([*extra, x], line_search_fn="strong_wolfe")

        def closure(x: Tensor = x) -> Tensor:
            x.grad = None
            loss = ((x - 3) ** 4).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        optimizer.step(closure)
        found.append(x.detach().clone())
        assert all(e.tolist() == [0, 1, 2] for e in extra)
    assert torch.equal(*found)


def test_rprop_moves_at_a_rate_of_zero_as_torchs_does() -> None:
    found = []
    for module in (torch.optim, steprule):
        x = torch.ones(3, dtype=torch.float64, requires_grad=True)
        optimizer = module.Rprop([x], lr=0.0)
        for _ in range(3):
            x.grad = torch.ones_like(x)
            optimizer.step()
        found.append(x.detach())
    assert torch.equal(*found)
    assert bool((found[0] < 1).all())


def test_a_step_without_a_closure_says_what_it_needs() -> None:
    with pytest.raises(TypeError, match=r"LBFGS evaluates the model several times .* GradScaler"):
        steprule.LBFGS([torch.ones(2, requires_grad=True)]).step()


def test_a_history_with_a_hole_is_refused() -> None:
    p = torch.ones(3, requires_grad=True)
    optimizer = steprule.LBFGS([p], lr=0.1, max_iter=3)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = (p**4).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    saved = optimizer.state_dict()
    assert saved["state"][0]["ro"]
    saved["state"][0]["ro"] = [None for _ in saved["state"][0]["ro"]]
    with pytest.raises(ValueError, match="a list of numbers, one for each of old_dirs"):
        optimizer.load_state_dict(saved)
