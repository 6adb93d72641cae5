"""The dictionary form of an optimizer: torch's own, with names, shapes and dtypes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch.nn.parameter import is_lazy

from .groups import Group, params_of
from .saved import STEPS_TAKEN, VERSION, gone, memory_order

__all__ = ["StateDict", "describe", "pack"]

StateDict: TypeAlias = dict[str, Any]


def pack(
    groups: Sequence[Group],
    state: Mapping[Any, Any],
    *,
    algorithm: str,
    step: int,
    frozen: Callable[[torch.Tensor], bool] = lambda _: False,
    weights: str | None = None,
) -> StateDict:
    """The dictionary form, which ``torch.optim`` loads too.

    Tensors that own their memory are the optimizer's, as in torch (``copy.deepcopy`` makes them a snapshot);
    views and tensors of a single number are copies.

    Args:
        groups: ``optimizer.param_groups``.
        state: ``optimizer.state``.
        algorithm: the optimizer's class name.
        step: number of steps the optimizer has taken.
        frozen: whether a parameter was frozen.
        weights: which the model has, of ``"training"`` or of ``"evaluation"``, where that makes a difference.

    Returns:
        ``{"state": {index: {slot: value}}, "param_groups": [...], "steprule": {"version", "algorithm",
        "step", "parameters", "frozen"}}``, where ``parameters`` gives for each index the shape and dtype of the
        parameter and the shape of each slot, and ``frozen`` has the indices of frozen parameters. What stands in
        ``state`` under another key than a parameter is the very object, as in torch.

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
        "state": dict(_packed_entry(key, entry, index) for key, entry in ordered),
        "param_groups": [_packed_group(group, index, step) for group in groups],
        "steprule": describe(groups, state, algorithm, step, frozen) | ({"weights": weights} if weights else {}),
    }


def describe(
    groups: Sequence[Group],
    state: Mapping[Any, Any],
    algorithm: str,
    step: int,
    frozen: Callable[[torch.Tensor], bool] = lambda _: False,
    weights: str | None = None,
) -> dict[str, Any]:
    """What the dictionary has beyond torch's form: all that is needed to know that a state fits."""
    params = dict.fromkeys(params_of(groups))
    lazy = any(map(is_lazy, params))  # modules that have seen no input know no shapes
    return {
        "version": VERSION,
        "algorithm": algorithm,
        "step": step,
        "parameters": None if lazy else [_described(param, state.get(param) or {}) for param in params],
        "frozen": [i for i, param in enumerate(params) if frozen(param)],
    }


def _described(param: torch.Tensor, entry: Mapping[str, Any]) -> dict[str, Any]:
    slots = {slot: list(v.shape) if isinstance(v, torch.Tensor) else None for slot, v in entry.items()}
    found = {"shape": list(param.shape), "dtype": str(param.dtype).removeprefix("torch."), "slots": slots}
    order = list(memory_order(param)) if param.layout == torch.strided else []
    return found if order == sorted(order) else {**found, "order": order}


def _packed_entry(key: Any, entry: Any, index: Mapping[int, int]) -> tuple[Any, Any]:
    return (index[id(key)], _own(entry)) if id(key) in index else (key, entry)


def _packed_group(group: Group, index: Mapping[int, int], step: int) -> Group:
    packed = {key: _own(value) for key, value in group.items() if key not in ("params", "schedules")}
    schedules = group["schedules"].to_dict() if group.get("schedules") else {}
    # torch.distributed.checkpoint keeps of a dictionary only state and groups
    packed["schedules"] = schedules | {STEPS_TAKEN: step}
    return packed | {"params": [index[id(param)] for param in group["params"]]}


def _own(value: Any) -> Any:
    """The value in new containers, and tensors with memory of their own; a parameter that is referred to stays it."""
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or isinstance(value, torch.nn.Parameter) or gone(value):
            return value
        whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
        return value if whole and value.ndim else value.detach().clone()
    if type(value) is dict:
        return {key: _own(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_own(item) for item in value)
    return value
