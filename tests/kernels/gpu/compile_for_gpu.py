"""Compiles kernels for GPUs that need not be there, and prints how often each instruction stands in them (JSON).

It runs as a process of its own, since Triton can't compile where its interpreter is switched on.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch

import steprule
from steprule import Optimizer, rule
from steprule.kernels.gpu.row_tiles import tile_for
from steprule.kernels.gpu.rows import join_source, rows_source
from steprule.kernels.gpu.source import NAMES, WHOLE, compiled, exact, pass_source, scalar_source
from steprule.kernels.gpu.triton import LINES, PARTS
from steprule.rule.program import FIRST_SLOT, GRAD, Program

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

HOPPER, MI300 = GPUTarget("cuda", 90, 32), GPUTarget("hip", "gfx942", 64)
TYPES = {
    "pointers": "*i64",
    "chunks": "*i64",
    "reduced": "*fp64",
    "partials": "*fp64",
    "spans": "*i64",
    "hyper": "*fp64",
    "groups": "*i64",
    "counters": "*i64",
    "fresh": "*i8",
    "extents": "*fp64",
    "found_inf": "*fp32",
    "scalars": "*fp64",
    "tensors": "i32",
    "places": "*i64",
    "lines": "*i64",
    "sums": "*i64",
    "numbers": "*i64",
    "table": "*fp64",
    "joins": "*i64",
    "joined": "i32",
}
MEMORY = re.compile(r"\b(?:(?:ld|st)\.global[.\w]*|global_(?:load|store)_\w+|buffer_(?:load|store)_\w+)")
ARITHMETIC = re.compile(r"\b(?:div|sqrt|fma|ex2|lg2|mul)\.[.\w]+")
CHOSEN = re.compile(r"selp\.f32\s+(%\w+),")
SLOW_FOR_ZERO = re.compile(r"(?:sqrt|div)\.rn\.f32\s+%\w+, (%\w+)")


class Everything(Optimizer):
    """Every operation, on elements, on what is reduced and on scalars, and every reduction."""

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        def all_of(x: Any, y: Any) -> Any:
            both = (x < y) & (x <= y) | ~(x > y) | (x >= y) & (x == y) | (x != y) & ~rule.isnan(x)
            one = rule.sqrt(x) + rule.exp(x) + rule.log(x) + rule.tanh(x) + rule.sin(x) + rule.cos(x) + rule.sign(x)
            two = rule.power(x, y) * rule.minimum(x, y) - rule.maximum(x, y) / y + rule.floor(x) - rule.ceil(x)
            two = two + rule.atan2(x, y) * rule.round(x) + rule.erf(x % y)
            # each of them counts, or the compiler would leave it out
            return rule.where(x < y, one, -two) + rule.where(both, abs(x), 0.0) + float("inf") * y + (x < 1)

        norms = rule.norm(p) + rule.sum(p, scope="all") + rule.max_abs(g) + rule.mean(g)
        s.number = rule.stored(s.number) * all_of(h.lr, s.step) + rule.where(s.is_new, rule.size(p), 1.0)
        return p - all_of(p, g) * all_of(norms, h.lr) - s.number


class RowsAndColumns(Optimizer):
    """Every reduction over a dimension, and what it leaves in arithmetic with everything else."""

    slots = {"low": rule.row(), "high": rule.column("top")}  # noqa: RUF012

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        s.low = rule.maximum(s.low, rule.norm(g, dim=-1)) + rule.max_abs(p, dim=-1) * rule.norm(g)
        s.high = rule.minimum(s.high, rule.sum(g, dim=-2)) + rule.max_abs(s.low * g, dim=-2) * rule.mean(p, dim=-2)
        return p - h.lr * (rule.where(g < s.low, s.high, g) + rule.sum(s.low, dim=-2) + rule.max_abs(s.high, dim=-1))


Everything.slots = {"number": rule.scalar(1.0)}


def program(optimizer: Optimizer) -> Program:
    works, group = optimizer._workings, optimizer.param_groups[0]
    one = torch.empty(1, 1, dtype=group["params"][0].dtype)
    return works.planner.program(works.roles.algorithm(group, optimizer), group, (False, False, (), False), one)


def instructions(function: Any, target: GPUTarget, constants: dict[str, Any]) -> Counter[str]:
    """How often each instruction for memory and each approximate one stands in a kernel compiled for a GPU.

    ``"unguarded"`` are roots and quotients of what was not chosen beforehand, so that it may be zero.
    """
    signature = {name: "constexpr" if name in constants else TYPES.get(name, "fp64") for name in function.arg_names}
    places = {name: i for i, name in enumerate(function.arg_names)}
    values = {(places[name],): value for name, value in constants.items()}
    aligned = {(i,): [["tt.divisibility", 16]] for name, i in places.items() if signature[name].startswith("*")}
    source = ASTSource(function, signature, values, aligned)
    compiled_kernel = triton.compile(source, target=target, options=exact(target.backend == "hip"))
    text = compiled_kernel.asm["ptx" if target.backend == "cuda" else "amdgcn"]
    chosen = set(CHOSEN.findall(text))
    unguarded = [name for name in SLOW_FOR_ZERO.findall(text) if name not in chosen]
    return Counter(MEMORY.findall(text) + ARITHMETIC.findall(text) + len(unguarded) * ["unguarded"])


def passes(
    made: Program,
    target: GPUTarget,
    dtype: torch.dtype,
    grad: torch.dtype | None = None,
    flag: bool = False,
    rows: int = 0,
    codes: Sequence[str] = (),
    master: str = "",
) -> list[Counter[str]]:
    """The instructions of each pass, for gradients of the parameters' dtype or of another, with a found-infinite flag
    or without, with so many rows of scalars by value, with the last slots in codes of these dtypes, and whole
    numbers of that dtype beside the parameter; what joins its reductions is compiled too."""
    kind = "float64" if dtype == torch.float64 else "float32"
    operands = [NAMES[dtype]] * made.operands
    operands[GRAD] = NAMES[grad or dtype]
    operands[len(operands) - len(codes) :] = codes
    if master:
        operands[FIRST_SLOT] = master + WHOLE
    found = []
    for stage, phase in enumerate(made.phases):
        functions = compiled((rows_source if made.by_lines else pass_source)(made, stage, operands, kind, rows))
        tiles = [tile_for(768, 3072), tile_for(3, 3)] if made.by_lines else []
        sizes = [dict(zip(("MANY", "ROWS", "COLUMNS"), tile, strict=True)) for tile in tiles] or [{"BLOCK": 1024}]
        constants = [{**({} if flag else {"found_inf": None}), **own} for own in sizes]
        of_each = [instructions(functions[f"pass{stage}"], target, own) for own in constants]
        found.append(of_each[0])
        if phase.reductions:
            instructions(functions[f"gather{stage}"], target, {"BLOCK": 1024})
    return found


def main() -> None:
    start = lambda: torch.ones(4, requires_grad=True)
    everything, adamw = program(Everything([start()], dict(lr=0.1))), program(steprule.AdamW([start()]))
    results = {}
    for target, dtype in ((HOPPER, torch.float32), (HOPPER, torch.float64), (MI300, torch.float32)):
        results[f"everything {target.arch} {NAMES[dtype]}"] = passes(everything, target, dtype)
    for target in (HOPPER, MI300):
        instructions(compiled(scalar_source(everything, "float32"))["advance"], target, {"BLOCK": 128})
    by_lines = program(RowsAndColumns([start()], dict(lr=0.1, top=1.0)))
    adafactor = program(steprule.Adafactor([start()]))
    joins = compiled(join_source())
    for target, dtype in ((HOPPER, torch.float32), (HOPPER, torch.bfloat16), (MI300, torch.float32)):
        results[f"rows {target.arch} {NAMES[dtype]}"] = passes(by_lines, target, dtype, flag=True)
        results[f"adafactor {target.arch} {NAMES[dtype]}"] = passes(adafactor, target, dtype)
        for name in ("join_sum", "join_max_abs"):
            instructions(joins[name], target, {"PARTS": PARTS, "LINES": LINES})
    for dtype in (torch.float32, torch.bfloat16):
        results[f"adamw {NAMES[dtype]}"] = passes(adamw, HOPPER, dtype)
    results["adamw mixed"] = passes(adamw, HOPPER, torch.float32, grad=torch.bfloat16)
    results["adamw scaled"] = passes(adamw, HOPPER, torch.float32, flag=True)
    in_codes = program(steprule.AdamW([start()], state_dtype="8bit"))
    for target in (HOPPER, MI300):
        results[f"adamw by value {target.arch}"] = passes(adamw, target, torch.float32, rows=2)
        found = passes(in_codes, target, torch.bfloat16, flag=True, rows=1, codes=("int8", "uint8"))
        results[f"adamw in codes {target.arch}"] = found
        for kind, held in (("8bit", "int8"), ("16bit", "int16")):
            start16 = torch.ones(4, dtype=torch.bfloat16, requires_grad=True)
            in_parts = program(steprule.AdamW([start16], master=kind, state_dtype="8bit"))
            known: Any = dict(codes=("int8", "uint8"), master=held)
            results[f"adamw in parts {kind} {target.arch}"] = passes(in_parts, target, torch.bfloat16, **known)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
