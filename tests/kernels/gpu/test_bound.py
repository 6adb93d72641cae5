"""Kernels that are bound to their arguments: what each launch is given, with a Triton that launches nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from steprule.kernels.gpu.bound import Bound

Launch = tuple[tuple[int, ...], tuple[Any, ...], int | None]


class Kernel:
    """What Triton compiles: launched on a grid, it notes that."""

    def __init__(self, launches: list[Launch]) -> None:
        self.launches = launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments, stream=None: self.launches.append((grid, arguments, stream))


class Function:
    """What ``triton.jit`` gives: the first launch compiles."""

    def __init__(self) -> None:
        self.compiled: list[dict[str, Any]] = []
        self.launches: list[Launch] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Kernel]:
        def launch(*arguments: Any, **options: Any) -> Kernel:
            self.compiled.append(options)
            self.launches.append(((*grid, 1, 1), arguments, None))
            return Kernel(self.launches)

        return launch


def test_each_launch_is_of_as_many_programs_as_it_says() -> None:
    function = Function()
    bound = Bound(function, {"BLOCK": 64}, {"num_warps": 4})
    grids = [5, 5, 3, 3, 5]
    for step, programs in enumerate(grids):
        bound(programs, (step,), 7, False)
    assert [grid for grid, _, _ in function.launches] == [(programs, 1, 1) for programs in grids]
    assert [arguments for _, arguments, _ in function.launches[1:]] == [(step, 64) for step in range(1, 5)]
    assert {stream for _, _, stream in function.launches[1:]} == {7}
    assert function.compiled == [{"BLOCK": 64, "num_warps": 4}]


def test_a_flag_that_is_there_at_times_has_a_kernel_of_its_own() -> None:
    function = Function()
    bound = Bound(function, {}, {})
    for flag in (None, torch.zeros(4), None, torch.zeros(4)):
        bound(2, (flag,), 0, flag is not None)
    assert len(function.compiled) == 2
