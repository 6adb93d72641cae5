"""An algorithm beside a reference that we did not write, or a slow loop written from its paper."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import steprule

SHAPES: tuple[tuple[int, ...], ...] = ((7,), (6, 5), (4, 3, 2, 2))
STEPS, CHANGED = 20, 10
"""How many steps there are, and the step from which on the rates are others."""

Array = npt.NDArray[np.float64]
Groups = list[dict[str, Any]]
Make = Callable[[Groups], Any]
"""Parameter groups, to what has ``param_groups`` and ``step()``."""


@dataclass(frozen=True)
class Case:
    """One algorithm with some options, beside one reference.

    Attributes:
        name: of the algorithm.
        theirs: makes the reference.
        ours: the options of ours.
        package: which package the reference is from, as pip calls it; empty for a slow loop in ``slow_loops.py``.
        what: in what the case differs from others of the algorithm.
        remark: what the reference does otherwise, for the page.
        rates: those of the two groups.
        together: one reference for all parameters, where a number is common to them; else each parameter has its own,
            since many packages count steps by group, with gradients or without.
        shapes: of the parameters of either group.
        lacking: whether some parameters have no gradient in some steps.
        evaluated: compare the weights to evaluate with too, by ``eval()``.
        tolerance: the largest relative deviation.
    """

    name: str
    theirs: Make
    ours: Mapping[str, Any] = field(default_factory=dict)
    package: str = ""
    what: str = ""
    remark: str = ""
    rates: tuple[float, float] = (0.02, 0.05)
    together: bool = False
    shapes: Sequence[tuple[int, ...]] = SHAPES
    lacking: bool = True
    evaluated: bool = False
    tolerance: float = 1e-7

    @property
    def id(self) -> str:
        return "-".join(filter(None, [self.name, self.package or "paper", self.what.replace(" ", "_")]))

    @property
    def reference(self) -> str:
        """The reference with its version."""
        return f"{self.package} {importlib.metadata.version(self.package)}" if self.package else "the paper's formula"

    def deviation(self) -> float:
        """The largest relative deviation in any step: of a parameter's largest movement so far."""
        starts = parameters(self.shapes)
        ours, theirs = parameters(self.shapes), parameters(self.shapes)
        mine = run([getattr(steprule, self.name)(grouped(ours, self.rates), **self.ours)], ours, self)
        groups = grouped(theirs, self.rates)
        apart = [[{**group, "params": [p]}] for group in groups for p in group["params"]]
        reference = run([self.theirs(groups)] if self.together else [self.theirs(one) for one in apart], theirs, self)
        return max(
            relative(a, b, start.detach())
            for found, expected in zip(mine, reference, strict=True)
            for a, b, start in zip(found, expected, starts, strict=True)
        )


def package(path: str, **options: Any) -> Make:
    """A class of a package, imported when it is made; ``path`` is module and class."""
    module, _, kind = path.rpartition(".")
    return lambda groups: getattr(importlib.import_module(module), kind)(groups, **options)


def relative(found: Tensor, expected: Tensor, start: Tensor) -> float:
    moved = (expected - start).abs().max().item()
    assert expected.isfinite().all()
    off = (found - expected).abs().max().item()
    return off / moved if moved else off


def parameters(shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Those of two groups; the same numbers at every call."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in [*shapes] * 2]


def grouped(params: list[Tensor], rates: tuple[float, float]) -> Groups:
    half = len(params) // 2
    return [{"params": params[:half], "lr": rates[0]}, {"params": params[half:], "lr": rates[1]}]


def give_lasting_gradients(params: Iterable[Tensor], step: int, lacking: bool) -> None:
    """Gradients with a part that lasts; now and then some are missing."""
    for index, p in enumerate(params):
        lasting = torch.randn(p.shape, generator=torch.Generator().manual_seed(index), dtype=p.dtype)
        noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * step + index), dtype=p.dtype)
        missing = lacking and ((step == 4 and index % 2 == 0) or (step == 13 and index % 3 > 0))
        p.grad = None if missing else lasting + noise


def run(optimizers: Sequence[Any], params: list[Tensor], case: Case) -> list[list[Tensor]]:
    """Copies of the parameters after each step, and of the weights to evaluate with after the last."""
    seen = []
    for optimizer in optimizers:
        if case.evaluated and hasattr(optimizer, "train"):
            optimizer.train()
    for step in range(STEPS):
        give_lasting_gradients(params, step, case.lacking)
        for optimizer in optimizers:
            groups = optimizer.param_groups
            if step == CHANGED:
                for group in groups:
                    group["lr"] = group["lr"] * 0.3
            if any(p.grad is not None for group in groups for p in group["params"]):
                optimizer.step()
        seen.append([p.detach().clone() for p in params])
    if case.evaluated:
        for optimizer in optimizers:
            optimizer.eval()
        seen.append([p.detach().clone() for p in params])
    return seen


class Loop:
    """A paper's update in plain numpy, one parameter at a time.

    Args:
        update: ``update(x, g, s, h)`` gives the new value; ``s`` is the parameter's dictionary, with the step ``t``.
        groups: parameter groups.
        hyper: hyperparameters.
    """

    def __init__(self, update: Callable[..., Array], groups: Groups, **hyper: Any) -> None:
        self.update = update
        self.param_groups = [{**hyper, **group} for group in groups]
        self.state: dict[Tensor, dict[str, Any]] = {}

    def step(self) -> None:
        for group in self.param_groups:
            h = type("H", (), group)
            for p in group["params"]:
                if p.grad is not None:
                    s = self.state.setdefault(p, {"t": 0})
                    s["t"] += 1
                    p.data.copy_(torch.from_numpy(self.update(p.detach().numpy().copy(), p.grad.numpy(), s, h)))


def loop(update: Callable[..., Array], **hyper: Any) -> Make:
    return lambda groups: Loop(update, groups, **hyper)
