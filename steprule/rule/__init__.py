"""The language that update rules are written in."""

from typing import TypeAlias

from .drawing import normal, uniform
from .expression import Expression, RuleError
from .functions import *  # noqa: F403
from .functions import __all__ as _functions
from .program import Program
from .slot import array, channel, column, fraction, rank, row, scalar, table
from .symbols import Hyper, State
from .trace import trace

Array: TypeAlias = Expression
"""What a rule's ``p`` and ``g`` are, as type checkers and editors see them: one number for each element."""

Scalar: TypeAlias = Expression
"""What ``h.lr`` and ``s.step`` are: a number."""

__all__ = [
    "Array",
    "Expression",
    "Hyper",
    "Program",
    "RuleError",
    "Scalar",
    "State",
    "array",
    "channel",
    "column",
    "fraction",
    "rank",
    "row",
    "scalar",
    "table",
    "trace",
    "normal",
    "uniform",
    *_functions,
]
