"""What ``state_dtype`` may be, and which slots it means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steprule.messages.spelling import nearest
from steprule.rule.master import Master
from steprule.rule.slot import Slot

from .bfloat16 import BFLOAT16
from .correction import Correction
from .correction_8bit import CORRECTION_8BIT
from .correction_16bit import CORRECTION_16BIT
from .eight_bits import EIGHT_BITS
from .float32 import FLOAT32
from .format import Format

__all__ = ["CORRECTIONS", "FORMATS", "MASTERS", "check_state_dtype", "formats_of", "master_for"]

FORMATS: dict[str, Format] = {f.name: f for f in (FLOAT32, BFLOAT16, EIGHT_BITS)}
"""The formats, by the names that ``state_dtype`` gives them."""
CORRECTIONS: dict[str, Correction] = {c.name: c for c in (CORRECTION_8BIT, CORRECTION_16BIT)}
"""What may stand beside a bfloat16, by the names that ``master`` gives them; a float32 may too."""
MASTERS = (None, *CORRECTIONS, FLOAT32.name)
"""What ``master`` may be."""


def master_for(asked: str | None, dtype: str) -> Master | None:
    """What stands beside a parameter; nothing where it is a float32 or more itself.

    Args:
        asked: what its group says.
        dtype: that of the parameter.
    """
    if asked is None or dtype not in ("bfloat16", "float16"):
        return None
    if dtype == "float16":
        return Master(asked, FLOAT32.name, half=True) if asked == FLOAT32.name else None
    return Master(asked, CORRECTIONS[asked].dtype if asked in CORRECTIONS else FLOAT32.name)


def check_state_dtype(value: Any) -> None:
    """Refuse what is no ``state_dtype``.

    Raises:
        ValueError: naming it, and what there is.
    """
    named = value if isinstance(value, Mapping) else {None: value}
    for slot, name in named.items():
        if name is None or (isinstance(name, str) and name in FORMATS):
            continue
        meant = nearest(str(name).removeprefix("torch."), FORMATS)
        of = f" for the slot {slot!r}" if isinstance(value, Mapping) else ""
        kinds = f"None, {', '.join(map(repr, FORMATS))}" + ("" if of else " or a mapping from slots to these")
        raise ValueError(f"Invalid state_dtype: {name!r:.60}{of}; it is {kinds}{meant}")


def formats_of(value: Any, slots: Mapping[str, Slot], rule: str) -> dict[str, str]:
    """The format that is asked for of each slot; those that stay as they are have none.

    One format for all means the arrays like the parameter whose dtype the rule does not declare; what has one number
    for each row, column, channel or parameter is small, and stays.

    Args:
        value: what the group says.
        slots: those of its rule.
        rule: what the rule is called.

    Raises:
        ValueError: a slot is named that there is not, or one that can't be held so.
    """
    if not value:
        return {}
    if isinstance(value, Mapping):
        asked = {name: found for name, found in value.items() if found is not None}
        for name in value:
            if name not in slots or slots[name].kind == "scalar":
                arrays = ", ".join(n for n, slot in slots.items() if slot.kind == "array") or "none"
                raise ValueError(f"state_dtype names the slot {name!r}, but {rule} has {arrays}")
    else:
        small = ("row", "column", "channel", "scalar")
        asked = {n: value for n, slot in slots.items() if slot.kind not in small and slot.dtype is None}
    for name, found in asked.items():
        refuse(name, slots[name], found, rule, isinstance(value, Mapping))
    return asked


def refuse(name: str, slot: Slot, found: str, rule: str, named: bool) -> None:
    """Refuse to hold a slot in a format that is not for it.

    Raises:
        ValueError: naming the slot, with the reason.
    """
    if slot.kind != "array":
        kind = "a matrix of another shape" if slot.kind == "table" else f"one number for each {slot.kind}"
        raise ValueError(
            f"state_dtype={found!r} is for arrays like the parameter, but {name} of {rule} has {kind}; leave it out"
        )
    if slot.exact is not None and found != "float32":
        hint = "leave it out" if named else "give a mapping from the other slots to formats, or none"
        raise ValueError(f"state_dtype={found!r} can't hold {name} of {rule}: {slot.exact}; {hint}")
