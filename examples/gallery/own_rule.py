"""A rule of one's own, in the valley of Rosenbrock's function: steps along the sign of what three means agree on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from panels import COLOURS, keep, panels
from torch import Tensor

import steprule
from steprule import Optimizer, Range
from steprule.rule import array, lerp, sqrt, square, where
from steprule.testing import check_rule


class Agreeing(Optimizer):
    """Adam that goes on only where a fast and a slow mean of the gradients agree in sign.

    Args:
        params: the parameters.
        lr: the rate, the size of a step in the parameter's own unit.
        betas: of the fast mean, the slow mean and the mean of squares.
        eps: added to the denominator.
    """

    ranges: ClassVar = {"lr": Range(least=0), "betas": (Range(least=0, below=1),) * 3, "eps": Range(least=0)}
    slots: ClassVar = {"fast": array(), "slow": array(), "squares": array(positive=True)}

    def __init__(
        self, params: Any, lr: Any = 1e-3, betas: Any = (0.5, 0.95, 0.999), eps: float = 1e-8, **options: Any
    ) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps), **options)

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        fast, slow, squares = h.betas
        s.fast = lerp(s.fast, g, 1 - fast)
        s.slow = lerp(s.slow, g, 1 - slow)
        s.squares = lerp(s.squares, square(g), 1 - squares)
        mean = s.slow / (1 - slow**s.step)
        size = sqrt(s.squares / (1 - squares**s.step)) + h.eps
        return p - h.lr * where(s.fast * s.slow > 0, mean / size, 0.0)


def rosenbrock(at: Tensor) -> Tensor:
    """The valley, whose lowest point is (1, 1)."""
    x, y = at
    return (1 - x).square() + 100 * (y - x.square()).square()


def main(steps: int = 800, picture: Path | None = None) -> dict[str, float]:
    """Check the rule, run it beside Adam and draw both ways; the function's value where each ends."""
    check_rule(Agreeing, lr=1e-3, shapes=[(7,), (3, 5)])
    figure, (ways, values) = panels(2, ["the ways", "the value"])
    across = torch.linspace(-1.7, 1.5, 200)
    up = torch.linspace(-0.5, 2.2, 200)
    ways.contour(across, up, rosenbrock(torch.stack(torch.meshgrid(across, up, indexing="xy"))).log(), 14, cmap="Greys")
    found = {}
    for colour, kind in zip(COLOURS, (Agreeing, steprule.Adam), strict=False):
        at = torch.tensor([-1.5, 1.8], dtype=torch.float64, requires_grad=True)
        optimizer = kind([at], lr=0.03)
        places, seen = [at.tolist()], []
        for _ in range(steps):
            optimizer.zero_grad()
            value = rosenbrock(at)
            value.backward()
            optimizer.step()
            places.append(at.tolist())
            seen.append(value.item())
        ways.plot(*zip(*places, strict=True), color=colour, label=kind.__name__)
        values.semilogy(seen, color=colour)
        found[kind.__name__] = seen[-1]
    ways.scatter([1], [1], marker="*", color=COLOURS[1], zorder=3)
    ways.legend(frameon=False, loc="lower left")
    values.set_xlabel("step")
    keep(figure, picture)
    return found


if __name__ == "__main__":
    print(main(picture=Path("own_rule.png")))
