"""What somebody keeps in the state of a parameter, beside what the rule keeps, loads as torch loads it."""

from __future__ import annotations

import types
from collections import OrderedDict, defaultdict, deque, namedtuple
from typing import Any

import pytest
import torch
from torch import nn

import steprule

OWNER, OTHER, DOUBLE = (nn.Parameter(torch.ones(3, dtype=kind)) for kind in (torch.float32,) * 2 + (torch.float64,))
PLAIN, WIDE, SCALAR = torch.ones(3), torch.ones(3, dtype=torch.float64), nn.Parameter(torch.tensor(2.0))
KNOWN = {id(t): name for name, t in [("owner", OWNER), ("other", OTHER), ("plain", PLAIN), ("scalar", SCALAR)]}
KNOWN |= {id(WIDE): "wide", id(DOUBLE): "double"}
NOTE = types.SimpleNamespace(parameter=OTHER, tensor=PLAIN)


class Pair(list[Any]):
    """A list of a class of its own."""


AS_IN_TORCH: dict[str, Any] = {
    "object": NOTE,
    "parameter": OTHER,
    "tensor": PLAIN,
    "0-dim parameter": SCALAR,
    "sparse": torch.ones(3).to_sparse(),
    "every other": torch.ones(6)[::2],
    "None": None,
    "dictionary": {"parameter": OTHER, "tensor": PLAIN, "wide": WIDE, "object": NOTE, "scalar": SCALAR},
    "parameters as keys": {OTHER: 1, OWNER: PLAIN},
    "list": [OTHER, PLAIN, WIDE, NOTE],
    "tuple": (OTHER, PLAIN, WIDE),
    "set": {OTHER, 1},
    "frozen set": frozenset([OTHER]),
    "set that is cast": {DOUBLE},
    "queue": deque([OTHER, WIDE]),
    "ordered": OrderedDict(tensor=WIDE, parameter=OTHER),
    "with default": defaultdict(list, parameter=[OTHER]),
    "list of a class": Pair([OTHER, WIDE]),
    "deep": [{"x": (OTHER, [WIDE])}],
    "count": [{"step": WIDE}],
    "generator": torch.Generator(),
    "module": nn.Linear(2, 2),
    "optimizer": torch.optim.SGD([OTHER], lr=0.1),
    "function": torch.relu,
    "flag": True,
    "empty": {},
}


def outline(value: Any) -> Any:
    """A value with what is known by name in the place of objects, and dtypes in that of new tensors."""
    if isinstance(value, torch.Tensor):
        return KNOWN.get(id(value), (type(value), value.dtype))
    if isinstance(value, dict):
        return type(value), [(outline(key), outline(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple, deque)):
        return type(value), [outline(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return type(value), {outline(item) for item in value}
    return value if isinstance(value, (bool, int, str, type(None))) else id(value)


def loaded(cls: Any, value: Any) -> Any:
    optimizers = [cls([OWNER], lr=0.1) for _ in range(2)]
    optimizers[0].state[OWNER]["kept"] = value
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    return optimizers[1].state[OWNER]["kept"]


@pytest.mark.parametrize("kind", AS_IN_TORCH)
def test_it_is_what_torch_makes_of_it(kind: str) -> None:
    assert outline(loaded(steprule.SGD, AS_IN_TORCH[kind])) == outline(loaded(torch.optim.SGD, AS_IN_TORCH[kind]))


Named = namedtuple("Named", "first second")


@pytest.mark.parametrize(
    "value",
    [
        "text",
        ["text", b"bytes"],
        range(3),
        Named(OTHER, PLAIN),
        bytearray(b"x"),
        torch.arange(3),
        torch.arange(3).byte(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_torch_garbles_stays(value: Any) -> None:
    found = loaded(steprule.SGD, value)
    assert outline(found) == outline(value)
    assert type(found) is type(value)


class Own(steprule.Optimizer):
    """Updates in a way of its own."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, dict(lr=lr))

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nothing."""


@pytest.mark.parametrize("kind", sorted(AS_IN_TORCH.keys() - {"tensor", "every other", "sparse"}))
def test_an_optimizer_with_a_step_of_its_own_shares_no_plain_arrays(kind: str) -> None:
    assert outline(loaded(Own, AS_IN_TORCH[kind])) == outline(loaded(torch.optim.SGD, AS_IN_TORCH[kind]))
    assert loaded(Own, PLAIN) is not PLAIN


def test_a_queue_keeps_its_length() -> None:
    assert loaded(steprule.SGD, deque([OTHER], maxlen=3)).maxlen == 3
