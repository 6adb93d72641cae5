"""Groups that change while training runs: frozen, taken in, followed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from steprule.grouping.following import Followed
from steprule.grouping.globs import fold
from steprule.grouping.membership import left_out_of_groups
from steprule.grouping.selectors import Selectable
from steprule.schedules import report

from .options import refuse_hyper
from .workings import workings

if TYPE_CHECKING:
    from steprule.optimizer import Optimizer

__all__ = ["add", "check", "follow", "freeze", "report_metric", "unfreeze"]


def freeze(optimizer: Optimizer, what: Selectable) -> list[str]:
    """Stop training the parameters that a selector means: they get no gradient and keep their state.

    Args:
        what: a selector, see :mod:`steprule.grouping.selectors`.

    Returns:
        The names of the parameters.

    Raises:
        ValueError: it matches nothing, or needs names or modules that are not known.
    """
    return workings(optimizer).members.train(what, optimizer.param_groups, on=False)


def unfreeze(optimizer: Optimizer, what: Selectable) -> list[str]:
    """Train the parameters that a selector means again, from the state they had.

    Args:
        what: a selector, see :mod:`steprule.grouping.selectors`.

    Returns:
        The names of the parameters.

    Raises:
        ValueError: it matches nothing, or needs names or modules that are not known.
    """
    return workings(optimizer).members.train(what, optimizer.param_groups, on=True)


def check(optimizer: Optimizer, model: nn.Module) -> None:
    """Refuse a model of which a parameter trains but is in no group, or got no gradient, and so would stay as it is.

    Gradients are looked at once a step was taken: a parameter that requires one, has none now and had none before.

    Args:
        model: the module.

    Raises:
        ValueError: naming the parameters.

    Example:
        >>> import steprule
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> optimizer = steprule.SGD(model)
        >>> model.append(nn.Linear(2, 1))
        Sequential(...)
        >>> optimizer.check(model)
        Traceback (most recent call last):
        ValueError: of Sequential, 1.weight, 1.bias train but are in no group of this SGD: optimizer.add(...) takes
        them in
    """
    works = workings(optimizer)
    if found := left_out_of_groups(model, optimizer.param_groups, type(optimizer).__name__):
        raise ValueError(found)
    works.planner.settle()
    updated = {id(entry.owner) for entry in works.planner.entries if entry.uncounted or entry.state}
    names = [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and p.grad is None and id(p) not in updated and not optimizer.state.get(p)
    ]
    if names and updated:
        raise ValueError(
            f"of {type(model).__name__}, {', '.join(names if len(names) < 9 else fold(names))} had no gradient in any "
            "step: backward does not reach them. optimizer.freeze(...) says that this is meant"
        )


def add(optimizer: Optimizer, what: nn.Module | torch.Tensor | Iterable[Any], **hyper: Any) -> None:
    """Take parameters in that belong to no group yet, such as those of a layer made while training runs.

    Args:
        what: a module, a tensor, or an iterable of tensors or (name, tensor) pairs. Parameters that are in a
            group already are left where they are.
        **hyper: the hyperparameters in which they differ from the defaults; :func:`steprule.scale` multiplies
            the default.

    Raises:
        ValueError: all of them are in a group already; names are needed and not known, or are taken.
        TypeError: an unknown hyperparameter.
    """
    works = workings(optimizer)
    refuse_hyper(hyper, optimizer.defaults, type(optimizer).__name__)
    optimizer.add_param_group({"params": works.members.newcomers(what, optimizer.param_groups), **hyper})
    works.members.know(what)
    works.members.note(optimizer.param_groups)


def follow(optimizer: Optimizer, model: nn.Module) -> Followed:
    """Train a module's present parameters in the places of those it had when the optimizer was made.

    Loading with ``assign=True``, a new head, parametrizing, pruning or normalizing weights replace parameters; the
    optimizer, given the module, warns at its next step. Names decide what replaces what; state is carried on where
    shapes agree. What is new in the module under other names is for :meth:`add`.

    Args:
        model: the module, or another one of its class.

    Returns:
        The names of the parameters that were carried on, that began anew, and that were dropped.

    Raises:
        ValueError: the optimizer does not know its parameters by name.

    Example:
        >>> import steprule
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
        >>> optimizer = steprule.AdamW(model)
        >>> model[1] = nn.Linear(2, 5)
        >>> print(optimizer.follow(model))
        begun anew: 1.weight, 1.bias
    """
    works = workings(optimizer)
    done = works.members.follow(model, optimizer.param_groups, optimizer.state)
    works.planner.outdated()
    return done


def report_metric(optimizer: Optimizer, value: float) -> None:
    """Tell every :func:`steprule.schedules.plateau` among the schedules how training goes.

    Args:
        value: the metric, such as the validation loss of an epoch.

    Raises:
        RuntimeError: if no schedule is a plateau.
    """
    report(optimizer.param_groups, value)
