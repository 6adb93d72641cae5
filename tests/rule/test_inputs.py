"""What a step is given beside gradients: a Hessian's diagonal, the loss."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch

from steprule import Optimizer
from steprule.rule import RuleError, abs, given, maximum, trace

INTERPRETER = pytest.mark.skipif(
    find_spec("triton") is None or torch.cuda.is_available(), reason="Triton's interpreter is not switched on"
)
BACKENDS = pytest.mark.parametrize("backend", ["llvm", "eager", pytest.param("triton", marks=INTERPRETER)])


class Newton(Optimizer):
    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        s.curvature = 0.5 * s.curvature + abs(given("hessian"))
        return p - h.lr * given("loss", scope="all") * g / maximum(s.curvature, 1e-3)


@BACKENDS
def test_arrays_and_numbers_that_a_step_is_given(backend: str) -> None:
    params = [
        torch.ones(3, 4, dtype=torch.float64).requires_grad_(),
        torch.ones(5, dtype=torch.float64).requires_grad_(),
    ]
    wide = [p.detach().clone() for p in params]
    curvature = [torch.zeros_like(p) for p in wide]
    optimizer = Newton(params, dict(lr=0.1), backend=backend)
    for step in range(3):
        hessian = {p: torch.linspace(-1, 2, p.numel(), dtype=torch.float64).view(p.shape) + step for p in params}
        hessian[params[0]] = hessian[params[0]].t().contiguous().t()
        for p in params:
            p.grad = torch.full_like(p, 1.0 + step)
        loss: Any = torch.tensor(0.5) if step else 0.25
        optimizer.step(inputs={"hessian": hessian, "loss": loss})
        for i, p in enumerate(params):
            curvature[i] = 0.5 * curvature[i] + hessian[p].abs()
            wide[i] -= 0.1 * float(loss) * (1.0 + step) / curvature[i].clamp(min=1e-3)
    for p, q in zip(params, wide, strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=1e-12, atol=0)


@BACKENDS
def test_what_is_missing_or_unfit_is_named_and_nothing_has_changed(backend: str) -> None:
    p = torch.ones(3, requires_grad=True)
    p.grad = torch.ones(3)
    optimizer = Newton([("w", p)], dict(lr=0.1), backend=backend)
    fit = {"hessian": {p: torch.ones(3)}, "loss": 1.0}
    wrong: list[tuple[Any, type[Exception], str]] = [
        (None, RuntimeError, r"reads inputs\['loss'\]: call step\(inputs="),
        ({"loss": 1.0}, RuntimeError, r"inputs\['hessian'\] of parameter 'w', which step\(\) was not given"),
        ({**fit, "hessian": {p: torch.ones(4)}}, RuntimeError, r"of parameter 'w' is \(4,\) on cpu, but .* \(3,\)"),
        ({**fit, "hesian": 1.0}, ValueError, r"inputs\['hesian'\] is read by no rule"),
    ]
    for inputs, kind, message in wrong:
        with pytest.raises(kind, match=message):
            optimizer.step(inputs=inputs)
        assert torch.equal(p, torch.ones(3))
        assert not optimizer.state
    optimizer.step(inputs=fit)
    assert p[0].item() == pytest.approx(0.9)
    with pytest.raises(RuleError, match="scope is 'array'"):
        trace(lambda p, g, s, h: p - given("x", scope="tensor"), {})  # type: ignore[arg-type]
