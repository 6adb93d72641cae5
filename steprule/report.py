"""Pictures of an optimizer's schedules and of what was measured while it trained, the log that they are drawn from, and
the memory that a model will take.

``optimizer.track(...)`` computes norms in the step, ``optimizer.tracked()`` gives them as a dictionary, and one line
a step hands that to a logger, or to :class:`JSONLines`::

    log = report.JSONLines("run.jsonl")
    ...
    log.write({"loss": loss, **optimizer.tracked()}, step=step)

Pictures are :class:`matplotlib.figure.Figure`, to be shown in a notebook or saved with ``figure.savefig(...)``.
"""

from __future__ import annotations

import functools
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from steprule.display.style import COLOURS, INK, STYLE
from steprule.schedules import Schedule
from steprule.stepping.memory_ahead import Memory

from .optimizer import Optimizer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["JSONLines", "memory", "plot_history", "plot_schedules", "read_json_lines"]

Record: TypeAlias = Mapping[str, Any]
Line: TypeAlias = "tuple[Sequence[float] | npt.NDArray[Any], Sequence[float] | npt.NDArray[Any]]"

POINTS = 1000  # at most this many are drawn of a schedule
LABEL = 44  # characters of a label at most


def memory(model: nn.Module, algorithm: type[Optimizer], *, ranks: int = 1, **options: Any) -> Memory:
    """The memory that a model takes with an optimizer: weights, gradients and state, by group.

    Args:
        model: the module; on the meta device it takes none itself.
        algorithm: a class of steprule's optimizers, such as ``steprule.AdamW``.
        ranks: over how many processes ``fully_shard`` will cut every parameter; the bytes are then those of the
            process that holds most.
        **options: hyperparameters and options of the optimizer, such as ``state_dtype`` and ``overrides``.

    Returns:
        Bytes; ``print()`` shows a table. See :meth:`steprule.Optimizer.memory`.

    Raises:
        TypeError: ``algorithm`` is no such class.
        ValueError, RuntimeError: as :meth:`steprule.Optimizer.memory`.

    Example:
        >>> import torch, steprule
        >>> with torch.device("meta"):
        ...     model = torch.nn.Linear(1000, 500)
        >>> print(steprule.memory(model, steprule.AdamW))
        AdamW: 8.01 MB
           parameters     weights  gradients  state    total
        ────────────────────────────────────────────────────
        0  {weight,bias}     2 MB       2 MB   4 MB  8.01 MB
        state: step 8 B, exp_avg 2 MB, exp_avg_sq 2 MB
        gradients with step_in_backward: 2 MB at most
    """
    if not isinstance(algorithm, type) or not issubclass(algorithm, Optimizer):
        raise TypeError(f"algorithm must be a class of steprule's optimizers, such as AdamW, got {algorithm!r}")
    make: Any = algorithm
    found: Memory = make(model, **options).memory(ranks=ranks)
    return found


class JSONLines:
    """A log with one JSON object a line: the step, and numbers by name.

    Every line is written at once, so that a killed run loses none; half a line that an earlier run left at the end is
    cut off. Numbers that are not finite are the strings ``"nan"``, ``"inf"`` and ``"-inf"``, for JSON has none.

    Args:
        path: the file, which is added to if it is there.

    Raises:
        OSError: the file can't be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with JSONLines(folder + "/run.jsonl") as log:
        ...         log.write({"loss": 0.5, "grad_norm/weight": 2.0}, step=1)
        ...     read_json_lines(folder + "/run.jsonl")
        [{'step': 1, 'loss': 0.5, 'grad_norm/weight': 2.0}]
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.exists():
            with open(self.path, "r+b") as whole:
                content = whole.read()
                whole.truncate(content.rfind(b"\n") + 1)
        self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115

    def write(self, values: Record, step: int) -> None:
        """Adds a line.

        Args:
            values: numbers, or tensors with one number, by name.
            step: the step they are of.

        Raises:
            TypeError: one of them is no number; nothing was written.
        """
        self.file.write(json.dumps({"step": step, **{name: loggable(name, x) for name, x in values.items()}}) + "\n")
        self.file.flush()

    def close(self) -> None:
        """Closes the file."""
        self.file.close()

    def __enter__(self) -> JSONLines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def loggable(name: str, value: Any) -> float | int | str:
    """A number as JSON can hold it."""
    if isinstance(value, int):
        return value
    try:
        number = float(value.detach() if isinstance(value, torch.Tensor) else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a number, got {value!r:.80}") from error
    return number if math.isfinite(number) else str(number)


def read_json_lines(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """What :class:`JSONLines` wrote.

    Where a run was resumed from an earlier step, what the first run wrote from there on is left out.

    Args:
        path: the file.

    Returns:
        A dictionary for each step, in ascending order.

    Raises:
        ValueError: a line is not one of these; half a line at the end is left out.
        OSError: the file can't be read.
    """
    records: list[dict[str, Any]] = []
    for at, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            break
        try:
            record = json.loads(line)
            found = {name: float(value) if isinstance(value, str) else value for name, value in record.items()}
            step = found["step"]
            while records and records[-1]["step"] >= step:
                records.pop()
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"line {at} of {path} is not a record of numbers with a step: {line:.80}") from error
        records.append(found)
    return records


def plot_schedules(optimizer: Optimizer, steps: int | None = None) -> Figure:
    """Every hyperparameter that follows a schedule, over the steps, with a line for each group.

    Args:
        optimizer: of which the schedules are; the present step is marked.
        steps: the last step to draw; where the last schedule ends, if left out.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: no hyperparameter follows a schedule; ``steps`` is not positive, or is left out where no schedule
            ends.
    """
    from steprule.display.table import globs  # rich takes a while to load

    groups = optimizer.param_groups
    scheduled: list[dict[Any, Schedule]] = [dict(group.get("schedules") or {}) for group in groups]
    paths = list(dict.fromkeys(path for own in scheduled for path in own))
    if not paths:
        raise ValueError("no hyperparameter follows a schedule: give one, such as lr=0.1 * schedules.cosine(1000)")
    last = steps if steps is not None else max(s.steps or 0 for own in scheduled for s in own.values())
    if last <= 0:
        raise ValueError("steps must be positive, and given where no schedule has an end")
    at = np.unique(np.linspace(0, last, min(last + 1, POINTS)).astype(int))
    names = [", ".join(found) for found in globs(groups)]
    with panels(len(paths)) as (figure, all_axes):
        for path, axes in zip(paths, all_axes, strict=True):
            key, index = (path, None) if isinstance(path, str) else path
            lines: dict[str, Line] = {}
            for place, (group, own) in enumerate(zip(groups, scheduled, strict=True)):
                now = group[key] if index is None else group[key][index]
                values = [own[path](int(step)) if path in own else float(now) for step in at]
                lines[f"{place}: {names[place]}"] = (at, values)
            draw_lines(axes, merged_lines(lines))
            axes.set_title(key if index is None else f"{key}[{index}]")
            if 0 < optimizer.steps_taken <= last:
                axes.axvline(optimizer.steps_taken, color=INK, linewidth=0.8, linestyle=":")
    return figure


def merged_lines(lines: Mapping[str, Line]) -> dict[str, Line]:
    """Lines that lie on each other as one."""
    found: dict[tuple[float, ...], list[str]] = {}
    for label, (_, values) in lines.items():
        found.setdefault(tuple(values), []).append(label)
    return {"\n".join(labels): lines[labels[0]] for labels in found.values()}


def plot_history(
    history: str | os.PathLike[str] | Iterable[Record], names: Sequence[str] | None = None, window: int = 1
) -> Figure:
    """What was logged, over the steps: a panel for each kind (``grad_norm``), in it a line for each name.

    Args:
        history: a file of :class:`JSONLines`, or records with ``"step"`` and numbers by name.
        names: the kinds to draw, in this order; all, if left out.
        window: number of records that are averaged; the records themselves are drawn faintly.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there is nothing to draw, one of ``names`` does not occur, or ``window`` is not positive.
    """
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    records = read_json_lines(history) if isinstance(history, (str, os.PathLike)) else list(history)
    kinds: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for record in records:
        for name, value in record.items():
            if name != "step":
                kind, _, label = name.partition("/")
                at, values = kinds.setdefault(kind, {}).setdefault(label, ([], []))
                at.append(record["step"])
                values.append(float(value))
    wanted = list(kinds) if names is None else list(names)
    if not wanted or not set(wanted) <= kinds.keys():
        raise ValueError(
            f"there is no {', '.join(set(wanted) - kinds.keys()) or 'record'} in this history of {len(records)}"
        )
    with panels(len(wanted)) as (figure, all_axes):
        for kind, axes in zip(wanted, all_axes, strict=True):
            found = kinds[kind].items()
            lines: dict[str, Line] = {label: (np.asarray(at), with_gaps(values)) for label, (at, values) in found}
            if highest_to_lowest(lines) > 30:
                axes.set_yscale("log")
            draw_lines(axes, lines, window)
            axes.set_title(kind)
    return figure


def with_gaps(values: Sequence[float]) -> npt.NDArray[Any]:
    """The values with a gap where one is not finite."""
    found = np.asarray(values, float)
    return np.where(np.isfinite(found), found, np.nan)


def highest_to_lowest(lines: Mapping[str, Line]) -> float:
    """How many times the lowest the highest value is; 1 where one is not positive."""
    values = np.concatenate([np.asarray(values, float) for _, values in lines.values()])
    values = values[np.isfinite(values)]
    return float(values.max() / values.min()) if len(values) and values.min() > 0 else 1.0


@contextmanager
def panels(count: int) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure with panels below each other that share their steps, and the style to draw in."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'steprule[demo]'") from error
    with matplotlib.rc_context(STYLE):
        figure = shown_in_notebooks(Figure)(figsize=(9, 0.6 + 2.4 * count), layout="constrained")
        axes = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
        axes[-1].set_xlabel("step")
        yield figure, list(axes)


@functools.cache
def shown_in_notebooks(kind: type[Figure]) -> type[Figure]:
    """Figures that a notebook shows as they are, whether pyplot is in use or not."""

    def as_png(self: Figure) -> bytes:
        content = io.BytesIO()
        self.savefig(content, format="png", dpi=110)
        return content.getvalue()

    return type("Figure", (kind,), {"_repr_png_": as_png, "__module__": kind.__module__})


def draw_lines(axes: Axes, lines: Mapping[str, Line], window: int = 1) -> None:
    """Lines with a legend; of more than there are colours, a fan from the first to the last."""
    import matplotlib

    many = len(lines) > len(COLOURS)
    fan = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(lines)))
    for index, (label, (at, values)) in enumerate(lines.items()):
        colour: Any = fan[index] if many else COLOURS[index]
        shown = short_label(label) if not many or index in (0, len(lines) - 1) else None
        if window > 1:
            axes.plot(at, values, color=colour, linewidth=0.6, alpha=0.3)
        places, means = window_means(np.asarray(at), np.asarray(values, float), window)
        axes.plot(places, means, color=colour, linewidth=0.8 if many else 1.8, label=shown)
    if len(lines) > 1:
        title = f"{len(lines)} lines, first and last" if many else None
        axes.legend(title=title, alignment="left", fontsize=8, title_fontsize=8, handlelength=1, edgecolor="none")


def window_means(
    at: npt.NDArray[Any], values: npt.NDArray[Any], window: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The mean over each window, in its middle."""
    window = min(window, len(values))
    mean = np.ones(window) / window
    return np.convolve(at, mean, mode="valid"), np.convolve(values, mean, mode="valid")


def short_label(label: str) -> str:
    lines = [line if len(line) <= LABEL else f"{line[: LABEL - 1]}…" for line in label.split("\n")]
    return "\n".join([*lines[:2], f"and {len(lines) - 2} more"] if len(lines) > 3 else lines)
