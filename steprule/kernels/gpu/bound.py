"""Kernels that are bound to their arguments once, since Triton looks at all of them anew at every launch."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["Bound"]

WHOLE = 2**31
"""From here on Triton takes a whole number for one of 64 bits."""


class Bound:
    """A kernel with the constants of its launches, on one device.

    Triton compiles a kernel for the kinds of its arguments. Those of a launch are always the same: tables that torch's
    allocator lays at multiples of 16 bytes at least, numbers by value, counts below 2**31; a flag may be there or not.
    So what was compiled for the first launch is launched from then on, which takes the host a third of the time.

    Args:
        function: what ``triton.jit`` gave, or the interpreter's.
        constants: the ``tl.constexpr`` arguments, which are the function's last ones, in their order.
        options: how it is compiled.
    """

    def __init__(self, function: Any, constants: dict[str, Any], options: dict[str, Any]) -> None:
        self.function, self.options = function, {**constants, **options}
        self.last = tuple(constants.values())
        self.known: dict[bool, tuple[Any, int, Any]] = {}
        """With and without the flag: what was compiled, the programs of its last grid, and what launches that."""

    def __call__(self, programs: int, arguments: tuple[Any, ...], stream: int | None, flagged: bool) -> None:
        """Launch so many programs.

        Args:
            programs: of the grid.
            arguments: all but the constants.
            stream: the number of the current stream; None if Triton has to ask for it.
            flagged: whether the argument that may be None is there.
        """
        known = self.known.get(flagged)
        if known is not None:
            kernel, count, launch = known
            if count != programs:
                launch = kernel[programs, 1, 1]
                self.known[flagged] = kernel, programs, launch
            launch(*arguments, *self.last, stream=stream)
            return
        kernel = self.function[programs,](*arguments, **self.options)
        if kernel is not None and all(map(as_any, arguments)):  # the interpreter gives None
            self.known[flagged] = kernel, programs, kernel[programs, 1, 1]


def as_any(argument: Any) -> bool:
    """Whether Triton takes all others of its type for the same kind."""
    if isinstance(argument, torch.Tensor):
        return argument.data_ptr() % 16 == 0
    return not isinstance(argument, int) or argument < WHOLE
