"""float32, whatever the parameter is of."""

from .format import Format

__all__ = ["FLOAT32"]

FLOAT32 = Format("float32", 4, "float32")
