"""Hyperparameters as functions of the step.

A shape such as ``cosine(9000)`` is a factor that starts at 1 (``warmup`` ends there), so a schedule is a
number times a shape, and shapes follow each other with :meth:`Schedule.then`::

    lr = 3e-4 * warmup(1000).then(cosine(9000))

A schedule is called with the number of steps already taken: 0 for the first step, as with a torch scheduler
that is stepped after the optimizer. Where ``torch.optim.lr_scheduler`` has a scheduler of the same name, the
values are the same. A trainer that insists on a scheduler of torch's gets :class:`Native`, which does nothing.
"""

from .description import from_dict
from .native import Native
from .schedule import Schedule, arithmetic, constant, function, join, plateaus, repeat
from .scheduled import Scheduled, report, separate, write
from .shapes import (
    cosine,
    exponential,
    inverse_sqrt,
    linear,
    milestones,
    one_cycle,
    plateau,
    polynomial,
    warmup,
    warmup_stable_decay,
)
from .timetable import Timetable
from .tracker import Plateau

__all__ = [
    "Native",
    "Plateau",
    "Schedule",
    "Scheduled",
    "Timetable",
    "arithmetic",
    "constant",
    "cosine",
    "exponential",
    "from_dict",
    "function",
    "inverse_sqrt",
    "join",
    "linear",
    "milestones",
    "one_cycle",
    "plateau",
    "plateaus",
    "polynomial",
    "repeat",
    "report",
    "separate",
    "warmup",
    "warmup_stable_decay",
    "write",
]
