"""What may be given as the parameters of an optimizer, and what is said of what people give by mistake."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from inspect import ismethod
from typing import Any

from torch import Tensor, nn

from steprule.messages.spelling import nearest

__all__ = ["refuse_group", "refuse_params"]

ONLY = "optimizer can only optimize Tensors, but one of the params is"


def refuse_params(params: object, optimizer: str) -> None:
    """Refuse what holds no parameters, and say what to give in its place.

    Raises:
        TypeError: as torch does.
    """
    if isinstance(params, (nn.Module, Tensor, set)):  # the last two are torch's to refuse
        return
    how = f"{optimizer}(model, lr=...)"
    if isinstance(params, str):
        raise TypeError(
            f"optimizer can only optimize Tensors, but one of the params is str; parameters come first: {how}"
        )
    if isinstance(params, Mapping):
        state = params and all(isinstance(value, Tensor) for value in params.values())
        say = "give the model, or model.named_parameters()" if state else "groups stand in a list: [dict(params=...)]"
        kind = next((type(key).__name__ for key in params), "dict")
        raise TypeError(f"{ONLY} {kind}; {say}")
    if not isinstance(params, Iterable) and not hasattr(params, "__getitem__"):
        say = f"parameters come first: {how}"
        if ismethod(params) and isinstance(params.__self__, nn.Module):
            say = f"it is {params.__name__} of a {type(params.__self__).__name__}: call it, or give the model"
        raise TypeError(f"{type(params).__name__!r} object is not iterable; {say}")
    for item in params if isinstance(params, (list, tuple)) else ():
        if isinstance(item, nn.Module):
            kind = f"{type(item).__module__}.{type(item).__qualname__}"
            raise TypeError(
                f"{ONLY} {kind}; give one module, such as "
                "nn.ModuleList([...]) of several, or a group for each: dict(params=module)"
            )


def refuse_group(group: Mapping[str, Any]) -> None:
    """Refuse a group without parameters.

    Raises:
        KeyError: as torch does.
    """
    if "params" not in group:
        keys = [str(key) for key in group]
        raise KeyError(
            f"params: a group has them, and this one {', '.join(keys) or 'nothing'}{nearest('params', keys)}"
        )
