"""How a slot is held in memory: one file for one format, said once and used by all kernels."""

from .asking import FORMATS, check_state_dtype, formats_of
from .format import Format

__all__ = ["FORMATS", "Format", "check_state_dtype", "formats_of"]
