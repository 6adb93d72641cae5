"""bfloat16: the upper half of a float32, which keeps its range and 8 of its 24 significant bits."""

from .format import Format

__all__ = ["BFLOAT16"]

BFLOAT16 = Format("bfloat16", 2, "bfloat16", noisy=True)
