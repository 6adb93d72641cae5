"""Loading goes one way: a state dictionary is read and checked, fitted to an optimizer, and applied to it.

:func:`steprule.saving.saved.read_saved` gives what was saved, :func:`fit` what the optimizer becomes, and only
:meth:`Loading.install` changes anything. They need of the optimizer only what every ``torch.optim.Optimizer`` has.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from steprule.names import Rename
from steprule.schedules import Schedule, Scheduled, plateaus

from .fit import Fit, Fresh, Held, LoadResult, Placed, Slots, WholeFit, kinds
from .groups import Group, Hyperparameters, merge, params_of, refuse_choice
from .lbfgs_state import is_of_lbfgs
from .places import names_of, places_of, resized_names
from .saved import Parameter, Saved, highest_count, read_saved

__all__ = ["LoadOptions", "Loading", "Receiver", "fit", "prepare", "restoring"]

_SHOWN = 8  # names in a warning

Matched = Sequence[tuple[torch.Tensor, Mapping[str, Any]]]


@dataclass(frozen=True)
class Receiver:
    """What a saved state is fitted to.

    Attributes:
        algorithm: the optimizer's class name.
        groups: ``optimizer.param_groups``.
        state: ``optimizer.state``.
        step: number of steps it has taken, for a dictionary that does not say.
        check: refuses hyperparameters that are out of range.
        slots: the slots that a parameter of a group has, where the optimizer knows them.
        fresh: the value with which a slot of a parameter in a group begins; zeros where left out.
        frozen: whether a parameter was frozen on purpose.
        held: how slots are held here, see :class:`steprule.saving.fit.WholeFit`.
        placed: how saved tensors are spread over processes, see :class:`steprule.saving.fit.WholeFit`.
    """

    algorithm: str
    groups: Sequence[Group]
    state: Mapping[Any, Any]
    step: int = 0
    check: Callable[[Group], None] | None = None
    slots: Callable[[Group, torch.Tensor], Slots] | None = None
    fresh: Fresh | None = None
    frozen: Callable[[torch.Tensor], bool] = lambda _: False
    held: Held | None = None
    placed: Placed | None = None


@dataclass(frozen=True)
class LoadOptions:
    """How to load.

    Attributes:
        strict: whether everything must fit; otherwise what does not fit keeps its present state.
        hyperparameters: ``"saved"``: from the saved group that each parameter was in, where all parameters
            of a group agree on the value; ``"current"``: as they are.
        rename: saved name -> name here, see :func:`steprule.names.match`.
        resize: names of parameters whose saved state may have other sizes: the common part is taken, the
            rest begins as new state does.
        given: whether a saved tensor may be taken as it is, without a copy; none where left out.
    """

    strict: bool = True
    hyperparameters: Hyperparameters = "saved"
    rename: Rename | None = None
    resize: Collection[str] = ()
    given: Callable[[torch.Tensor], bool] | None = None


@dataclass(frozen=True)
class Loading:
    """What an optimizer becomes: :meth:`install` it, and it has loaded.

    Attributes:
        state: the new ``optimizer.state``.
        groups: the new ``optimizer.param_groups``.
        step: number of steps taken: what was saved, otherwise the highest count in the state and schedules.
        result: what did not fit (only with ``strict=False``).
        schedules: the schedules that stay, each with what its plateaus saw in the saved run.
        replaced: one line for each saved schedule that another one of this optimizer replaces.
        frozen: the parameters that were frozen when they were saved, each with what it is called.
        weights: which the model had when it was saved, of ``"training"`` or of ``"evaluation"``.
        said: one line for what freezing changes.
    """

    state: defaultdict[Any, Any]
    groups: list[Group]
    step: int
    result: LoadResult
    schedules: list[tuple[Schedule, Mapping[str, Any]]]
    replaced: list[str]
    frozen: list[tuple[str, torch.Tensor]]
    said: list[str]
    weights: str | None = None

    @property
    def warnings(self) -> list[str]:
        """What a person should know of before it is installed."""
        return [*self.replaced, *self.said]

    def install(self, optimizer: torch.optim.Optimizer) -> None:
        """Makes the optimizer what was planned, and runs its hooks for after loading.

        Its group dictionaries stay the same objects. When a hook raises, the optimizer is as it was.
        """
        with restoring(optimizer):
            for schedule, saved in self.schedules:
                schedule.load_state(saved)
            for group, new in zip(optimizer.param_groups, self.groups, strict=True):
                group.update(new)
            optimizer.__setstate__({"state": self.state, "param_groups": optimizer.param_groups})
            for hook in optimizer._optimizer_load_state_dict_post_hooks.values():
                hook(optimizer)
            for _, p in self.frozen:
                p.requires_grad_(False)
                p.grad = None


@contextmanager
def restoring(optimizer: torch.optim.Optimizer | None) -> Iterator[None]:
    """Whatever raises in the block, the optimizer is as it was, but for tensors that were changed in place."""
    if optimizer is None:
        yield
        return
    attributes, groups = dict(vars(optimizer)), list(optimizer.param_groups)
    training = [(p, p.requires_grad, p.grad) for p in params_of(groups)]
    contents = [dict(group) for group in groups]
    schedules = [schedule for group in groups for schedule in (group.get("schedules") or {}).values()]
    trackers = [(tracker, dict(vars(tracker))) for tracker in plateaus(schedules)]
    try:
        yield
    except BaseException:
        vars(optimizer).clear()
        vars(optimizer).update(attributes)
        optimizer.param_groups[:] = groups
        for group, content in zip(groups, contents, strict=True):
            group.clear()
            group.update(content)
        for p, trains, grad in training:
            if p.requires_grad is not trains:
                p.requires_grad_(trains)
                p.grad = grad
        for tracker, seen in trackers:
            vars(tracker).clear()
            vars(tracker).update(seen)
        raise


def prepare(
    optimizer: torch.optim.Optimizer,
    saved: Mapping[str, Any],
    *,
    step: int = 0,
    check: Callable[[Group], None] | None = None,
    slots: Callable[[Group, torch.Tensor], Slots] | None = None,
    fresh: Fresh | None = None,
    frozen: Callable[[torch.Tensor], bool] = lambda _: False,
    held: Held | None = None,
    placed: Placed | None = None,
    **options: Any,
) -> Loading:
    """What an optimizer becomes when it loads ``saved``, after its hooks for before loading have run.

    Nothing is changed.

    Args:
        optimizer: the optimizer.
        saved: a dictionary of :func:`steprule.saving.state_dict.pack` or of any ``torch.optim.Optimizer``.
        step, check, slots, fresh, frozen, held, placed: see :class:`Receiver`.
        **options: see :class:`LoadOptions`.

    Raises:
        ValueError: the state is of another algorithm or version, does not fit (every problem is named), or
            its hyperparameters are not clear for the groups here.
        TypeError, KeyError: ``saved`` is not a state dictionary.
    """
    chosen = LoadOptions(**options)
    refuse_choice(chosen.hyperparameters)
    given, name = _hooked(optimizer, saved), type(optimizer).__name__
    here = Receiver(name, optimizer.param_groups, optimizer.state, step, check, slots, fresh, frozen, held, placed)
    try:
        return fit(read_saved(given), here, chosen)
    except RecursionError as error:
        raise ValueError("the state dictionary is nested too deep, or contains itself") from error


def _hooked(optimizer: torch.optim.Optimizer, saved: Any) -> Any:
    saved = dict(saved) if isinstance(saved, Mapping) else saved
    for hook in optimizer._optimizer_load_state_dict_pre_hooks.values():
        changed = hook(optimizer, saved)
        saved = saved if changed is None else changed
    return saved


def fit(saved: Saved, here: Receiver, options: LoadOptions) -> Loading:
    """What an optimizer becomes when it loads what was saved; nothing is changed.

    Raises:
        ValueError, TypeError: as :func:`prepare`.
    """
    if saved.algorithm not in (None, here.algorithm):
        raise ValueError(f"the saved state is of {saved.algorithm}, and this is {here.algorithm}")
    places = places_of(here.groups, saved, options.rename)
    resized = resized_names(options.resize, here.groups)
    merged = merge(here.groups, places, saved, options.hyperparameters, checked=here.check is not None)
    step = _steps(saved, here)
    for i, group in enumerate(merged.groups):
        _check_group(i, group, step, here.check)
    fits = _fit_everything(saved, here, options, places, merged.groups, resized)
    result = _unmatched(here, saved, places)
    state: defaultdict[Any, Any] = defaultdict(dict, saved.loose)
    for param, found in zip(params_of(here.groups), fits, strict=True):
        entry = None if found is None else found.state(result)
        entry = here.state.get(param) if entry is None else entry
        if entry:
            state[param] = entry
    if options.strict and any(result):
        raise ValueError(f"the saved state does not fit this {here.algorithm}:\n{result}")
    frozen, said = _frozen_here(saved, here, options, places)
    said += _unread(saved, here.algorithm, fits)
    return Loading(state, merged.groups, step, result, merged.schedules, merged.replaced, frozen, said, saved.weights)


def _frozen_here(
    saved: Saved, here: Receiver, options: LoadOptions, places: Sequence[int | None]
) -> tuple[list[tuple[str, torch.Tensor]], list[str]]:
    """The parameters that were frozen, with what they are called, and what to say where that is not so here."""
    if saved.frozen is None or options.hyperparameters == "current":
        return [], []
    known = list(zip(params_of(here.groups), _labels(here.groups), places, strict=True))
    frozen = [(label, p) for p, label, place in known if place in saved.frozen]
    new = [label for label, p in frozen if p.requires_grad]
    old = [label for p, label, place in known if place is not None and place not in saved.frozen and here.frozen(p)]
    said = [
        *([f"loading freezes {_few(new)}, as saved; unfreeze(...) trains again"] if new else []),
        *([f"{_few(old)} trained when this was saved, and stay frozen; unfreeze(...) trains again"] if old else []),
    ]
    return frozen, said


def _few(labels: Sequence[str]) -> str:
    rest = len(labels) - _SHOWN
    return ", ".join(labels[:_SHOWN]) + (f" and {rest:,} more" if rest > 0 else "")


def _steps(saved: Saved, here: Receiver) -> int:
    if saved.step is not None:
        return saved.step
    default = here.step if saved.followed is None else saved.followed
    entries = (parameter.entry for parameter in saved.parameters)
    return max(highest_count(entries, default), saved.followed or 0)


def _check_group(i: int, group: Group, step: int, check: Callable[[Group], None] | None) -> None:
    """Checks a group as it is, and with the numbers that its schedules will write into it."""
    if check is None:
        return
    try:
        check(group)
        if schedules := group.get("schedules"):
            next_step = dict(group)
            Scheduled(schedules).write(next_step, step)
            check(next_step)
    except Exception as error:  # a schedule may be a function of somebody's
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"group {i} as it was saved: {error}") from error


def _labels(groups: Sequence[Group]) -> list[str]:
    return names_of(groups) or [f"parameter {i}" for i, _ in enumerate(params_of(groups))]


def _unmatched(here: Receiver, saved: Saved, places: Sequence[int | None]) -> LoadResult:
    missing = [label for label, place in zip(_labels(here.groups), places, strict=True) if place is None]
    taken = set(places)
    return LoadResult(missing, [p.label for i, p in enumerate(saved.parameters) if i not in taken], [])


def _fit_everything(
    saved: Saved,
    here: Receiver,
    options: LoadOptions,
    places: Sequence[int | None],
    groups: Sequence[Group],
    resized: Collection[str],
) -> list[Fit | None]:
    """For each parameter here, it and what was saved for it; None where nothing was."""
    params, owners = list(params_of(groups)), [group for group in groups for _ in group["params"]]
    known = here.slots and [here.slots(group, p) for group, p in zip(owners, params, strict=True)]
    together = {name: slot for own in known or () for name, slot in own.items()}
    _refuse_other_slots(saved, here.algorithm, together)
    matched = [(p, saved.parameters[at].entry) for p, at in zip(params, places, strict=True) if at is not None]
    _refuse_reordered(matched, places, saved, here.algorithm)
    numbers = sum(p.numel() * (2 if p.is_complex() else 1) for p in params)
    common = WholeFit(kinds(matched, together), numbers, here.fresh, options.given, here.held, here.placed)
    peers = _slot_sets(saved, params, places)

    def one(i: int, label: str, of: Parameter) -> Fit:
        slots = None if known is None else {**together, **known[i]}
        needed = () if known is None or options.hyperparameters == "current" else known[i]
        alike = peers[of.group, params[i].ndim]
        return Fit(params[i], owners[i], label, of, alike, slots, needed, label in resized, common)

    labelled = enumerate(zip(_labels(here.groups), places, strict=True))
    return [None if place is None else one(i, label, saved.parameters[place]) for i, (label, place) in labelled]


def _refuse_other_slots(saved: Saved, algorithm: str, slots: Slots) -> None:
    """Dictionaries of torch do not say of which algorithm they are; their slots do."""
    found = {slot for parameter in saved.parameters for slot in parameter.entry} - {"step"}
    wanted = set(slots) - {"step"}
    if saved.algorithm is None and found and wanted and not found & wanted:
        kept, keeps = (", ".join(map(repr, sorted(names))) for names in (found, wanted))
        raise ValueError(f"the saved state is not of {algorithm}: it has {kept}, and {algorithm} keeps {keeps}")


def _unread(saved: Saved, algorithm: str, fits: Sequence[Fit | None]) -> list[str]:
    """What to say of state that loads, as it does into torch's optimizers, and that nothing reads."""
    known = [fit for fit in fits if fit is not None and fit.slots is not None]
    if saved.algorithm is not None or not known:
        return []
    unread = {name for fit in known for name in fit.saved.entry.keys() - (fit.slots or {}).keys()} - {"step"}
    if not unread:
        return []
    kept = ", ".join(map(repr, sorted(unread)))
    return [
        f"the saved state has {kept}, which {algorithm} with these hyperparameters never reads: it is kept, and the "
        "updates begin as if it were not there. Load it into the algorithm that it is of to go on with it"
    ]


def _refuse_reordered(matched: Matched, places: Sequence[int | None], saved: Saved, algorithm: str) -> None:
    if any(is_of_lbfgs(entry) for _, entry in matched) and list(places) != list(range(len(saved.parameters))):
        raise ValueError(f"the state of {algorithm} is for all parameters in their order: load it into the same ones")


def _slot_sets(
    saved: Saved, params: Sequence[torch.Tensor], places: Sequence[int | None]
) -> Mapping[tuple[int, int], set[frozenset[str]]]:
    """Saved group, number of dimensions -> the sets of slots that its parameters have."""
    sets: defaultdict[tuple[int, int], set[frozenset[str]]] = defaultdict(set)
    for param, place in zip(params, places, strict=True):
        if place is not None and (parameter := saved.parameters[place]).entry:
            sets[parameter.group, param.ndim].add(frozenset(parameter.entry))
    return sets
