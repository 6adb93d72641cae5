"""One file for one algorithm: hyperparameters, docstring, rule. The rooms are families; all classes are here too."""

from .adaptive.adabelief import AdaBelief
from .adaptive.adabound import AdaBound
from .adaptive.adadelta import Adadelta
from .adaptive.adafactor import Adafactor
from .adaptive.adagc import AdaGC
from .adaptive.adagrad import Adagrad
from .adaptive.adam import Adam
from .adaptive.adam_mini import AdamMini
from .adaptive.adamax import Adamax
from .adaptive.adamp import AdamP
from .adaptive.adamw import AdamW
from .adaptive.adan import Adan
from .adaptive.ademamix import AdEMAMix
from .adaptive.adopt import ADOPT
from .adaptive.came import CAME
from .adaptive.lamb import Lamb
from .adaptive.laprop import LaProp
from .adaptive.madgrad import MADGRAD
from .adaptive.mars import MARS
from .adaptive.nadam import NAdam
from .adaptive.novograd import NovoGrad
from .adaptive.qhadam import QHAdam
from .adaptive.radam import RAdam
from .adaptive.ranger import Ranger
from .adaptive.rmsprop import RMSprop
from .adaptive.rmsprop_tf import RMSpropTF
from .adaptive.simplified_ademamix import SimplifiedAdEMAMix
from .adaptive.sophia import Sophia
from .adaptive.sparse_adam import SparseAdam
from .adaptive.stable_adamw import StableAdamW
from .adaptive.stable_spam import StableSPAM
from .adaptive.yogi import Yogi
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
from .momentum.lars import LARS
from .momentum.sgd import SGD
from .momentum.sgdp import SGDP
from .parameter_free.dadapt_adam import DAdaptAdam
from .parameter_free.dadapt_lion import DAdaptLion
from .parameter_free.dadapt_sgd import DAdaptSGD
from .parameter_free.prodigy import Prodigy
from .quasi_newton.lbfgs import LBFGS
from .registry import create as create
from .registry import names as names
from .schedule_free.adamw import ScheduleFreeAdamW
from .schedule_free.radam import ScheduleFreeRAdam
from .schedule_free.sgd import ScheduleFreeSGD
from .sign.lion import Lion
from .sign.rprop import Rprop
from .sign.signum import Signum
from .sign.tiger import Tiger

__all__ = [
    "ADOPT",
    "ASGD",
    "CAME",
    "LARS",
    "LBFGS",
    "MADGRAD",
    "MARS",
    "SGD",
    "SGDP",
    "SOAP",
    "AdEMAMix",
    "AdaBelief",
    "AdaBound",
    "AdaGC",
    "AdaMuon",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamMini",
    "AdamP",
    "AdamW",
    "Adamax",
    "Adan",
    "Apollo",
    "DAdaptAdam",
    "DAdaptLion",
    "DAdaptSGD",
    "Dion",
    "GaLore",
    "Kron",
    "LaProp",
    "Lamb",
    "Lion",
    "Muon",
    "NAdam",
    "NorMuon",
    "NovoGrad",
    "Prodigy",
    "QHAdam",
    "RAdam",
    "RMSprop",
    "RMSpropTF",
    "Ranger",
    "Rprop",
    "ScheduleFreeAdamW",
    "ScheduleFreeRAdam",
    "ScheduleFreeSGD",
    "Scion",
    "Shampoo",
    "Signum",
    "SimplifiedAdEMAMix",
    "Sophia",
    "SparseAdam",
    "StableAdamW",
    "StableSPAM",
    "Tiger",
    "Yogi",
]
