"""How a slot is held in memory: one file for one format, said once and used by all kernels."""

from .asking import CORRECTIONS, FORMATS, MASTERS, check_state_dtype, formats_of, master_for
from .correction import Correction
from .format import Codes, Format, Formula

__all__ = [
    "CORRECTIONS",
    "FORMATS",
    "MASTERS",
    "Codes",
    "Correction",
    "Format",
    "Formula",
    "check_state_dtype",
    "formats_of",
    "master_for",
]
