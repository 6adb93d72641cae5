"""The dictionary form of an optimizer: torch's own, with names, shapes and dtypes, and what loading it does.

:func:`pack` makes the dictionary. :func:`plan` works out, without changing anything, what an optimizer
becomes when it loads one. They need of it only what every ``torch.optim.Optimizer`` has.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy as copied
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch.nn.parameter import is_lazy

from steprule.names import Rename, match, refuse_unknown, unwrapped
from steprule.schedules import Schedule

from .fit import Fit, Fresh, LoadResult, Misshapen, Slots, is_flat, kinds
from .groups import Group, Hyperparameters, merge, refuse_choice
from .saved import STEPS_TAKEN, VERSION, Saved, as_number, read

__all__ = [
    "Hyperparameters",
    "LoadResult",
    "Misshapen",
    "Plan",
    "StateDict",
    "describe",
    "highest_count",
    "pack",
    "plan",
    "prepare",
]

StateDict: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What an optimizer becomes: :meth:`install` it, and it has loaded.

    Attributes:
        state: the new ``optimizer.state``.
        groups: the new ``optimizer.param_groups``.
        step: number of steps taken: what was saved, otherwise the highest count in the state and schedules.
        result: what did not fit (only with ``strict=False``).
        schedules: the schedules that stay, each with what its plateaus saw in the saved run.
        replaced: one line for each saved schedule that another one of this optimizer replaces.
    """

    state: defaultdict[Any, Any]
    groups: list[Group]
    step: int
    result: LoadResult
    schedules: list[tuple[Schedule, Mapping[str, Any]]]
    replaced: list[str]

    def install(self, optimizer: torch.optim.Optimizer) -> None:
        """Makes the optimizer what was planned, and runs its hooks for after loading."""
        for schedule, saved in self.schedules:
            schedule.load_state(saved)
        optimizer.__setstate__({"state": self.state, "param_groups": self.groups})
        for hook in optimizer._optimizer_load_state_dict_post_hooks.values():
            hook(optimizer)


def pack(groups: Sequence[Group], state: Mapping[Any, Any], *, algorithm: str, step: int) -> StateDict:
    """The dictionary form, which ``torch.optim`` loads too.

    Tensors that own their memory are the optimizer's, as in torch (``copy.deepcopy`` makes them a snapshot);
    views and tensors of a single number are copies.

    Args:
        groups: ``optimizer.param_groups``.
        state: ``optimizer.state``.
        algorithm: the optimizer's class name.
        step: number of steps the optimizer has taken.

    Returns:
        ``{"state": {index: {slot: value}}, "param_groups": [...], "steprule": {"version", "algorithm",
        "step", "parameters"}}``, where ``parameters`` gives for each index the shape and dtype of the
        parameter and the shape of each slot.

    Example:
        >>> parameter = torch.zeros(2, 3, requires_grad=True)
        >>> optimizer = torch.optim.SGD([("fc.weight", parameter)], lr=0.1)
        >>> packed = pack(optimizer.param_groups, optimizer.state, algorithm="SGD", step=0)
        >>> packed["param_groups"][0]["param_names"], packed["steprule"]["parameters"]
        (['fc.weight'], [{'shape': [2, 3], 'dtype': 'float32', 'slots': {}}])
    """
    index: dict[int, int] = {}
    for param in params_of(groups):
        index.setdefault(id(param), len(index))
    # the state of a parameter that somebody has taken out of its group belongs to nothing
    held = [(key, entry) for key, entry in state.items() if id(key) in index or not isinstance(key, torch.Tensor)]
    ordered = sorted(held, key=lambda item: index.get(id(item[0]), len(index)))
    return {
        "state": {index.get(id(key), key): _own(entry) for key, entry in ordered},
        "param_groups": [_packed_group(group, index, step) for group in groups],
        "steprule": describe(groups, state, algorithm, step),
    }


def describe(groups: Sequence[Group], state: Mapping[Any, Any], algorithm: str, step: int) -> dict[str, Any]:
    """What the dictionary has beyond torch's form: all that is needed to know that a state fits."""
    params = dict.fromkeys(params_of(groups))
    lazy = any(map(is_lazy, params))  # modules that have seen no input know no shapes
    return {
        "version": VERSION,
        "algorithm": algorithm,
        "step": step,
        "parameters": None if lazy else [_described(param, state.get(param) or {}) for param in params],
    }


def params_of(groups: Iterable[Group]) -> Iterator[torch.Tensor]:
    """The parameters of all groups, in order."""
    return (param for group in groups for param in group["params"])


def _described(param: torch.Tensor, entry: Mapping[str, Any]) -> dict[str, Any]:
    slots = {slot: list(v.shape) if isinstance(v, torch.Tensor) else None for slot, v in entry.items()}
    return {"shape": list(param.shape), "dtype": str(param.dtype).removeprefix("torch."), "slots": slots}


def _packed_group(group: Group, index: Mapping[int, int], step: int) -> Group:
    packed = {key: _own(value) for key, value in group.items() if key not in ("params", "schedules")}
    if group.get("schedules"):
        # torch.distributed.checkpoint keeps of a dictionary only state and groups
        packed["schedules"] = group["schedules"].to_dict() | {STEPS_TAKEN: step}
    return packed | {"params": [index[id(param)] for param in group["params"]]}


def _own(value: Any) -> Any:
    """The value in new containers, and tensors with memory of their own."""
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided:
            return value
        whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
        return value if whole and value.ndim else value.detach().clone()
    if isinstance(value, dict):
        return {key: _own(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_own(item) for item in value)
    return value


def plan(
    groups: Sequence[Group],
    state: Mapping[Any, Any],
    saved: Mapping[str, Any],
    *,
    algorithm: str,
    strict: bool = True,
    hyperparameters: Hyperparameters = "saved",
    rename: Rename | None = None,
    resize: Collection[str] = (),
    step: int = 0,
    check: Callable[[Group], None] | None = None,
    slots: Callable[[Group, torch.Tensor], Slots] | None = None,
    fresh: Fresh | None = None,
    copy: bool = True,
) -> Plan:
    """What an optimizer with these groups and this state becomes when it loads ``saved``; nothing is changed.

    Parameters are matched by name where both sides have names, otherwise by position.

    Args:
        groups: ``optimizer.param_groups``.
        state: ``optimizer.state``.
        saved: a dictionary from :func:`pack` or from any ``torch.optim.Optimizer``.
        algorithm: the optimizer's class name.
        strict: whether everything must fit; otherwise what does not fit keeps its present state.
        hyperparameters: ``"saved"``: from the saved group that each parameter was in, where all parameters
            of a group agree on the value; ``"current"``: as they are.
        rename: saved name -> name here, see :func:`steprule.names.match`.
        resize: names of parameters whose saved state may have other sizes: the common part is taken, the
            rest begins as new state does.
        step: number of steps this optimizer has taken, for a dictionary that does not say.
        check: refuses hyperparameters that are out of range.
        slots: the slots that a parameter of a group has, where the optimizer knows them.
        fresh: the value with which a slot of a parameter in a group begins; zeros where left out.
        copy: False gives the saved tensors away instead of copying them.

    Raises:
        ValueError: the state is of another algorithm or version, does not fit (every problem is named), or
            its hyperparameters are not clear for the groups here.
        TypeError, KeyError: ``saved`` is not a state dictionary.
    """
    refuse_choice(hyperparameters)
    source = read(saved)
    if source.algorithm not in (None, algorithm):
        raise ValueError(f"the saved state is of {source.algorithm}, and this is {algorithm}")
    names = _names_of(groups)
    places = _places(groups, names, source, rename)
    resized = _resized(resize, names)
    merged = merge(groups, places, source, hyperparameters, checked=check is not None)
    steps = source.step
    if steps is None:
        default = step if source.followed is None else source.followed
        steps = max(highest_count((parameter.entry for parameter in source.parameters), default), source.followed or 0)
    for i, group in enumerate(merged.groups):
        _check_group(i, group, check)
    owners = [i for i, group in enumerate(groups) for _ in group["params"]]
    known = None
    if slots is not None:
        known = [slots(merged.groups[i], p) for i, p in zip(owners, params_of(groups), strict=True)]
    together = None if known is None else {name: slot for own in known for name, slot in own.items()}
    _refuse_another(source, algorithm, together)

    labels = names or [f"parameter {i}" for i in range(len(places))]
    result = _unmatched(labels, places, source)
    matched = [(param, source.parameters[place].entry) for param, place in _placed(groups, places)]
    _refuse_reordered(matched, places, source, algorithm)
    fit = partial(
        Fit,
        kinds=kinds(matched, together),
        numbers=sum(p.numel() * (2 if p.is_complex() else 1) for p in params_of(groups)),
        fresh=fresh,
        copy=copy,
    )
    peers = _slot_sets(source)
    new_state: defaultdict[Any, Any] = defaultdict(dict, copied(source.loose))
    for i, (param, owner, label, place) in enumerate(zip(params_of(groups), owners, labels, places, strict=True)):
        entry = None
        if place is not None:
            of, group = source.parameters[place], merged.groups[owner]
            own = None if known is None else {**(together or {}), **known[i]}
            needed = () if known is None or hyperparameters == "current" else known[i]
            fitted = fit(param, group, label, of, peers[of.group], slots=own, needed=needed, resize=label in resized)
            entry = fitted.state(result)
        entry = state.get(param) if entry is None else entry
        if entry:
            new_state[param] = entry
    if strict and any(result):
        raise ValueError(f"the saved state does not fit this {algorithm}:\n{result}")
    return Plan(new_state, merged.groups, steps, result, merged.schedules, merged.replaced)


def _check_group(i: int, group: Group, check: Callable[[Group], None] | None) -> None:
    try:
        if check is not None:
            check(group)
    except (RuntimeError, TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"group {i} as it was saved: {error}") from error


def _placed(groups: Sequence[Group], places: Sequence[int | None]) -> Iterator[tuple[torch.Tensor, int]]:
    return ((p, place) for p, place in zip(params_of(groups), places, strict=True) if place is not None)


def _unmatched(labels: Sequence[str], places: Sequence[int | None], source: Saved) -> LoadResult:
    missing = [label for label, place in zip(labels, places, strict=True) if place is None]
    taken = set(places)
    return LoadResult(missing, [p.label for i, p in enumerate(source.parameters) if i not in taken], [])


def _refuse_reordered(
    matched: Iterable[tuple[torch.Tensor, Mapping[str, Any]]],
    places: Sequence[int | None],
    source: Saved,
    algorithm: str,
) -> None:
    if any(is_flat(entry) for _, entry in matched) and list(places) != list(range(len(source.parameters))):
        raise ValueError(f"the state of {algorithm} is for all parameters in their order: load it into the same ones")


def highest_count(entries: Iterable[Any], default: int = 0) -> int:
    """The number of updates that the parameter with the most has had, of all these states of parameters."""
    counts = (as_number(entry.get("step")) for entry in entries if isinstance(entry, Mapping))
    return max((int(found) for found in counts if found is not None and math.isfinite(found)), default=default)


def prepare(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any], **options: Any) -> Plan:
    """:func:`plan` for an optimizer, after its hooks for before loading have run; nothing is changed.

    Args:
        optimizer: the optimizer.
        saved: what to load.
        **options: of :func:`plan`.
    """
    saved = dict(saved) if isinstance(saved, Mapping) else saved
    for hook in optimizer._optimizer_load_state_dict_pre_hooks.values():
        changed = hook(optimizer, saved)
        saved = saved if changed is None else changed
    return plan(optimizer.param_groups, optimizer.state, saved, algorithm=type(optimizer).__name__, **options)


def _refuse_another(source: Saved, algorithm: str, slots: Slots | None) -> None:
    """Dictionaries of torch do not say of which algorithm they are; their slots do."""
    found = {slot for parameter in source.parameters for slot in parameter.entry} - {"step"}
    wanted = set(slots or ()) - {"step"}
    if source.algorithm is None and found and wanted and not found & wanted:
        kept, keeps = (", ".join(map(repr, sorted(names))) for names in (found, wanted))
        raise ValueError(f"the saved state is not of {algorithm}: it has {kept}, and {algorithm} keeps {keeps}")


def _names_of(groups: Sequence[Group]) -> list[str] | None:
    if not all("param_names" in group for group in groups):
        return None
    return [name for group in groups for name in group["param_names"]]


def _places(groups: Sequence[Group], names: list[str] | None, source: Saved, rename: Rename | None) -> list[int | None]:
    """For each parameter here the index of the saved one."""
    if names is not None and source.names is not None:
        return match(names, source.names, rename)
    if rename is not None:
        raise ValueError("rename= needs names on both sides: make the optimizer from a module")
    if len(groups) != len(source.groups):
        raise ValueError(
            f"loaded state dict has a different number of parameter groups: {len(source.groups)}, and this "
            f"optimizer has {len(groups)}"
        )
    for i, (group, other) in enumerate(zip(groups, source.groups, strict=True)):
        if len(group["params"]) != len(other["params"]):
            raise ValueError(
                f"loaded state dict contains a parameter group that doesn't match the size of optimizer's "
                f"group: group {i} has {len(other['params'])} parameters there, {len(group['params'])} here"
            )
    return list(range(len(source.parameters)))


def _resized(resize: Collection[str], names: list[str] | None) -> set[str]:
    if isinstance(resize, str):
        raise TypeError(f"resize= must be a collection of names, not the string {resize!r}")
    if resize and names is None:
        raise ValueError("resize= needs names: make the optimizer from a module")
    known = {unwrapped(name): name for name in names or ()}
    refuse_unknown("resize=", resize, list(known), "this optimizer")
    return {known[unwrapped(name)] for name in resize}


def _slot_sets(source: Saved) -> list[set[frozenset[str]]]:
    sets: list[set[frozenset[str]]] = [set() for _ in source.groups]
    for parameter in source.parameters:
        if parameter.entry:
            sets[parameter.group].add(frozenset(parameter.entry))
    return sets
