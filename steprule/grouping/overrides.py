"""Parameter groups by overrides: a mapping from selector to hyperparameters.

::

    overrides = {biases | norms: dict(weight_decay=0), "head.*": dict(lr=scale(10))}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from numbers import Real
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.optim.optimizer import required

from steprule.messages.spelling import nearest
from steprule.schedules import arithmetic
from steprule.schedules.schedule import is_schedule

from .selectors import NamedParameter, Params, Selector, chosen, entries, selector

__all__ = ["Overrides", "Scale", "exclusive", "groups", "laid", "scale"]

Overrides: TypeAlias = "Mapping[Any, Mapping[str, Any]]"
Lay: TypeAlias = "Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[Mapping[str, Any], Mapping[str, Any]]]"
Rules: TypeAlias = "Sequence[tuple[Selector, Mapping[str, Any]]]"


@dataclass(frozen=True)
class Scale:
    """A relative value: what the optimizer as a whole has, times ``factor``. Made by :func:`scale`."""

    factor: float

    def __repr__(self) -> str:
        return f"scale({self.factor})"

    def times(self, name: str, value: Any) -> Any:
        """``value`` scaled: a number, a tensor, a schedule or a function of the step.

        Raises:
            ValueError: ``value`` is something else.
        """
        if is_schedule(value):
            return arithmetic("*", self.factor, value)
        if isinstance(value, bool) or not isinstance(value, (Real, Tensor)):
            raise ValueError(f"{self} can't multiply {name}={value!r}: it is not a number")
        return self.factor * value


def scale(factor: float) -> Scale:
    """A hyperparameter as a multiple of what the optimizer as a whole has, under a schedule too.

    Raises:
        ValueError: ``factor`` is not a finite number.
    """
    if not isinstance(factor, Real) or isinstance(factor, bool) or not math.isfinite(factor):
        raise ValueError(f"factor must be a finite number, got {factor!r}")
    return Scale(float(factor))


def exclusive(overrides: Overrides) -> dict[Selector, Mapping[str, Any]]:
    """The same overrides, of which no two may match the same parameter.

    Entries that may overlap go beside them: ``overrides={**exclusive({...}), "head.*": dict(lr=1e-3)}``.
    """
    check_mapping(overrides)
    return {replace(selector(what), exclusive=True): hyper for what, hyper in overrides.items()}


def groups(
    params: Params | Iterable[dict[str, Any]],
    base: Mapping[str, Any],
    overrides: Overrides | None = None,
    *,
    lay: Lay | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups in torch's form, for any optimizer.

    Parameters with equal hyperparameters share a group; parameters keep their order, and groups come in the order
    of their first parameter. A tied parameter appears once, under its first name.

    Args:
        params: a module; tensors; (name, tensor) pairs; or group dictionaries, each of which is split by itself.
        base: hyperparameters of the optimizer as a whole, all that ``overrides`` may name.
        overrides: selector -> hyperparameters. Where several match, later entries win key by key.
            A value may be :func:`scale`: a multiple of what the parameter has without overrides. An entry that names
            an ``algorithm`` takes nothing over from earlier ones that name another.
        lay: for an optimizer whose hyperparameters bring others along: ``lay(base, given)`` returns the
            hyperparameters that what is given is laid over, and what is given in plain form.

    Returns:
        Dictionaries with ``params``, ``param_names`` (where names are known) and every hyperparameter.

    Raises:
        ValueError: a selector matches nothing, or needs names or modules that are not known; a hyperparameter is
            not in ``base``; a parameter is matched by two entries that are :func:`exclusive`.
        TypeError: a selector or its hyperparameters are of the wrong type.

    Example:
        >>> from steprule import biases, norms
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
        >>> for group in groups(model, dict(lr=0.1, weight_decay=0.1), {norms | biases: dict(weight_decay=0)}):
        ...     print(group["param_names"], group["lr"], group["weight_decay"])
        ['0.weight'] 0.1 0.1
        ['0.bias', '1.weight', '1.bias'] 0.1 0
    """
    if not isinstance(base, Mapping):
        raise TypeError(f"base must be a dictionary of hyperparameters, got {base!r}")
    check_mapping(overrides or {})
    lay = lay or as_given
    parts = sections(params, base, lay)
    rules = [(selector(what), hyper) for what, hyper in (overrides or {}).items()]
    check_mappings(rules)
    brought = (lay(base, over)[0] for _, over in rules)
    check_names(rules, set(base).union(*(hyper for hyper, _ in parts), *brought))
    everything = [entry for _, part in parts for entry in part]
    for rule, _ in rules:
        chosen(rule, everything)
    return [group for hyper, part in parts for group in split_group(part, hyper, rules, lay)]


def as_given(base: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """A way to lay what is given over the base that brings nothing along."""
    return base, given


def laid(lay: Lay, base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters of a group: those given for it, over others."""
    under, over = lay(base, given)
    return {**under, **resolved(under, over)}


def sections(
    params: Params | Iterable[dict[str, Any]], base: Mapping[str, Any], lay: Lay
) -> list[tuple[dict[str, Any], list[NamedParameter]]]:
    base = {name: value for name, value in base.items() if value is not required}  # the optimizer will miss it
    if isinstance(params, (nn.Module, Tensor, set)):
        return [(base, entries(params))]
    given: list[Any] = list(params)
    if not given or not all(isinstance(group, dict) for group in given):
        return [(base, entries(given))]
    return [(laid(lay, base, hyper_of(group)), entries(pairs(group))) for group in given]


def hyper_of(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in ("params", "param_names")}


def pairs(group: Mapping[str, Any]) -> Any:
    params = [group["params"]] if isinstance(group["params"], Tensor) else group["params"]
    return zip(group["param_names"], params, strict=True) if "param_names" in group else params


def resolved(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.times(k, base.get(k)) if isinstance(v, Scale) else v for k, v in over.items()}


def split_group(part: Sequence[NamedParameter], base: dict[str, Any], rules: Rules, lay: Lay) -> list[dict[str, Any]]:
    found: dict[object, dict[str, Any]] = {}
    alike: dict[tuple[int, ...], dict[str, Any]] = {}  # parameters that the same overrides match share a group
    for entry in part:
        places = tuple(i for i, (rule, _) in enumerate(rules) if rule.test(entry))
        if len(clash := [str(rules[i][0]) for i in places if rules[i][0].exclusive]) > 1:
            raise ValueError(f"{name_or_shape(entry)} is matched by {' and '.join(clash)}, which are exclusive")
        if places not in alike:
            given = merged_overrides([rules[i][1] for i in places])
            hyper = laid(lay, base, given)
            if "algorithm" in given:
                where = f"of {hyper['algorithm']} in an override of {name_or_shape(entry)}"
                refuse_unknown_hyper(given, set(lay(base, given)[0]), where)
            key = frozenset((name, hashable(value)) for name, value in hyper.items())
            alike[places] = found.setdefault(key, {"params": [], "param_names": [], **hyper})
        group = alike[places]
        group["params"].append(entry.parameter)
        group["param_names"].append(entry.name)
    for group in found.values():
        if not all(group["param_names"]):
            del group["param_names"]
    return list(found.values()) or [{"params": [], **base}]


def merged_overrides(overs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Overrides of one parameter as one: later ones win key by key, and void earlier ones of another algorithm."""
    last = next((over["algorithm"] for over in reversed(overs) if "algorithm" in over), None)
    valid = [over for over in overs if over.get("algorithm", last) is last]
    return dict(chain.from_iterable(over.items() for over in valid))


def hashable(value: Any) -> object:
    if isinstance(value, (list, tuple)):
        return tuple(map(hashable, value))
    return id(value) if isinstance(value, Tensor) or type(value).__hash__ is None else value


def name_or_shape(entry: NamedParameter) -> str:
    return entry.name or f"a parameter of shape {tuple(entry.parameter.shape)}"


def check_mapping(overrides: object) -> None:
    if not isinstance(overrides, Mapping):
        raise TypeError(f"overrides must be a dictionary from selectors to hyperparameters, got {overrides!r}")


def check_mappings(rules: Rules) -> None:
    for rule, over in rules:
        if not isinstance(over, Mapping):
            raise TypeError(f"the override of {rule} must be a dictionary of hyperparameters, got {over!r}")


def check_names(rules: Rules, known: set[str]) -> None:
    for rule, over in rules:
        refuse_unknown_hyper(over, known, f"in the override of {rule}")


def refuse_unknown_hyper(names: Iterable[str], known: set[str], where: str) -> None:
    for name in names:
        if name not in known:
            hint = nearest(str(name), sorted(known)) or f"; there are {', '.join(sorted(known))}"
            raise ValueError(f"unknown hyperparameter {name!r} {where}{hint}")
