"""Docstrings that stand with the function that does what a method is for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["documented"]

F = TypeVar("F", bound=Callable[..., Any])


def documented(function: Callable[..., Any]) -> Callable[[F], F]:
    """Give a method the docstring of the function that it calls."""

    def take(method: F) -> F:
        method.__doc__ = function.__doc__
        return method

    return take
