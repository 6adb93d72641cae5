"""How a slot is held in memory: one file for one format, said once and used by all kernels."""

from .asking import CORRECTIONS, FORMATS, MASTERS, check_state_dtype, formats_of, master_for
from .correction import Correction
from .float16 import FLOAT16_AT_RANDOM
from .format import Codes, Format, Formula

__all__ = [
    "CORRECTIONS",
    "FLOAT16_AT_RANDOM",
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
