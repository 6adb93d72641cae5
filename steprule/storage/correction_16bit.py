"""16 bits beside a bfloat16: all that it lacks of a float32."""

from .correction import correction

__all__ = ["CORRECTION_16BIT"]

CORRECTION_16BIT = correction("16bit", 16)
