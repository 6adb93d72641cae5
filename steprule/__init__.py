"""Optimizers for PyTorch, written once as a short update rule and compiled into one pass over memory."""

from torch.optim import lr_scheduler, swa_utils

from steprule.algorithms import *  # noqa: F403
from steprule.algorithms import __all__ as _algorithms
from steprule.algorithms import create
from steprule.grouping.hyperparameters import Choice, Range
from steprule.grouping.layers import layer_decay
from steprule.grouping.overrides import exclusive, groups, scale
from steprule.grouping.selectors import biases, by_ndim, embeddings, hidden_matrices, norms

from . import algorithms, modifiers, report, schedules
from .checkpoint import CheckpointError, load, save
from .optimizer import Optimizer
from .report import memory
from .tuning.rate_test import find_lr

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "Choice",
    "Optimizer",
    "Range",
    "algorithms",
    "biases",
    "by_ndim",
    "create",
    "embeddings",
    "exclusive",
    "find_lr",
    "groups",
    "hidden_matrices",
    "layer_decay",
    "load",
    "lr_scheduler",
    "memory",
    "modifiers",
    "norms",
    "report",
    "save",
    "scale",
    "schedules",
    "swa_utils",
    *_algorithms,
]
