"""What a constructor was given, checked and laid out as torch takes it; what the optimizer works with comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from steprule.grouping.membership import Members
from steprule.grouping.overrides import check_mapping, groups
from steprule.grouping.params import refuse_params
from steprule.grouping.selectors import guesses

from .options import OPTIONS, full_embeddings, refuse_options
from .roles import Roles
from .workings import Workings, check_hyper, workings

if TYPE_CHECKING:
    from steprule.optimizer import Optimizer

__all__ = ["construct"]


def construct(
    optimizer: Optimizer, params: Any, defaults: Any, options: dict[str, Any], has_rule: bool
) -> tuple[Any, dict[str, Any]]:
    """Give an optimizer what it works with, before torch makes its groups.

    Args:
        optimizer: the optimizer that is being made.
        params: the parameters, as the constructor got them.
        defaults: the hyperparameters of its rule, with their defaults.
        options: ``overrides``, ``nonfinite`` and the options of :data:`.options.OPTIONS` that were given.
        has_rule: whether its class gives an update rule.

    Returns:
        The parameters in groups, and all hyperparameters and options with their defaults.

    Raises:
        TypeError, ValueError: as :class:`steprule.Optimizer`.
    """
    name = type(optimizer).__name__
    if params is not None:  # which torch refuses after hyperparameters
        refuse_params(params, name)
    if not isinstance(defaults or {}, Mapping):
        raise TypeError(f"defaults must be the hyperparameters with their values, dict(lr=...), got {defaults!r:.60}")
    options |= vars(optimizer).pop("_passed", {})
    overrides, nonfinite = options.pop("overrides"), options.pop("nonfinite")
    defaults = complete(optimizer, dict(defaults or {}), options, has_rule)
    if params is None:
        refuse_params(params, name)
    optimizer.nonfinite = nonfinite
    works = workings(optimizer)
    works.members, works.guesses = Members(params), guesses(overrides or (), params)
    if full := full_embeddings(params, defaults["state_dtype"]):
        check_mapping(overrides or {})
        overrides = {**full, **(overrides or {})}
    if overrides:
        return groups(params, defaults, overrides, lay=works.roles.lay), defaults
    return list(params.named_parameters()) if isinstance(params, nn.Module) else params, defaults


def complete(
    optimizer: Optimizer, defaults: dict[str, Any], options: Mapping[str, Any], has_rule: bool
) -> dict[str, Any]:
    """The hyperparameters of the rule, of all options and of the modifiers, checked."""
    name = type(optimizer).__name__
    refuse_options(options, optimizer.switches, defaults, name)
    # an option that the rule has among its own hyperparameters is the rule's to apply
    own_options = frozenset(OPTIONS) & frozenset(defaults)
    defaults = {**OPTIONS, **options, **defaults}
    roles = Roles(optimizer)
    optimizer._workings = Workings(roles, has_rule, own_options)
    if defaults["modifiers"] and not has_rule:
        raise ValueError(f"{name} has no update rule for modifiers to go around")
    under, over = roles.lay({**defaults, "modifiers": ()}, {"modifiers": defaults["modifiers"]})
    defaults |= {**under, **over}
    check_hyper(optimizer, defaults)
    return defaults
