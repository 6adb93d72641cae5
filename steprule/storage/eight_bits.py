"""8 bits: a code for each element, and a scale in bfloat16 for each 256 of them.

A code z stands for ``z * |z|`` times the square of the scale, so that small numbers of a block have more codes than
large ones, and zero is zero. What is never negative has codes up to 255, others from -127 to 127 (-128 where they are
rounded at random). A running mean of squares that is not zero never gets the code 0: what is divided by its root would
be divided by zero, or nearly so. Only products, sums, exact roots and quotients, and the largest of absolute values are
needed, none of which depends on an order.
"""

from __future__ import annotations

from typing import Any

from steprule.rule.functions import abs, floor, round, sqrt, where

from .format import Codes, Format, formula

__all__ = ["BLOCK", "EIGHT_BITS"]

BLOCK = 256
"""How many elements share a scale: few enough that one large number costs few others their bits, and a hundredth of the
codes' memory."""
SIGNED, POSITIVE = 127, 255
"""The largest codes."""
UPWARD = 1 + 2.0**-8 + 2.0**-15
"""By which a scale is raised before it is rounded to bfloat16, so that it is never less than it was: a number rounded
at random must not be cut off."""
LEAST = 4096


def decoded(code: Any, scale: Any) -> Any:
    root = code * scale
    return root * abs(root)


def inverted(scale: Any) -> Any:
    """Zero for a block of zeros, and for one with NaN or infinities, which its scale shows."""
    return where(scale > 0, 1 / scale, 0.0)


def bounded(code: Any, largest: int) -> Any:
    """A code, the largest one for NaN: in a block that has any, all numbers are NaN or infinite."""
    return where(code <= largest, code, largest)


def signed_root(x: Any) -> Any:
    root = sqrt(abs(x))
    return where(x < 0, -root, root)


def never_zero(root: Any, code: Any) -> Any:
    return bounded(where((code < 1) & (root > 0), 1, code), POSITIVE)


EIGHT_BITS = Format(
    "8bit",
    1 + 2 / BLOCK,
    None,
    noisy=True,
    signed=Codes(
        "int8",
        BLOCK,
        decode=formula(decoded, 2),
        root=formula(signed_root, 1),
        scale=formula(lambda largest: largest * (1 / SIGNED), 1),
        inverse=formula(inverted, 1),
        encode=formula(lambda root, inverse: bounded(round(root * inverse), SIGNED), 2),
        at_random=formula(lambda root, inverse, bits: bounded(floor(root * inverse + bits * 2.0**-16), SIGNED), 3),
    ),
    positive=Codes(
        "uint8",
        BLOCK,
        decode=formula(decoded, 2),
        root=formula(sqrt, 1),
        scale=formula(lambda largest: largest * (UPWARD / POSITIVE), 1),
        inverse=formula(inverted, 1),
        encode=formula(lambda root, inverse: never_zero(root, round(root * inverse)), 2),
        at_random=formula(lambda root, inverse, bits: never_zero(root, floor(root * inverse + bits * 2.0**-16)), 3),
    ),
    least=LEAST,
)
