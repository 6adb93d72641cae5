"""`steprule convert`: the state of an optimizer from our file to torch's and back."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import steprule
from steprule.algorithms import create, names
from steprule.checkpoint import CheckpointError, read_checkpoint, write_parts
from steprule.kernels.coding import in_full, is_code
from steprule.kernels.masters import joined
from steprule.messages.spelling import nearest
from steprule.messages.words import counted
from steprule.replacing import replacing
from steprule.rule.master import MASTER
from steprule.saving.saved import VERSION, Parameter, highest_count
from steprule.saving.state_dict import StateDict

from .console import fail, say
from .inspection import name_of
from .state_files import StateFile, StoredTensor, open_state

__all__ = ["convert"]

_OURS = {"schedules": {}, "l1": 0.0, "clip_norm": None, "seed": 0, "modifiers": (), "backend": "auto"}
_OURS |= {"state_dtype": None, "rounding": "nearest", "master": None}
"""What groups of torch do not have, and the values of which nothing is lost."""


class Form(str, Enum):
    """What to make."""

    checkpoint = "checkpoint"
    torch = "torch"
    torch_by_name = "torch-by-name"


def convert(
    source: Annotated[Path, typer.Argument(help="A checkpoint of steprule, or a file of torch.save.")],
    target: Annotated[Path, typer.Argument(help="The file to write; it must not exist.")],
    to: Annotated[
        Form,
        typer.Option(
            help="A checkpoint of steprule; torch's state_dict, whose parameters are known by position; the same with "
            "their names."
        ),
    ],
    names_file: Annotated[
        Path | None, typer.Option("--names", metavar="FILE", help="Names of the parameters in order, one in each line.")
    ] = None,
    algorithm: Annotated[
        str | None, typer.Option(metavar="CLASS", help="The optimizer's class, where the file does not say it.")
    ] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Take the model and other values along.")] = False,
    key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Which of several states in a file of torch.save.")
    ] = None,
) -> None:
    """Turn the optimizer state in a file into a checkpoint of steprule or into torch's state_dict."""
    try:
        if target.exists():
            fail(f"{target} exists; name another file, or remove it")
        file = open_state(source, key)
        content = _content(file)
        left = [] if whole else [part for part in ("model", "extra", "random") if content[part]]
        weights: Mapping[str, Any] = content["model"] or {}
        content |= dict.fromkeys(left)
        state = _named(content["optimizer"], names_file)
        if to is Form.checkpoint:
            write_parts(
                target,
                {**content, "optimizer": _with_own_part(state, file, algorithm), "extra": content["extra"] or {}},
            )
        else:
            state, lost = _plain(state, to is Form.torch_by_name, file.saved.parameters, weights)
            left += lost
            with replacing(target) as opened:
                torch.save(_together({**content, "optimizer": state}) if whole else state, opened)
    except (CheckpointError, TypeError, ValueError) as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}")
    say(f"{target}: {_algorithm(file, algorithm)}, {counted(len(file.saved.parameters), 'parameter')}")
    if left:
        say(f"left out: {', '.join(left)}")


def _together(content: dict[str, Any]) -> dict[str, Any]:
    """One dictionary, as people save them with torch."""
    extra = content["extra"] or {}
    parts = {part: content[part] for part in ("optimizer", "model", "random") if content[part]}
    if clashing := parts.keys() & extra:
        raise ValueError(f"an extra value is called {min(clashing)!r}, as a part of what is written is")
    return {**parts, **extra}


def _content(file: StateFile) -> dict[str, Any]:
    """The parts of a file with their tensors; of ours, after the checksum was compared."""
    if file.version is not None:
        return read_checkpoint(file.path)
    return {
        "optimizer": _in_memory(file.state),
        "model": _in_memory(file.model) or None,
        "random": None,
        "extra": _in_memory(file.others),
    }


def _in_memory(value: Any) -> Any:
    if isinstance(value, StoredTensor):
        return value.tensor()
    if isinstance(value, dict):
        return {key: _in_memory(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_in_memory(item) for item in value)
    return value


def _named(state: StateDict, path: Path | None) -> StateDict:
    """The state with names from a file."""
    if path is None:
        return state
    lines = iter(path.read_text().splitlines())
    groups = [{**group, "param_names": list(islice(lines, len(group["params"])))} for group in state["param_groups"]]
    short = any(len(group["param_names"]) < len(group["params"]) for group in groups)
    if short or next(lines, None) is not None:
        wanted = sum(len(group["params"]) for group in groups)
        raise ValueError(f"{path} must have {wanted} names, one for each parameter")
    return {**state, "param_groups": groups}


def _algorithm(file: StateFile, given: str | None) -> str:
    known = file.saved.algorithm
    if given is not None and known not in (None, given):
        raise ValueError(f"{file.path} is of {known}, not of {given}")
    if given is not None and known is None:
        _refuse_class(file, given)
    found = known or given or file.guessed
    if found is None:
        raise ValueError(f"{file.path} does not say of which optimizer it is; say it with --algorithm")
    return found


def _refuse_class(file: StateFile, given: str) -> None:
    """Refuse a class that there is not, or whose state this can't be.

    Raises:
        ValueError: saying the nearest, or what the file holds.
    """
    if given not in names():
        near = nearest(given, names()) or f"; there are {', '.join(names())}"
        raise ValueError(f"steprule has no algorithm {given!r}{near}")
    trial = create(given, [torch.empty(1, 1, requires_grad=True)])
    others = {key for name in names() for key in inspect.signature(getattr(steprule, name)).parameters}
    saved = {key for group in file.saved.groups for key in group} - {"params"}
    if strange := sorted((saved & others) - trial.defaults.keys()):
        raise ValueError(f"{file.path} is not of {given}, which has no {', '.join(strange)}")


def _with_own_part(state: StateDict, file: StateFile, algorithm: str | None) -> StateDict:
    """The state with steprule's own part."""
    if "steprule" in state:
        _algorithm(file, algorithm)
        return state
    step = max(highest_count(state["state"].values()), file.saved.followed or 0)
    known = {"version": VERSION, "algorithm": _algorithm(file, algorithm), "step": step, "parameters": None}
    return {**state, "steprule": known}


def _plain(
    state: StateDict, by_name: bool, parameters: Sequence[Parameter], weights: Mapping[str, Any]
) -> tuple[StateDict, list[str]]:
    """What torch's optimizer itself would give, and what is lost on the way."""
    if by_name and not all("param_names" in group for group in state["param_groups"]):
        raise ValueError("the source has no names; give them with --names")
    dropped = [*_OURS, *([] if by_name else ["param_names"])]
    groups = [{key: v for key, v in group.items() if key not in dropped} for group in state["param_groups"]]
    lost = [key for key, none in _OURS.items() if any(group.get(key, none) != none for group in state["param_groups"])]
    ids = [key for group in groups for key in group["params"]]
    known = dict(zip(ids, parameters, strict=True))
    numbers = {k: _in_full(entry, known[k], weights) if k in known else entry for k, entry in state["state"].items()}
    corrections = [e[MASTER].dtype for e in numbers.values() if isinstance(e.get(MASTER), torch.Tensor)]
    if not all(dtype.is_floating_point for dtype in corrections):
        lost.append(f"the weights that {MASTER} corrects, which are not in the file")
        numbers = {k: {n: v for n, v in entry.items() if n != MASTER} for k, entry in numbers.items()}
    return {"state": numbers, "param_groups": groups}, lost


def _in_full(entry: dict[str, Any], parameter: Parameter, weights: Mapping[str, Any]) -> dict[str, Any]:
    weight, held = weights.get(name_of(parameter)), entry.get(MASTER)
    if isinstance(weight, torch.Tensor) and isinstance(held, torch.Tensor) and weight.shape == held.shape:
        entry = {**entry, MASTER: joined(weight, held)}
    coded = {k: parameter.as_it_lay(v) for k, v in entry.items() if isinstance(v, torch.Tensor) and is_code(k, v.dtype)}
    return in_full({**entry, **coded})
