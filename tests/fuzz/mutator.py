"""Random changes of nested values and of bytes, the same for the same seed."""

from __future__ import annotations

import random
from typing import Any

import torch
from saving.mutations import at

from steprule.schedules import cosine

HUGE = 10**400
TEXTS = ["", "x", "lr", "step", "0", "$", "params", "a.b", "\x1b[2J", "\ud800", "é", "0.weight", "inf", "nan", "auto"]
NUMBERS = [0, 1, -1, 2, 3, 7, 2**31, 2**63, -(2**63), 2**64, HUGE, 0.5, -0.0, 1e-300, 1e308, 1e400, float("nan")]
PLAIN: list[Any] = [
    None,
    True,
    False,
    *NUMBERS,
    *TEXTS,
    [],
    {},
    [[]],
    [1],
    [0, 1],
    {"a": 1},
    {"$": 1},
    {"$": "tensor"},
    {"$": "tensor", "name": "model.0.weight"},
    {"$": "tensor", "name": "model.0.weight", "complex": True},
    {"$": "tuple", "items": [1, [2]]},
    {"$": "dict", "items": [[[1], 2]]},
    {"$": "dict", "items": [[1, 2, 3]]},
    {"$": "float", "value": "nan"},
    {"$": "float", "value": []},
    {"$": "complex", "items": [1, None]},
    {"$": "bytes", "value": "0"},
    cosine(10).to_dict(),
    {"schedule": "plateau"},
    "NESTED",
]
OBJECTS = [
    (1,),
    (),
    b"x",
    1j,
    object(),
    cosine(10),
    print,
    torch.zeros(()),
    torch.tensor(-1.0),
    torch.tensor(float("nan")),
    torch.tensor(3),
    torch.tensor(True),
    torch.tensor(1j),
    torch.zeros(0),
    torch.zeros(2, 2),
    torch.zeros(3, 4, dtype=torch.int64),
    torch.zeros(3, 4, dtype=torch.complex64),
    torch.zeros(3, 4, device="meta"),
    torch.zeros(3, 4).to_sparse(),
    torch.zeros(1).expand(3, 4),
    torch.zeros(4, 3).t(),
    torch.zeros(3, 4, requires_grad=True),
    torch.nn.UninitializedParameter(),
]


def places(tree: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything inside nested dictionaries, lists and tuples, down to a depth of 20."""
    if len(path) == 20:
        return []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, (list, tuple)) else ()
    return [place for key, value in items for place in ((*path, key), *places(value, (*path, key)))]


def put(tree: Any, path: tuple[Any, ...], change: Any) -> Any:
    """A copy of the tree in which ``change`` was applied to the container and key of this path."""
    new = dict(tree) if isinstance(tree, dict) else list(tree)
    if len(path) == 1:
        change(new, path[0])
    else:
        new[path[0]] = put(tree[path[0]], path[1:], change)
    return tuple(new) if isinstance(tree, tuple) else new


def nested(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = [value]
    return value


def mutated(tree: Any, dice: random.Random, junk: list[Any]) -> Any:
    """The tree with one to four things in it changed."""
    for _ in range(dice.choice([1, 1, 1, 2, 4])):
        known = places(tree)
        if not known:
            return dice.choice(junk)
        path, other = dice.choice(known), at(tree, dice.choice(known))
        tree = put(tree, path, dice.choice(CHANGES)(dice, junk, other))
    return tree


def replace(dice: random.Random, junk: list[Any], other: Any) -> Any:
    value = dice.choice(junk)
    if isinstance(value, str) and value == "NESTED":
        value = nested(1, dice.choice([50, 400, 2000]))
    return lambda box, key: box.__setitem__(key, value)


def copy_other(dice: random.Random, junk: list[Any], other: Any) -> Any:
    return lambda box, key: box.__setitem__(key, other)


def delete(dice: random.Random, junk: list[Any], other: Any) -> Any:
    return lambda box, key: box.__delitem__(key)


def add(dice: random.Random, junk: list[Any], other: Any) -> Any:
    name, value = dice.choice([*TEXTS, *NUMBERS]), dice.choice(junk)
    return lambda box, key: box.__setitem__(name, value) if isinstance(box, dict) else box.insert(key, value)


def rename(dice: random.Random, junk: list[Any], other: Any) -> Any:
    name = dice.choice([*TEXTS, *NUMBERS[:6]])
    return lambda box, key: box.__setitem__(name, box.pop(key)) if isinstance(box, dict) else box.reverse()


def shift(dice: random.Random, junk: list[Any], other: Any) -> Any:
    by = dice.choice([-1, 1, 0.5, 1000])

    def change(box: Any, key: Any) -> None:
        if isinstance(box[key], (int, float)) and not isinstance(box[key], bool) and abs(box[key]) < 1e300:
            box[key] += by
        elif isinstance(box[key], str):
            box[key] = box[key][1:]

    return change


CHANGES = [replace, replace, copy_other, delete, add, rename, shift]


def mutated_bytes(raw: bytes, dice: random.Random) -> bytes:
    """The bytes with some of them flipped, cut, dropped, inserted, repeated or zeroed; mostly in the header."""
    for _ in range(dice.choice([1, 1, 2, 5])):
        i = dice.randrange(max(len(raw) if dice.random() < 0.3 else min(len(raw), 3000), 1))
        n, junk = dice.randrange(1, 64), dice.randbytes(dice.randrange(1, 40))
        raw = dice.choice(
            [
                lambda r, i=i: r[:i] + bytes([r[i] ^ (1 << dice.randrange(8))]) + r[i + 1 :] if r else r,
                lambda r, i=i: r[:i],
                lambda r, i=i, n=n: r[:i] + r[i + n :],
                lambda r, i=i, junk=junk: r[:i] + junk + r[i:],
                lambda r, i=i, junk=junk: r[:i] + junk + r[i + len(junk) :],
                lambda r, i=i, n=n: r[: i + n] + r[i:],
                lambda r, i=i, n=n: r[:i] + bytes(len(r[i : i + n])) + r[i + n :],
            ]
        )(raw)
    return raw
