"""Which kernel serves which parameters, and why, for a person to read."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from steprule.messages.words import counted
from steprule.rule.mathematics import bounded
from steprule.rule.program import FIRST_SLOT

from .coding import CODES
from .launch import Launch
from .layout import real
from .slots import computed_in

__all__ = ["explain", "first_names"]

CODE = 2000
"""Lines of code at most that are shown of a launch; the longest of an algorithm here has 750."""


def explain(launches: Sequence[Launch], source: bool = False) -> str:
    """A paragraph for each launch: kernel, tensors, bytes moved, reason; with ``source``, Program and code too."""
    several = len({launch.program.name for launch in launches}) > 1
    return "\n".join(paragraph(launch, source, several) for launch in launches) or "no parameter has a gradient yet"


def paragraph(launch: Launch, source: bool, several: bool) -> str:
    names = [e.name for e in launch.entries]
    elements = sum(real(p).numel() for p in launch.params)
    passes = len(launch.program.phases)
    kind = str(launch.params[0].dtype).removeprefix("torch.") + (", sparse gradients" if launch.sparse else "")
    device = launch.params[0].device
    compiled = f"{bytes_per_element(launch):g} bytes an element in {counted(passes, 'pass')} over memory"
    lines = [
        f"{launch.backend}: {launch.reason}",
        f"    {counted(len(names), 'tensor')}, {counted(elements, 'element')} of {kind} on {device}",
        f"    {'torch operations, tensor by tensor' if launch.backend == 'eager' else compiled}",
        f"    {first_names(names)}",
    ]
    if held := other_formats(launch):
        lines.append(f"    {held}")
    name, modifiers = launch.program.name, launch.program.modifiers
    if modifiers:
        lines.insert(1, f"    {name}, modified by {', '.join(modifiers)}, in this order")
    elif several:
        lines.insert(1, f"    {name}")
    if source:
        code = bounded((launch.source or "").splitlines(), CODE)
        lines += ["", str(launch.program), *(["", *code] if code else []), ""]
    return "\n".join(lines)


def other_formats(launch: Launch) -> str:
    """What is held in another dtype than the parameters, in words; of slots whose dtype the rule does not say."""
    found: dict[str, list[str]] = {}
    for slot, tensors in zip(launch.program.slots, launch.slots, strict=True):
        dtype = tensors[0].dtype
        if dtype != launch.params[0].dtype and slot.dtype is None:
            name = str(slot.format) if dtype in CODES else str(dtype).removeprefix("torch.")
            found.setdefault(name, []).append(slot.name)
    beside = [f"{BESIDE[slot.beside]} beside each weight" for slot in launch.program.slots if slot.beside]
    return "; ".join([*beside, *(f"{', '.join(names)} in {dtype}" for dtype, names in found.items())])


BESIDE = {"8bit": "8 bits", "16bit": "16 bits", "float32": "float32"}


def first_names(names: Sequence[str], limit: int = 6) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown}, ... and {len(names) - limit} more"


def bytes_per_element(launch: Launch) -> float:
    """Bytes read and written for each element of the parameter."""
    dtypes = [launch.params[0].dtype, launch.grad_dtype, *(slot[0].dtype for slot in launch.slots)]
    sizes = [dtype.itemsize / (2 if dtype.is_complex else 1) for dtype in dtypes]
    for k in launch.coded:
        sizes[k + FIRST_SLOT] += 2 / CODES[dtypes[k + FIRST_SLOT]].block
    wide = computed_in(launch.params[0].dtype)
    sizes += [(getattr(torch, name) if name else wide).itemsize for name in launch.program.temporary_dtypes]
    return launch.program.bytes_per_element(dict(enumerate(sizes)))
