"""The weights of a model: whether saved ones fit, and how they are put back when loading them fails."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from steprule.names import Rename, match, part_for, unwrapped

from .fit import LoadResult, Misshapen
from .saved import form

__all__ = ["fitting_weights", "restoring_model"]


def fitting_weights(
    model: nn.Module,
    saved: Mapping[str, Any],
    strict: bool,
    rename: Rename | None,
    resize: Collection[str],
) -> tuple[dict[str, Any], LoadResult]:
    """What ``model.load_state_dict`` is to load, under the names that the model has now, and what did not fit.

    Raises:
        ValueError: with ``strict``, something does not fit.
        TypeError: a name is no string.
    """
    own = model.state_dict()
    names = list(saved)
    if strange := [name for name in names if not isinstance(name, str)]:
        raise TypeError(f"the saved model has entries {strange[:8]!r}; their names must be strings")
    places = match(list(own), names, part_for(rename, names))
    resized = {unwrapped(name) for name in resize}
    weights: dict[str, Any] = {}
    result = LoadResult([], [], [])
    for (name, value), place in zip(own.items(), places, strict=True):
        if place is None:
            result.missing.append(name)
        elif _fits(value, saved[names[place]], resize=unwrapped(name) in resized):
            weights[name] = _resized(value, saved[names[place]])
        else:
            result.misshapen.append(Misshapen(name, form(saved[names[place]]), form(value)))
    result.unexpected.extend(name for i, name in enumerate(names) if i not in places)
    if strict and any(result):
        raise ValueError(f"the saved model does not fit this {type(model).__name__}:\n{result}")
    return weights, result


def _fits(value: Any, saved: Any, resize: bool) -> bool:
    if not isinstance(value, torch.Tensor) or not isinstance(saved, torch.Tensor):
        return type(value) is type(saved)
    if is_lazy(value):
        return True
    alike = value.is_complex() == saved.is_complex() and value.is_floating_point() == saved.is_floating_point()
    return alike and (value.ndim == saved.ndim if resize else value.shape == saved.shape)


def _resized(value: Any, saved: Any) -> Any:
    if not isinstance(value, torch.Tensor) or is_lazy(value) or value.shape == saved.shape:
        return saved
    new = value.detach().clone()
    overlap = tuple(slice(min(a, b)) for a, b in zip(saved.shape, new.shape, strict=True))
    new[overlap] = saved[overlap].to(new)
    return new


@contextmanager
def restoring_model(model: nn.Module | None) -> Iterator[None]:
    """Whatever raises in the block, the model has its numbers, its tensors and its extra state as they were.

    It takes a copy of the weights for as long as the block runs.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    held = [(t, t.detach().clone()) for t in tensors.values() if not is_lazy(t)]
    lazy = [(t, type(t)) for t in tensors.values() if is_lazy(t)]
    modules = [(module, _attributes(module), _extra_state(module)) for module in model.modules()]
    try:
        yield
    except BaseException:
        for module, attributes, extra in modules:
            vars(module).update(attributes)
            if extra is not None:
                with suppress(Exception):  # what cannot take its own state has at least its attributes again
                    module.set_extra_state(extra)
        for tensor, before in held:
            _put_back(tensor, before)
        for shapeless, kind in lazy:
            shapeless.data = torch.empty(0, dtype=shapeless.dtype, device=shapeless.device)
            shapeless.__class__ = kind
        raise


@torch.no_grad()
def _put_back(tensor: torch.Tensor, before: torch.Tensor) -> None:
    with suppress(RuntimeError):  # what cannot be written was not written by loading either
        tensor.copy_(before)


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value.copy() if isinstance(value, dict) else value for name, value in vars(module).items()}


def _extra_state(module: nn.Module) -> Any:
    own = type(module).get_extra_state is not nn.Module.get_extra_state
    return deepcopy(module.get_extra_state()) if own else None
