"""One file for one algorithm: hyperparameters, docstring, rule. The rooms are families; all classes are here too."""

from .adaptive.adadelta import Adadelta
from .adaptive.adafactor import Adafactor
from .adaptive.adagrad import Adagrad
from .adaptive.adam import Adam
from .adaptive.adamax import Adamax
from .adaptive.adamw import AdamW
from .adaptive.lamb import Lamb
from .adaptive.nadam import NAdam
from .adaptive.radam import RAdam
from .adaptive.rmsprop import RMSprop
from .adaptive.sparse_adam import SparseAdam
from .matrix.adamuon import AdaMuon
from .matrix.apollo import Apollo
from .matrix.dion import Dion
from .matrix.galore import GaLore
from .matrix.kron import Kron
from .matrix.muon import Muon
from .matrix.normuon import NorMuon
from .matrix.scion import Scion
from .matrix.shampoo import Shampoo
from .matrix.soap import SOAP
from .momentum.asgd import ASGD
from .momentum.sgd import SGD
from .quasi_newton.lbfgs import LBFGS
from .registry import create as create
from .registry import names as names
from .sign.lion import Lion
from .sign.rprop import Rprop

__all__ = [
    "ASGD",
    "LBFGS",
    "SGD",
    "SOAP",
    "AdaMuon",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Apollo",
    "Dion",
    "GaLore",
    "Kron",
    "Lamb",
    "Lion",
    "Muon",
    "NAdam",
    "NorMuon",
    "RAdam",
    "RMSprop",
    "Rprop",
    "Scion",
    "Shampoo",
    "SparseAdam",
]
