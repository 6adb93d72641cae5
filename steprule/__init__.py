"""Optimizers for PyTorch, written once as a short update rule and compiled into one pass over memory."""

from torch.optim import lr_scheduler, swa_utils

from steprule.algorithms import create
from steprule.algorithms.adadelta import Adadelta
from steprule.algorithms.adafactor import Adafactor
from steprule.algorithms.adagrad import Adagrad
from steprule.algorithms.adam import Adam
from steprule.algorithms.adamax import Adamax
from steprule.algorithms.adamw import AdamW
from steprule.algorithms.asgd import ASGD
from steprule.algorithms.lamb import Lamb
from steprule.algorithms.lbfgs import LBFGS
from steprule.algorithms.lion import Lion
from steprule.algorithms.muon import Muon
from steprule.algorithms.nadam import NAdam
from steprule.algorithms.radam import RAdam
from steprule.algorithms.rmsprop import RMSprop
from steprule.algorithms.rprop import Rprop
from steprule.algorithms.sgd import SGD
from steprule.algorithms.sparse_adam import SparseAdam
from steprule.grouping.hyperparameters import Choice, Range
from steprule.grouping.layers import layer_decay
from steprule.grouping.overrides import exclusive, groups, scale
from steprule.grouping.selectors import biases, by_ndim, embeddings, hidden_matrices, norms

from . import algorithms, modifiers, report, schedules
from .checkpoint import CheckpointError, load, save
from .optimizer import Optimizer

__version__ = "0.1.0"

__all__ = [
    "ASGD",
    "LBFGS",
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "CheckpointError",
    "Choice",
    "Lamb",
    "Lion",
    "Muon",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "Range",
    "Rprop",
    "SparseAdam",
    "algorithms",
    "biases",
    "by_ndim",
    "create",
    "embeddings",
    "exclusive",
    "groups",
    "hidden_matrices",
    "layer_decay",
    "load",
    "lr_scheduler",
    "modifiers",
    "norms",
    "report",
    "save",
    "scale",
    "schedules",
    "swa_utils",
]
