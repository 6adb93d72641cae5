"""Optimizers for PyTorch, written once as a short update rule and compiled into one pass over memory."""

from .algorithms.adamw import AdamW
from .algorithms.sgd import SGD
from .optimizer import Optimizer

__all__ = ["SGD", "AdamW", "Optimizer"]
