"""What may be given as the parameters of an optimizer, and what is said of what people give by mistake."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from inspect import ismethod
from typing import Any

from torch import Tensor, nn

from steprule.spelling import nearest

__all__ = ["refuse_group", "refuse_params"]


def refuse_params(params: object, optimizer: str) -> None:
    """Refuse what holds no parameters, and say what to give in its place.

    Raises:
        TypeError: as torch does.
    """
    if isinstance(params, (nn.Module, Tensor, set)):  # the last two are torch's to refuse
        return
    if ismethod(params) and isinstance(params.__self__, nn.Module):
        name, model = params.__name__, type(params.__self__).__name__
        raise TypeError(f"params is the method {name} of a {model}: call it, or give the model: {optimizer}(model)")
    if isinstance(params, Mapping):
        state = params and all(isinstance(value, Tensor) for value in params.values())
        say = "give the model, or model.named_parameters()" if state else "groups stand in a list: [dict(params=...)]"
        raise TypeError(f"optimizer can only optimize Tensors, and params is a dictionary; {say}")
    if isinstance(params, str) or (not isinstance(params, Iterable) and not hasattr(params, "__getitem__")):
        raise TypeError(
            "params argument given to the optimizer should be an nn.Module or an iterable of Tensors or dicts, but got "
            f"{params!r:.60}; parameters come first: {optimizer}(model, lr=...)"
        )
    for item in params if isinstance(params, (list, tuple)) else ():
        if isinstance(item, nn.Module):
            kind = f"{type(item).__module__}.{type(item).__qualname__}"
            raise TypeError(
                f"optimizer can only optimize Tensors, but one of the params is {kind}; give one module, such as "
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
