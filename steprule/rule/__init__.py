"""The language that update rules are written in."""

from .drawing import normal, uniform
from .expression import Expression, RuleError
from .functions import *  # noqa: F403
from .functions import __all__ as _functions
from .program import Program
from .slot import array, channel, column, fraction, rank, row, scalar, table
from .trace import trace

__all__ = [
    "Expression",
    "Program",
    "RuleError",
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
