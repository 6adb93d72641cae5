"""Steps on a GPU as training takes them: behind a GradScaler, and replayed from a CUDA graph.

Each is first held against the same steps of torch, and timed only if the two agree.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .cases import OURS, Result, Settings, Target, judged
from .contenders import parameters
from .tensor_shapes import shapes_of, total_elements
from .timing import CLOCKS, Step, alternate

__all__ = ["Graphed", "Scaled"]

TOLERANCE = 1e-5
"""How far parameters may be from torch's after some steps, in parts of the largest of each."""
LATE = 4
"""Every so many tensors, one has its first gradient some steps later."""
RATES = (1e-3, 5e-4, 1e-4, 2e-3)
"""The learning rates of the replays, as a schedule would give them."""
NORM = 1.0

Optimizers = Callable[[list[Tensor]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Scaled:
    """Steps behind a GradScaler that finds infinities in every fourth; some parameters have joined late.

    Attributes:
        rule: names the optimizer.
        shapes: names the parameters' shapes.
        ours: takes parameters, gives an optimizer.
        peers: those of torch that are told what the scaler found, by name.
        targets: what is to be reached.
    """

    rule: str
    shapes: str
    ours: Optimizers
    peers: Mapping[str, Optimizers] = field(default_factory=dict)
    targets: Sequence[Target] = ()

    @property
    def name(self) -> str:
        return f"{self.rule}/{self.shapes}"

    def run(self, settings: Settings) -> list[Result]:
        made = {OURS: self.ours, **self.peers}
        steps: dict[str, Step] = {}
        ends: dict[str, list[Tensor]] = {}
        for name, make in made.items():
            params = parameters(shapes_of(self.shapes), torch.float32, settings.device)
            steps[name] = behind_a_scaler(make, params, settings.device)
            ends[name] = [p.detach().clone() for p in params]
        refuse_other_results(ends)
        return timed(self, steps, settings)


def behind_a_scaler(make: Optimizers, params: list[Tensor], device: str) -> Step:
    """A step of an optimizer whose scaler finds infinities in every fourth, the first of all and that in which a fourth
    of the parameters have their first gradients among them; ten were taken."""
    optimizer, late = make(params), {p: p.grad for p in params[::LATE]}
    scaler: Any = torch.amp.GradScaler(device, init_scale=1.0, growth_interval=10**9)
    scaler.scale(torch.zeros((), device=device))
    marked = params[1]
    assert marked.grad is not None
    place, turn = marked.grad.view(-1)[:1], itertools.count()
    finite = place.clone()

    def step() -> None:
        if next(turn) % 4 == 0:
            place.fill_(torch.inf)
        else:
            place.copy_(finite)
        scaler.step(optimizer)
        scaler.update(1.0)

    for p in late:
        p.grad = None
    for _ in range(4):
        step()
    for p, grad in late.items():
        p.grad = grad
    for _ in range(6):
        step()
    return step


@dataclass(frozen=True)
class Graphed:
    """Replays of a captured step that clips, whose learning rate is a tensor that is filled before each.

    Attributes:
        rule: names the optimizer.
        shapes: names the parameters' shapes.
        ours: takes parameters and the learning rate, gives an optimizer that clips by itself.
        peers: those of torch, by name, behind ``clip_grad_norm_``.
        targets: what is to be reached.
    """

    rule: str
    shapes: str
    ours: Callable[..., torch.optim.Optimizer]
    peers: Mapping[str, Callable[..., torch.optim.Optimizer]] = field(default_factory=dict)
    targets: Sequence[Target] = ()

    @property
    def name(self) -> str:
        return f"{self.rule}/{self.shapes}"

    def run(self, settings: Settings) -> list[Result]:
        steps: dict[str, Step] = {}
        ends: dict[str, list[Tensor]] = {}
        for name, make in {OURS: self.ours, **self.peers}.items():
            params = parameters(shapes_of(self.shapes), torch.float32, settings.device)
            steps[name] = replayed(make, params, name != OURS, settings.device)
            ends[name] = [p.detach().clone() for p in params]
        refuse_other_results(ends)
        return timed(self, steps, settings)


def replayed(make: Callable[..., torch.optim.Optimizer], params: list[Tensor], clip: bool, device: str) -> Step:
    """A replay of a step, after some: each with a rate of its own, and between the second and the third replay one that
    is not captured."""
    rate = torch.tensor(RATES[0], device=device)
    optimizer = make(params, rate)
    gradients = [p.grad for p in params if p.grad is not None]
    norms = itertools.cycle(torch.linspace(1e-2, 3.0, 5).tolist())

    def step() -> None:
        if clip:
            torch.nn.utils.clip_grad_norm_(params, NORM, foreach=True)
        optimizer.step()

    def draw() -> None:  # torch's clipping changes gradients, which are to be the same for both
        torch._foreach_copy_(gradients, given)
        torch._foreach_mul_(gradients, next(norms))

    given = [g.clone() for g in gradients]
    replay = captured(step, device)
    for count, value in enumerate(RATES):
        rate.fill_(value)
        draw()
        replay()
        if count == 1:
            draw()
            step()
    return replay


def captured(step: Step, device: str) -> Step:
    """Take some steps on a stream of their own, and then capture one."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def refuse_other_results(ends: Mapping[str, Sequence[Tensor]]) -> None:
    """Refuse to measure steps that do not do what torch's do.

    Raises:
        AssertionError: naming the peer.
    """
    for name, theirs in ends.items():
        for k, (a, b) in enumerate(zip(ends[OURS], theirs, strict=True)):
            far, scale = float((a - b).abs().max()), float(b.abs().max())
            assert far <= TOLERANCE * scale, f"parameter {k} is {far:g} from that of torch's {name}, of {scale:g}"


def timed(case: Any, steps: Mapping[str, Step], settings: Settings) -> list[Result]:
    gc.collect()
    times = alternate(steps, settings.pace, CLOCKS[settings.device])
    return [judged(Result(case.name, total_elements(shapes_of(case.shapes)), times), case.targets)]
