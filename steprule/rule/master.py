"""What stands beside a parameter of 16 bits: the bits that its own lack of a float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .drawing import bits_for
from .expression import Expression, Level
from .functions import where
from .slot import Slot

if TYPE_CHECKING:
    from .symbols import Hyper, State

__all__ = ["MASTER", "PARAMETER", "Master"]

MASTER = "master"
"""The slot that holds it."""
PARAMETER = "the parameter"
"""What tells the rounding of weights from that of slots, which are words."""


@dataclass(frozen=True)
class Master:
    """How the bits are held that a parameter lacks.

    Attributes:
        kind: what the group asks for: ``"8bit"``, ``"16bit"`` or ``"float32"``.
        dtype: that of the slot.
        half: whether the parameter is of float16, not of bfloat16.
    """

    kind: str
    dtype: str
    half: bool = False

    @property
    def slot(self) -> Slot:
        return Slot("array", "parameter" if self.kind == "float32" else 0.0, self.dtype, MASTER, beside=self.kind)

    def joined(self, p: Expression, s: State) -> Expression:
        """The parameter as the rule sees it. What a float32 says counts where the parameter is its rounding: who has
        written the parameter meant that."""
        held: Expression = getattr(s, MASTER)
        if self.kind == "float32":
            return where(self.rounded(held) == p, held, p)
        return Expression("joined", (p, held), self.kind)

    def stored(self, x: Expression) -> Expression:
        """A value as parameter and slot together will hold it: exactly, but for the 8 bits that one lacks."""
        if self.kind != "8bit" or x.op == "joined":
            return x
        return Expression(
            "joined", (Expression("upper", (x,), self.kind), Expression("lower", (x,), self.kind)), self.kind
        )

    def rounded(self, x: Expression) -> Expression:
        """What a parameter is beside a float32: of bfloat16 the same as beside 16 bits."""
        return Expression("stored", (x,)) if self.half else Expression("upper", (x,), "16bit")

    def parted(self, new: Expression, s: State, h: Hyper) -> Expression:
        """Give the slot its part of the parameter's new value; the parameter's."""
        p = Expression("param", level=Level.ARRAY)
        whole = new if new.level is Level.ARRAY else where(p == p, new, new)
        if self.kind == "float32":
            setattr(s, MASTER, whole)
            return whole if self.half else self.rounded(whole)
        given = (whole, bits_for(PARAMETER)) if h.rounding == "stochastic" else (whole,)
        setattr(s, MASTER, Expression("lower", given, self.kind))
        return Expression("upper", given, self.kind)
