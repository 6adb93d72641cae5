"""One file for one algorithm: hyperparameters, docstring, rule."""

from .registry import create, names

__all__ = ["create", "names"]
