"""The cases, with what each is to reach."""

from __future__ import annotations

import gc
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from typing import Any, NamedTuple, Protocol

import torch

import steprule
from steprule.kernels.cpu.kept_code import CACHE

from .contenders import (
    HandwrittenLion,
    Make,
    algorithms,
    clipped,
    coming_and_going,
    copying,
    in_float32,
    in_groups,
    in_place,
    parameters,
    stepping,
    torch_peers,
    traffic,
    works,
)
from .tensor_shapes import SIZES, shapes_of, total_elements
from .timing import CLOCKS, Pace, Spread, Times, alternate, ratio, spread

__all__ = ["Case", "FirstStep", "Result", "Settings", "Sizes", "Steps", "Target", "cases", "many_groups"]

OURS, MEMORY, FASTEST = "steprule", "memory", "fastest"
REFERENCE = "10M"  # the size that other sizes are compared with
CACHES = 100_000_000  # bytes of a step below which caches may serve it, and memory says nothing of it


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        pace: how long.
        device: where.
        compiled: let torch.compile take part.
    """

    pace: Pace = field(default_factory=Pace)
    device: str = "cpu"
    compiled: bool = False


@dataclass(frozen=True)
class Target:
    """A figure to reach.

    Attributes:
        against: a peer; ``"fastest"`` of torch's own implementations; ``"memory"``, the time of the same bytes in
            place; ``"10M"``, the time per parameter of so many; ``"seconds"``.
        limit: what the ratio, or the seconds, may be at most.
    """

    against: str
    limit: float


@dataclass(frozen=True)
class Result:
    """What was measured of a case.

    Attributes:
        name: of the case, as rule/shapes.
        parameters: how many there are.
        times: of each contender by name, ours first.
        bytes: that a step of ours reads and writes, where the Program tells.
        bandwidth_bytes: that ``"memory"`` reads and writes.
        ratios: our time over each peer's, by the peer's name; below 1 is faster.
        targets: what was to be reached, with what was.
        peaks: bytes above parameters and gradients at the peak of the first step, by contender, where a device says it.
    """

    name: str
    parameters: int
    times: Mapping[str, Times]
    bytes: float | None = None
    bandwidth_bytes: int | None = None
    ratios: Mapping[str, Spread] = field(default_factory=dict)
    targets: Sequence[tuple[Target, Spread]] = ()
    peaks: Mapping[str, int] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Median of a step of ours."""
        return spread(self.times[OURS].rounds).median

    @property
    def bandwidth(self) -> float | None:
        """Bytes a second that the machine moves in place; None where it was not measured."""
        return self.bandwidth_bytes and self.bandwidth_bytes / spread(self.times[MEMORY].rounds).median


class Case(Protocol):
    """Something to measure."""

    @property
    def name(self) -> str:
        """As rule/shapes."""

    def run(self, settings: Settings) -> list[Result]:
        """Measure it."""


@dataclass(frozen=True)
class Steps:
    """A step of ours, in turns with the peers' and with the machine's memory.

    Attributes:
        rule: names the optimizer.
        shapes: names the parameters' shapes.
        ours: the optimizer.
        peers: the others.
        targets: what is to be reached.
        dtype: of parameters, gradients and state.
        tokens: makes the gradients sparse, as an embedding's after so many tokens.
        lay: what is made of the parameters before anybody takes a step.
    """

    rule: str
    shapes: str
    ours: Any
    peers: Mapping[str, Make] = field(default_factory=dict)
    targets: Sequence[Target] = ()
    dtype: torch.dtype = torch.float32
    tokens: int | None = None
    lay: Callable[[list[torch.Tensor]], list[torch.Tensor]] = list

    @property
    def name(self) -> str:
        return f"{self.rule}/{self.shapes}"

    def run(self, settings: Settings) -> list[Result]:
        gc.collect()  # of the case before
        torch.cuda.empty_cache()  # which does nothing where there is no GPU
        params = self.lay(parameters(shapes_of(self.shapes), self.dtype, settings.device, self.tokens))
        ours = self.ours(params)
        peers = self.taking_part(settings)
        memory = (in_place if settings.device == "cpu" else copying)(params)
        contenders = {OURS: ours.step, MEMORY: memory} | {name: make(params) for name, make in peers.items()}
        times = alternate(contenders, settings.pace, CLOCKS[settings.device])
        known = traffic(ours)
        count = total_elements(shapes_of(self.shapes))
        in_place_bytes = 2 * self.dtype.itemsize * count
        result = Result(self.name, count, times, known.bytes if known else None, in_place_bytes)
        one_pass = known is not None and known.passes == 1
        return [judged(result, [t for t in self.targets if t.against != MEMORY or one_pass])]

    def taking_part(self, settings: Settings) -> dict[str, Make]:
        """The peers that are there on the device; torch.compile only if it is asked for."""
        dense = self.tokens is None
        return {
            name: make
            for name, make in self.peers.items()
            if (settings.compiled if name == "compile" else not dense or works(make, settings.device))
        }


def judged(result: Result, targets: Sequence[Target]) -> Result:
    """A result with its ratios, and those targets that are against something measured, with what was reached."""
    ours = result.times[OURS].rounds
    ratios = {n: ratio(ours, t.rounds) for n, t in result.times.items() if n not in (OURS, MEMORY)}
    own = [spread for name, spread in ratios.items() if name != "compile"]
    found = dict(ratios)
    if own:
        found[FASTEST] = max(own, key=lambda spread: spread.median)
    if result.bytes and result.bandwidth_bytes and result.bytes >= CACHES:
        same_bytes = result.bytes / result.bandwidth_bytes
        ratios[MEMORY] = found[MEMORY] = ratio(ours, result.times[MEMORY].rounds, same_bytes)
    return replace(result, ratios=ratios, targets=[(t, found[t.against]) for t in targets if t.against in found])


@dataclass(frozen=True)
class Sizes:
    """The time per parameter of one tensor, over its size."""

    rule: str
    ours: Any
    sizes: Mapping[str, int] = field(default_factory=lambda: SIZES)
    limit: float = 1.15

    @property
    def name(self) -> str:
        return f"{self.rule}/sizes"

    def run(self, settings: Settings) -> list[Result]:
        optimizers = {
            name: self.ours(parameters([(size,)], torch.float32, settings.device)) for name, size in self.sizes.items()
        }
        steps = {name: optimizer.step for name, optimizer in optimizers.items()}
        times = alternate(steps, settings.pace, CLOCKS[settings.device])
        reference = times[REFERENCE].rounds
        results = []
        for name, size in self.sizes.items():
            per_parameter = ratio(times[name].rounds, reference, size / self.sizes[REFERENCE])
            known = traffic(optimizers[name])
            targets = [(Target(REFERENCE, self.limit), per_parameter)] if name != REFERENCE else []
            total = known.bytes if known else None
            results.append(Result(f"{self.rule}/{name}", size, {OURS: times[name]}, total, targets=targets))
        return results


@dataclass(frozen=True)
class FirstStep:
    """Construction and first step of an optimizer in a fresh process: trace and compile; on a CPU also with code
    that another process has compiled.

    Attributes:
        rule: names the optimizer.
        ours: the optimizer.
        shapes: names the parameters' shapes.
        tokens: makes the gradients sparse, as an embedding's after so many tokens.
        limit: the seconds that it may take.
        again: the seconds that it may take with code that another process has compiled.
        peers: those of torch beside whose peak of memory ours is shown, where the device says it.
    """

    rule: str
    ours: Any
    shapes: str = "lenet"
    tokens: int | None = None
    limit: float = 0.1
    again: float = 0.01
    peers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.rule}/first"

    def run(self, settings: Settings) -> list[Result]:
        found = [self.measured(settings, self.name, self.limit, "")]
        if settings.device == "cpu":
            with tempfile.TemporaryDirectory() as kept:
                found.append(self.measured(settings, f"{self.name}-again", self.again, kept))
        return found

    def measured(self, settings: Settings, name: str, limit: float, kept: str) -> Result:
        """The seconds of processes that keep machine code in a folder; where they do, the first is not measured."""
        peers = {} if settings.device == "cpu" else self.peers
        makes = [*(math.ceil(settings.pace.rounds / 4) + bool(kept)) * [self.ours], *peers.values()]
        tasks = [(make, self.shapes, self.tokens, settings.device, kept) for make in makes]
        with get_context("spawn").Pool(1, maxtasksperchild=1) as processes:
            taken = processes.starmap(time_first_step, tasks, chunksize=1)
        own, others = taken[bool(kept) : len(taken) - len(peers)], taken[len(taken) - len(peers) :]
        seconds = tuple(first.seconds for first in own)
        peaks = {who: first.peak for who, first in zip([OURS, *peers], [own[0], *others], strict=True)}
        return Result(
            name,
            total_elements(shapes_of(self.shapes)),
            {OURS: Times(seconds[0], seconds)},
            targets=[(Target("seconds", limit), spread(seconds))],
            peaks={who: peak for who, peak in peaks.items() if peak is not None},
        )


class First(NamedTuple):
    """What a first step took.

    Attributes:
        seconds: with construction.
        peak: bytes at its peak above those that were there before it, where the device says it.
    """

    seconds: float
    peak: int | None = None


def time_first_step(make: Any, shapes: str, tokens: int | None, device: str, kept: str = "") -> First:
    """Construct an optimizer that did not exist, and take a step.

    Args:
        make: makes it.
        shapes: of the parameters.
        tokens: how many rows of an embedding have a gradient.
        device: where they are.
        kept: the folder in which machine code for CPUs is looked for; empty: it is compiled.
    """
    os.environ[CACHE] = kept
    params = parameters(shapes_of(shapes), torch.float32, device, tokens)
    torch.optim.SGD(params)  # torch imports its compiler, for seconds, when any optimizer is made

    def construct_and_step() -> None:
        make(params).step()

    if device == "cpu":
        return First(CLOCKS[device](construct_and_step, 1))
    with tempfile.TemporaryDirectory() as nothing_known:
        os.environ |= {"TRITON_CACHE_DIR": nothing_known, "XDG_CACHE_HOME": nothing_known}
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        seconds = CLOCKS[device](construct_and_step, 1)
        return First(seconds, torch.cuda.max_memory_allocated() - before)


class Where(NamedTuple):
    """The shapes that an algorithm's steps and its first step are measured on."""

    steps: str = "gpt2"
    first: str = "lenet"
    tokens: int | None = None


WHERE: Mapping[str, Where] = {
    "Muon": Where("gpt2-hidden", "lenet-matrices"),
    **dict.fromkeys(("AdaMuon", "Dion", "NorMuon"), Where("narrow", "lenet-matrices")),
    **dict.fromkeys(("Apollo", "GaLore", "Kron", "SOAP", "Scion", "Shampoo"), Where("narrow", "lenet")),
    "SparseAdam": Where("embedding", "lenet-matrices", tokens=8192),
}
"""Of the algorithms that GPT-2's tensors and dense gradients are not for."""

AGAINST_TORCH: Mapping[str, Target] = {
    **dict.fromkeys(("Adam", "AdamW", "SGD", "Adagrad"), Target("fused", 1.0)),
    **dict.fromkeys(("NAdam", "RAdam", "Adamax", "Adadelta", "RMSprop", "Rprop", "ASGD"), Target(FASTEST, 0.25)),
    "Adafactor": Target(FASTEST, 0.5),
    "Muon": Target(FASTEST, 0.7),
}


def every_algorithm() -> list[Case]:
    """Each algorithm with its defaults: its steps, and its first step."""
    found: list[Case] = []
    for name, kind in algorithms().items():
        where = WHERE.get(name, Where())
        theirs = getattr(torch.optim, name, None)
        peers = torch_peers(theirs) if theirs else {}
        memory = Target(MEMORY, 1.08 if name in ("AdamW", "Adagrad") else 1.1)
        targets = [AGAINST_TORCH[name], memory] if name in AGAINST_TORCH else [memory]
        targets = [] if where.steps == "narrow" else targets  # decompositions are not a matter of bytes
        found.append(Steps(name.lower(), where.steps, kind, peers, targets, tokens=where.tokens))
        found.append(FirstStep(name.lower(), kind, where.first, where.tokens))
    return found


def many_groups(count: int = 465) -> list[Case]:
    """So many tensors, each in a group of its own, beside all in one; a model of 38 layers has 465."""
    peers = {
        "one group": stepping(steprule.AdamW),
        "fused": stepping(in_groups(partial(torch.optim.AdamW, fused=True))),
    }
    scheduled = partial(steprule.AdamW, lr=1e-3 * steprule.schedules.cosine(10**9))
    return [
        Steps("adamw-groups", str(count), in_groups(steprule.AdamW), peers, [Target("one group", 1.5)]),
        Steps("adamw-schedules", str(count), in_groups(scheduled), peers, [Target("one group", 2.0)]),
    ]


def experts() -> list[Case]:
    """A thousand tensors, of which three in ten have no gradient, others in each step."""

    def case(name: str, way: str) -> Case:
        ours, theirs = (getattr(room, name) for room in (steprule, torch.optim))
        peers = {way: stepping(coming_and_going(partial(theirs, **{way: True})))}
        return Steps(f"{name.lower()}-experts", "1000", coming_and_going(ours), peers, [Target(way, 1.0)])

    return [case("SGD", "foreach"), case("AdamW", "fused")]


def fewer_bits() -> list[Case]:
    """State and weights in fewer bits, beside the same algorithm with all in float32."""

    def case(name: str, kind: Any, limit: float, dtype: torch.dtype = torch.float32, **options: Any) -> Case:
        targets = [Target("float32", limit)]
        return Steps(name, "gpt2", partial(kind, **options), {"float32": in_float32(kind)}, targets, dtype)

    adamw, lion, short = steprule.AdamW, steprule.Lion, torch.bfloat16
    return [
        case("adamw-state-bf16", adamw, 0.8, state_dtype="bfloat16"),
        case("adamw-state-8bit", adamw, 0.75, state_dtype="8bit"),
        case("adamw-bf16-8bit", adamw, 0.5, short, state_dtype="8bit"),
        case("adamw-bf16-stochastic-8bit", adamw, 1.0, short, state_dtype="8bit", rounding="stochastic"),
        case("adamw-bf16-master-8bit", adamw, 1.0, short, state_dtype="8bit", master="16bit"),
        case("adamw-bf16-master", adamw, 1.0, short, state_dtype="float32", master="16bit"),
        case("lion-state-8bit", lion, 0.8, state_dtype="8bit"),
    ]


def cases() -> list[Case]:
    """Every case."""
    adamw, sgd = torch_peers(torch.optim.AdamW), torch_peers(torch.optim.SGD)
    momentum = partial(steprule.SGD, momentum=0.9)
    momentum_peers = torch_peers(torch.optim.SGD, momentum=0.9)
    fused = Target("fused", 1.0)
    return [
        Steps("sgd-momentum", "gpt2", momentum, momentum_peers, [fused, Target(MEMORY, 1.08)]),
        Steps("adamw", "resnet50", steprule.AdamW, adamw, [Target("fused", 0.95)]),
        Steps("adamw", "lenet", steprule.AdamW, adamw, [Target("fused", 0.4), Target("default", 0.2)]),
        Steps("sgd", "lenet", steprule.SGD, sgd, [Target("fused", 0.4)]),
        Steps("sgd-momentum", "lenet", momentum, momentum_peers, [Target("fused", 0.4)]),
        Steps("adamw", "one", steprule.AdamW, adamw, [Target("fused", 0.4)]),
        Steps("sgd", "one", steprule.SGD, sgd, [Target("fused", 0.4)]),
        Steps("adamw", "small", steprule.AdamW, adamw, [Target("fused", 0.7)]),
        Steps("adamw-bf16", "gpt2", steprule.AdamW, adamw, [Target("fused", 0.65)], dtype=torch.bfloat16),
        Steps(
            "adamw-clip",
            "gpt2",
            partial(steprule.AdamW, clip_norm=1.0),
            {"fused": clipped(adamw["fused"], 1.0)},
            [Target("fused", 0.6)],
        ),
        Steps("lion-rule", "gpt2", HandwrittenLion, {}, [Target(MEMORY, 1.1)]),
        FirstStep("lion-rule", HandwrittenLion),
        *many_groups(),
        *experts(),
        *fewer_bits(),
        Sizes("adamw", steprule.AdamW),
        *every_algorithm(),
    ]
