from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from steprule.grouping.hyperparameters import Range
from steprule.rule import array, lerp, where
from steprule.rule.modifier import Modifier
from steprule.rule.slot import Slot

__all__ = ["Lookahead"]


class Lookahead(Modifier):
    r"""Slow weights that go a part of the way after the fast ones, which then begin anew from there.

    .. math::
        \phi_t = \phi_{t-1} + \alpha (\theta_t - \phi_{t-1}), \qquad \theta_t \leftarrow \phi_t
        \qquad\text{in every } k\text{-th step}

    `Lookahead Optimizer: k steps forward, 1 step back <https://arxiv.org/abs/1907.08610>`_, Zhang et al., 2019.
    Around RAdam it is Ranger. ``with optimizer.evaluating():`` brings the slow weights into the model.

    Choose it to make a rule less sensitive to its rate.

    Args:
        k (int): after how many steps, by the parameter's own count; usually 5 to 10.
        alpha (float): the part of the way, without unit; usually 0.5 to 0.8.

    Example:
        >>> import torch
        >>> from steprule import SGD
        >>> from steprule.modifiers import Lookahead
        >>> weight = torch.zeros(1, requires_grad=True)
        >>> optimizer = SGD([weight], lr=1.0, modifiers=[Lookahead(k=2, alpha=0.25)])
        >>> for _ in range(3):
        ...     weight.grad = torch.ones(1)
        ...     optimizer.step()
        ...     print(weight.item())
        -1.0
        -0.5
        -1.5
    """

    defaults: ClassVar[Mapping[str, Any]] = {"k": 5, "alpha": 0.5}
    ranges: ClassVar[Mapping[str, Any]] = {
        "k": Range(least=1, usual="5 to 10"),
        "alpha": Range(above=0, most=1, usual="0.5 to 0.8"),
    }
    slots: ClassVar[Mapping[str, Slot]] = {"slow": array("parameter")}
    excludes: ClassVar[frozenset[str]] = frozenset({"Lookahead"})

    def validate(self, h: Mapping[str, Any]) -> None:
        if h["k"] != int(h["k"]):
            raise ValueError(f"{self.name}_k must be a whole number of steps, got {h['k']}")

    def weights(self, p: Any, new: Any, s: Any, h: Any) -> Any:
        now, synchronized = s.step % h.k == 0, lerp(s.slow, new, h.alpha)
        s.slow = where(now, synchronized, s.slow)
        return where(now, synchronized, new)

    def evaluation(self, p: Any, s: Any, h: Any) -> Any:
        return s.slow
