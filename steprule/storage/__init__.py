"""How a slot is held in memory: one file for one format, said once and used by all kernels."""

from .asking import FORMATS, check_state_dtype, formats_of
from .format import Codes, Format, Formula

__all__ = ["FORMATS", "Codes", "Format", "Formula", "check_state_dtype", "formats_of"]
