"""Adafactor: what it adds to torch's, and its work on rows and columns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from algorithm_cases import case_parameters, gradient
from comparing import assert_close
from tensors import grad_of
from torch import Tensor

import steprule
from steprule.kernels.cpu import llvm

SHAPES: list[tuple[int, ...]] = [(), (9,), (40, 30), (1, 50), (6, 5, 4), (2, 2, 3, 3, 2)]


def trained(library: Any, change: Any = None, tiny: float = 1.0, **options: Any) -> list[Tensor]:
    """Parameters after five steps; ``change`` does by hand what an option would do to the gradients."""
    params = case_parameters(torch.float64, SHAPES)
    optimizer = library.Adafactor(params, lr=0.1, **options)
    for step in range(5):
        for index, p in enumerate(params):
            p.grad = tiny * gradient(tuple(p.shape), p.dtype, index, step)
        if change is not None:
            change(params)
        optimizer.step()
    return [p.detach() for p in params]


@pytest.mark.parametrize("limit", [1, 7, 64, 500])
def test_the_parts_do_not_matter(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llvm, "LIMIT", limit)
    monkeypatch.setattr(llvm, "ROWS", 3)
    assert_close(trained(steprule, backend="llvm"), trained(torch.optim), 1e-12, 1e-14)


def test_torch_operations_give_the_same() -> None:
    assert_close(trained(steprule, backend="eager"), trained(torch.optim), 1e-12, 1e-14)


@pytest.mark.parametrize("tiny", [1e-30, 1e-15, 1e-6, 1e20])
def test_gradients_of_any_size(tiny: float) -> None:
    """Where the second moment falls below its least value, it no longer is a product."""
    assert_close(trained(steprule, tiny=tiny), trained(torch.optim, tiny=tiny), 1e-12, 1e-14)


def test_a_nan_goes_where_torch_lets_it_go() -> None:
    def spoil(params: list[Tensor]) -> None:
        for p in params:
            if p.ndim:
                grad_of(p).view(-1)[1] = torch.nan

    for backend in ("llvm", "eager"):
        ours, theirs = trained(steprule, spoil, backend=backend), trained(torch.optim, spoil)
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14, equal_nan=True)


def test_a_mixture_of_sizes_in_one_matrix() -> None:
    def mix(params: list[Tensor]) -> None:
        for p in params:
            if p.ndim > 1:
                p.grad[..., ::2, :] *= 1e-9
                p.grad[..., ::3] = 0

    assert_close(trained(steprule, mix), trained(torch.optim, mix), 1e-12, 1e-14)


def test_l1_clipping_and_scaling_are_what_they_are_by_hand() -> None:
    def by_hand(params: list[Tensor]) -> None:
        norm = torch.nn.utils.clip_grad_norm_(params, 0.5, foreach=False)
        assert norm > 0.5
        for p in params:
            p.grad = -grad_of(p) + 0.3 * p.detach().sign()

    assert_close(trained(steprule, l1=0.3, clip_norm=0.5, maximize=True), trained(torch.optim, by_hand), 1e-12, 1e-14)


def test_grad_norm_is_known_where_it_is_clipped() -> None:
    p = torch.ones(3, 4, requires_grad=True)
    optimizer = steprule.Adafactor([p], clip_norm=2.0)
    with pytest.raises(RuntimeError, match="grad_norm is computed where clip_norm is set"):
        _ = optimizer.grad_norm
    p.grad = torch.full((3, 4), 2.0)
    optimizer.step()
    assert optimizer.grad_norm.item() == pytest.approx(48**0.5)


def test_under_a_gradient_scaler() -> None:
    results = []
    for library in (steprule, torch.optim):
        p = torch.linspace(-1, 1, 12).view(3, 4).requires_grad_()
        optimizer = library.Adafactor([p], lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for step in range(6):
            optimizer.zero_grad()
            loss = (p * p).sum() * (float("inf") if step == 2 else 1.0)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        results.append(p.detach())
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)


def test_empty_parameters_complex_ones_and_sparse_gradients() -> None:
    empty, other = torch.ones(0, 3, requires_grad=True), torch.ones(2, 2, requires_grad=True)
    empty.grad, other.grad = torch.ones(0, 3), torch.ones(2, 2)
    optimizer = steprule.Adafactor([empty, other])
    optimizer.step()
    assert (other < 1).all()
    for library in (torch.optim, steprule):
        p = torch.ones(2, 2, dtype=torch.complex64, requires_grad=True)
        p.grad = torch.ones_like(p)
        with pytest.raises(RuntimeError, match="Adafactor does not support complex parameters"):
            library.Adafactor([p]).step()
        p = torch.ones(2, 2, requires_grad=True)
        p.grad = torch.eye(2).to_sparse()
        with pytest.raises(RuntimeError, match="Adafactor does not support sparse gradients"):
            library.Adafactor([p]).step()
    assert "in 3 passes over memory" in optimizer.explain()


@pytest.mark.parametrize(
    "options", [{"lr": -1.0}, {"beta2_decay": 0.1}, {"eps": (-1.0, 1.0)}, {"eps": (None, -1.0)}, {"d": 0.5}], ids=str
)
def test_what_torch_refuses_is_refused_in_the_same_words(options: dict[str, Any]) -> None:
    p = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError) as theirs:  # noqa: PT011
        torch.optim.Adafactor([p], **options)
    with pytest.raises(ValueError) as ours:  # noqa: PT011
        steprule.Adafactor([p], **options)
    assert str(ours.value) == str(theirs.value)


def test_the_host_never_asks_for_a_number_of_the_device() -> None:
    """On tensors that have no numbers, every such question is an error."""
    shapes = [*SHAPES, (0, 3)]
    params = [torch.empty(shape, device="meta").requires_grad_() for shape in shapes]
    optimizer = steprule.Adafactor(params, clip_norm=1.0, l1=0.1, maximize=True, weight_decay=0.1)
    optimizer.grad_scale = torch.empty((), device="meta")
    for _ in range(2):
        for p in params:
            p.grad = torch.empty_like(p)
        optimizer.step()
    assert optimizer.grad_norm.device.type == "meta"
    assert [optimizer.state[p]["step"].item() for p in params] == [2.0] * len(params)
