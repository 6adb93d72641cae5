"""8 bits beside a bfloat16: a float32 to 16 bits behind the point, in 256 steps of the bfloat16's unit."""

from .correction import correction

__all__ = ["CORRECTION_8BIT"]

CORRECTION_8BIT = correction("8bit", 8)
