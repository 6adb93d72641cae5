"""Checkpoints: an optimizer, a model and values of your own in one safe file."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from steprule.distributed.files import Company, company
from steprule.distributed.placing import is_spread, placed, placed_like, whole
from steprule.saving import saved as saved_state
from steprule.saving.encoding import Encoder, as_complex, decode
from steprule.saving.fit import LoadResult
from steprule.saving.groups import Hyperparameters, refuse_choice
from steprule.saving.header import CheckpointError, read_header
from steprule.saving.loading import Loading, prepare, restoring
from steprule.saving.saved import highest_count
from steprule.saving.state_dict import StateDict, describe
from steprule.saving.tensor_file import check_tensors, file_order, mapped_tensors, opened, read_tensors, write_tensors
from steprule.saving.weights import fitting_weights, restoring_model
from steprule.stepping.state_dicts import install, plan_load

from .names import Rename, part_for, refuse_unknown, unwrapped
from .optimizer import Optimizer
from .replacing import replacing

__all__ = ["CheckpointError", "Loaded", "load", "save"]


PARTS = ("optimizer", "model", "random", "extra")


class Loaded(dict[str, Any]):
    """The extra values of a checkpoint, and what did not fit (``strict=False``).

    Attributes:
        optimizer: what of the optimizer's state did not fit.
        model: what of the model did not fit.
        frozen: the names of the parameters that were frozen, by :meth:`Optimizer.freeze`, and are now.
    """

    def __init__(self, extra: Mapping[str, Any]) -> None:
        super().__init__(extra)
        self.optimizer = LoadResult([], [], [])
        self.model = LoadResult([], [], [])
        self.frozen: list[str] = []


def save(
    path: str | os.PathLike[str],
    optimizer: torch.optim.Optimizer | None,
    model: nn.Module | None = None,
    *,
    keep: int | None = None,
    rng: bool = False,
    **extra: Any,
) -> None:
    """Saves an optimizer, a model and anything else in one file, which is there whole or not at all.

    The file is in the safetensors format, with a checksum; ``docs/checkpoints.md`` describes it. Memory in
    use grows by the largest tensor at most.

    Where several processes hold the parameters together (``fully_shard``, tensor parallel), all of them call it, and
    the first one writes the same file as one process would; :func:`load` reads it on any number of them.

    Args:
        path: the file; the folder must exist.
        optimizer: of steprule or of torch.optim; None saves the rest alone.
        model: its ``state_dict()`` is saved.
        keep: number of files to keep: ``path``, ``path.1`` (the one before), ...; None keeps one.
        rng: also save the state of torch's random number generators, which :func:`load` then restores.
        **extra: tensors, numbers, strings, None, and lists, tuples and dictionaries of these.

    Raises:
        TypeError: there is something that a checkpoint cannot hold; the message says where. Or the second or third
            argument is no optimizer or no module.
        RuntimeError: of several processes that hold the parameters, not all have called it, or another one failed.
        ValueError: ``keep`` is not a positive number.
        OSError: the file cannot be written. In each case the old file is as it was.

    Example:
        >>> import tempfile, torch, steprule
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1, momentum=0.9)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(folder + "/run.safetensors", optimizer, model, epoch=7)
        ...     load(folder + "/run.safetensors", optimizer, model)
        {'epoch': 7}
    """
    if keep is not None and (isinstance(keep, bool) or not isinstance(keep, int) or keep < 1):
        raise ValueError(f"keep must be a whole number from 1 on, got {keep!r}")
    _refuse_strangers("save", path, optimizer, model)
    parts = {
        "optimizer": None if optimizer is None else _described_state(optimizer),
        "model": None if model is None else dict(model.state_dict()),
        "random": _random_state() if rng else None,
        "extra": extra,
    }
    together = company(_tensors_of(optimizer, model))
    if together is None:
        write_parts(Path(path), parts, keep or 1)
    else:
        _save_together(Path(path), parts, keep or 1, together)


def _tensors_of(optimizer: torch.optim.Optimizer | None, model: nn.Module | None) -> list[object]:
    """The parameters of which a checkpoint is made, in the same order on every process."""
    own = [] if optimizer is None else [p for group in optimizer.param_groups for p in group["params"]]
    return [*own, *(model.parameters() if isinstance(model, nn.Module) else ())]


def _save_together(path: Path, parts: Mapping[str, Any], keep: int, together: Company) -> None:
    """Writes the same file from what several processes hold."""
    together.attend("save")
    with together.one_for_all():
        encoder = Encoder(_tensor_name(parts["optimizer"]))
        document = {part: encoder.encode(parts[part], (part,)) for part in PARTS}

    def write_file(whole: Callable[[torch.Tensor], torch.Tensor]) -> None:
        with replacing(path, keep) as file:
            write_tensors(file, document, encoder.tensors, whole)

    together.write(file_order(encoder.tensors), write_file)


def _refuse_strangers(how: str, path: object, optimizer: object, model: object) -> None:
    how = f"write {how}(path, optimizer, model)"
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be the name of a file, got {type(path).__name__}; {how}")
    if optimizer is not None and not hasattr(optimizer, "param_groups"):
        raise TypeError(f"optimizer must be an optimizer or None, got {type(optimizer).__name__}; {how}")
    if isinstance(optimizer, torch.optim.Optimizer) and not isinstance(optimizer, Optimizer):
        name = type(optimizer).__name__
        if type(optimizer).state_dict is not torch.optim.Optimizer.state_dict:
            raise TypeError(
                f"optimizer is a {name}, which keeps its state in a way of its own: give the optimizer that it wraps, "
                f"or None and {name}.state_dict() among the other values"
            )
    if model is not None and not hasattr(model, "state_dict"):
        raise TypeError(f"model must be a module or None, got {type(model).__name__}; {how}")


def write_parts(path: Path, parts: Mapping[str, Any], keep: int = 1) -> None:
    """Writes what :func:`read_checkpoint` reads: ``optimizer``, ``model``, ``random`` and ``extra``."""
    encoder = Encoder(_tensor_name(parts["optimizer"]))
    document = {part: encoder.encode(parts[part], (part,)) for part in PARTS}
    with replacing(path, keep) as file:
        write_tensors(file, document, encoder.tensors)


def _described_state(optimizer: torch.optim.Optimizer) -> StateDict:
    """The optimizer's ``state_dict()``, with steprule's part where it is one of torch's."""
    state = optimizer.state_dict()
    if "steprule" in state:
        return state
    groups, entries = optimizer.param_groups, optimizer.state
    return {**state, "steprule": describe(groups, entries, type(optimizer).__name__, highest_count(entries.values()))}


def _tensor_name(state: StateDict | None) -> Any:
    """How tensors are called in the file: ``optimizer.fc.weight.exp_avg``, ``model.fc.weight``."""
    groups = state["param_groups"] if state else []
    names = {
        str(index): name
        for group in groups
        for index, name in zip(group["params"], group.get("param_names", ()), strict=False)
    }

    def name(path: tuple[Any, ...]) -> str:
        if path[:2] == ("optimizer", "state"):
            path = ("optimizer", names.get(path[2], path[2]), *path[3:])
        return ".".join(path)

    return name


def _random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _check_random_state(state: Mapping[str, Any] | None) -> None:
    if state is None:
        return
    try:
        torch.Generator().set_state(state["cpu"])
    except RuntimeError as error:
        raise ValueError(f"damaged: its random state: {error}") from error
    here = [tensor.shape for tensor in _random_state()["cuda"]]
    whole = all(isinstance(tensor, torch.Tensor) and tensor.dtype == torch.uint8 for tensor in state["cuda"])
    if (
        not isinstance(state["cuda"], list)
        or not whole
        or any(tensor.shape != shape for tensor, shape in zip(state["cuda"], here, strict=False))
    ):
        raise ValueError("damaged: its random state of CUDA")


def _restore_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    for device, saved in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(saved, device)


def _warn_of_other_devices(state: Mapping[str, Any] | None) -> None:
    devices = torch.cuda.device_count()
    if state and state["cuda"] and len(state["cuda"]) != devices:
        what = f"{len(state['cuda'])} CUDA devices was saved, and there are {devices}"
        warnings.warn(f"the random state of {what} here", stacklevel=3)


def load(
    path: str | os.PathLike[str],
    optimizer: torch.optim.Optimizer | None,
    model: nn.Module | None = None,
    strict: bool = True,
    *,
    hyperparameters: Hyperparameters = "saved",
    rename: Rename | None = None,
    resize: Collection[str] = (),
) -> Loaded:
    """Loads what :func:`save` saved, after everything in the file was checked; on any error nothing has changed.

    Args:
        path: the file.
        optimizer: of the class that was saved; None leaves the optimizer out.
        model: the model; None leaves it out.
        strict: whether everything must fit; otherwise what does not fit stays as it is.
        hyperparameters: ``"saved"`` takes learning rates and the like from the file, ``"current"`` leaves them.
        rename: saved name -> name here: a mapping of whole names or their leading parts, or a function.
        resize: names of parameters whose sizes may differ: the common part is loaded, the rest stays.

    Returns:
        The extra values, a dictionary; what did not fit with ``strict=False`` is its attributes ``optimizer``
        and ``model``.

    Raises:
        CheckpointError: the file is cut short, damaged, of an unknown version or not a checkpoint, or does not
            fit: another algorithm, other parameters, other shapes. All that does not fit is named.
        OSError: the file cannot be read.
    """
    refuse_choice(hyperparameters)
    _refuse_strangers("load", path, optimizer, model)
    path = Path(path)
    together = company(_tensors_of(optimizer, model))
    if together is not None:
        together.attend("load")
    with nullcontext() if together is None else together.one_for_all():
        content = read_checkpoint(path, together)
    loaded = Loaded(content["extra"])
    with _naming(path):
        _refuse_absent(content, optimizer=optimizer, model=model)
        names = _saved_names(content["optimizer"])
    own = () if optimizer is None else [name for g in optimizer.param_groups for name in g.get("param_names", ())]
    weights = {} if model is None else model.state_dict()
    _refuse_unused(rename, resize, [*names, *(content["model"] or ())], [*own, *weights])
    problems: list[Exception] = []
    if model is not None:
        with _gathering(problems):
            own_weights = weights
            weights, loaded.model = fitting_weights(model, content["model"], strict, rename, resize)
            weights = {name: _spread_as(own_weights[name], value) for name, value in weights.items()}
    if optimizer is not None:
        with _gathering(problems):
            new = _fitting_state(
                optimizer,
                content["optimizer"],
                strict=strict,
                hyperparameters=hyperparameters,
                rename=part_for(rename, names),
                resize=[name for name in resize if unwrapped(name) in {unwrapped(known) for known in own}],
                given=lambda tensor: together is None and id(tensor) not in content.shared,
            )
            loaded.optimizer, loaded.frozen = new.result, [name for name, _ in new.frozen]
    with nullcontext() if together is None else together.one_for_all():
        if problems:
            raise CheckpointError(f"{path}: " + "\n".join(map(_said, problems))) from problems[0]
    for line in () if optimizer is None else new.warnings:
        warnings.warn(line, stacklevel=2)
    _warn_of_other_devices(content["random"])
    with _all_or_nothing(path, optimizer, model):
        if model is not None:
            model.load_state_dict(weights, strict=strict)
        if optimizer is not None:
            install(optimizer, new) if isinstance(optimizer, Optimizer) else new.install(optimizer)
        if content["random"] is not None:
            _restore_random_state(content["random"])
    return loaded


def _fitting_state(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any], **how: Any) -> Loading:
    """What an optimizer becomes when it loads a state; nothing is changed."""
    if isinstance(optimizer, Optimizer):
        return plan_load(optimizer, saved, **how)
    return prepare(optimizer, saved, placed=placed, **how)


def _spread_as(own: object, value: Any) -> Any:
    """A weight spread over processes as the model has it."""
    if not (is_spread(own) or is_spread(value)):
        return value
    return placed_like(value, own) if is_spread(own) else whole(value)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors about what is in a file, with the name of the file."""
    try:
        yield
    except RecursionError as error:
        raise CheckpointError(f"{path}: nested too deep to be read") from error
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error.args[0]}") from error


@contextmanager
def _all_or_nothing(path: Path, optimizer: torch.optim.Optimizer | None, model: nn.Module | None) -> Iterator[None]:
    """Everything in the block happens, or nothing: whatever raises, everything is put back."""
    random = _random_state()
    try:
        with restoring_model(model), restoring(optimizer):
            yield
    except BaseException as error:
        _restore_random_state(random)
        if not isinstance(error, Exception):
            raise
        raise CheckpointError(f"{path}: nothing was loaded: {type(error).__name__}: {error}") from error


@contextmanager
def _gathering(problems: list[Exception]) -> Iterator[None]:
    """Collects errors, those of people's hooks too, so that the next thing is checked all the same."""
    try:
        yield
    except Exception as error:
        problems.append(error)


def _said(error: Exception) -> str:
    ours = isinstance(error, (KeyError, TypeError, ValueError)) and error.args
    return str(error.args[0]) if ours else f"{type(error).__name__}: {error}"


def _refuse_absent(content: Mapping[str, Any], **wanted: Any) -> None:
    for part, receiver in wanted.items():
        if receiver is not None and content[part] is None:
            raise ValueError(f"holds no {part}; it was saved without one")


def _saved_names(state: StateDict | None) -> list[str]:
    return [] if state is None else saved_state.read_saved(state).names or []


def _refuse_unused(
    rename: Rename | None, resize: Collection[str], saved: Collection[str], own: Collection[str]
) -> None:
    """What ``rename`` and ``resize`` name must be in the optimizer or in the model."""
    if isinstance(resize, str):
        raise TypeError(f"resize= must be a collection of names, not the string {resize!r}")
    refuse_unknown("resize=", resize, own, "what it is loaded into")
    if isinstance(rename, Mapping):
        parts = [unwrapped(name).split(".") for name in saved]
        heads = {".".join(part[:n]) for part in parts for n in range(1, len(part) + 1)}
        refuse_unknown("rename=", rename, heads, "what is loaded")


class Content(dict[str, Any]):
    """The parts of a checkpoint.

    Attributes:
        shared: the identities of the tensors that stand in it more than once.
    """

    shared: frozenset[int] = frozenset()


def read_checkpoint(path: Path, together: Company | None = None) -> Content:
    """Everything in a checkpoint, checked: ``optimizer``, ``model``, ``random`` and ``extra``.

    Where several processes read it, the first of them compares the checksum, and each reads what it takes.

    Raises:
        CheckpointError: the file is cut short, damaged, of an unknown version or not a checkpoint.
        OSError: the file cannot be read.
    """
    with opened(path) as file:
        header = read_header(file, path)
        if together is None:
            tensors = read_tensors(file, header, path)
        else:
            tensors = mapped_tensors(header, path)
            if together.is_first:
                check_tensors(file, header, path)
    found: dict[tuple[str, bool], list[torch.Tensor]] = {}

    def find(name: str, is_complex: bool) -> torch.Tensor:
        known = found.setdefault((name, is_complex), [])
        known.append(known[0] if known else as_complex(tensors[name]) if is_complex else tensors[name])
        return known[0]

    with _naming(path):
        content = Content({part: decode(header.document.get(part), find) for part in PARTS})
        for part, value in content.items():
            if not isinstance(value, dict) and (value is not None or part == "extra"):
                raise ValueError(f"damaged: its {part} is a {type(value).__name__}")
        _check_random_state(content["random"])
    times = Counter(name for (name, _), known in found.items() for _ in known)
    content.shared = frozenset(id(known[0]) for (name, _), known in found.items() if times[name] > 1)
    return content
