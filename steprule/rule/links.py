"""What every optimizer may do around its rule, as modifiers without a name: unscale, measure, clip, turn, penalize."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from .expression import Expression, Level
from .functions import minimum, norm, sign, where
from .modifier import Modifier
from .program import GRAD

__all__ = ["Await", "Clip", "MeasureGradient", "MeasureUpdate", "Negate", "Penalize", "Settled", "TakenOver", "Unscale"]


class Link(Modifier):
    """A modifier that reads the group's hyperparameters as they are called."""

    def __init__(self) -> None:
        self.name = ""


class Unscale(Link):
    """Divide by the input ``grad_scale``, and leave the gradient so."""

    def gradient(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        g = s._left[GRAD] = g * (1 / Expression("input", detail="grad_scale", level=Level.REDUCED))
        return g


class MeasureGradient(Link):
    """The gradient's norm as it comes."""

    def gradient(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        s._measured["grad_norm"] = norm(g)
        return g


class Clip(Link):
    """The norm of all gradients together, and all of them scaled down where it exceeds ``clip_norm``.

    Args:
        applied: whether they are scaled; False where the rule does it itself.
    """

    def __init__(self, applied: bool = True) -> None:
        super().__init__()
        self.applied = applied

    def gradient(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        total = s._measured["total_norm"] = norm(g, scope="all")
        return g * minimum(1.0, h.clip_norm / (total + 1e-6)) if self.applied and h.clip_norm else g


class Await(Link):
    """The norm of all gradients together is known before anything is written, so that a step can still be left."""

    def gradient(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        total = s._measured.get("total_norm")
        if total is None:
            total = s._measured["total_norm"] = norm(g, scope="all")
        s._measured["awaited"] = total
        return where(total < math.inf, g, g)


class Negate(Link):
    """``maximize``: go up along the gradient."""

    def gradient(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        return -g if h.maximize else g


class Penalize(Link):
    """``l1``: the gradient of the penalty ``l1 * |p|``."""

    def gradient(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        return g + h.l1 * sign(p) if h.l1 else g


class Settled(Link):
    """Keys of the group that decide which rule and which modifiers there are.

    Args:
        names: which.
    """

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = names

    def gradient(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        h._settle(self.names)
        return g


class TakenOver(Link):
    """Options that stand among the rule's own hyperparameters are the rule's to apply, and it must.

    Args:
        names: which.
    """

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = names

    def weights(self, p: Any, new: Any, s: Any, h: Any) -> Any:
        h._refuse_ignored(self.names)
        return new


class MeasureUpdate(Link):
    """The parameter's norm before the update, or that of what the update adds to it.

    Args:
        names: of ``param_norm`` and ``update_norm``.
    """

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = names

    def weights(self, p: Any, new: Any, s: Any, h: Any) -> Any:
        s._measured.update((name, norm(p if name == "param_norm" else new - p)) for name in self.names)
        return new
