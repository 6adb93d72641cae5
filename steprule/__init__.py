"""Optimizers for PyTorch, written once as a short update rule and compiled into one pass over memory."""

from torch.optim import lr_scheduler, swa_utils

from . import report, schedules
from .algorithms.adadelta import Adadelta
from .algorithms.adafactor import Adafactor
from .algorithms.adagrad import Adagrad
from .algorithms.adam import Adam
from .algorithms.adamax import Adamax
from .algorithms.adamw import AdamW
from .algorithms.asgd import ASGD
from .algorithms.lamb import Lamb
from .algorithms.lbfgs import LBFGS
from .algorithms.lion import Lion
from .algorithms.muon import Muon
from .algorithms.nadam import NAdam
from .algorithms.radam import RAdam
from .algorithms.rmsprop import RMSprop
from .algorithms.rprop import Rprop
from .algorithms.sgd import SGD
from .algorithms.sparse_adam import SparseAdam
from .checkpoint import CheckpointError, load, save
from .layers import layer_decay
from .optimizer import Optimizer
from .overrides import exclusive, groups, scale
from .selectors import biases, by_ndim, embeddings, norms

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
    "Lamb",
    "Lion",
    "Muon",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SparseAdam",
    "biases",
    "by_ndim",
    "embeddings",
    "exclusive",
    "groups",
    "layer_decay",
    "load",
    "lr_scheduler",
    "norms",
    "report",
    "save",
    "scale",
    "schedules",
    "swa_utils",
]
