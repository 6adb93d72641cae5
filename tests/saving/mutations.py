"""Changes of nested dictionaries and lists, for the tests that load what was changed."""

from __future__ import annotations

import copy
from typing import Any

JUNK = [None, True, -1, 0, 3, 1.5, float("nan"), 10**400, "", "x", [], [1], {}, {"$": "tensor"}, {"$": 1}]
HOW = ["delete", "add", "copy", "replace"]


def places(tree: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything in nested dictionaries and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(found for key, value in items for found in places(value, (*path, key)))]


def at(tree: Any, path: tuple[Any, ...]) -> Any:
    """What stands there."""
    for key in path:
        tree = tree[key]
    return tree


def changed(tree: Any, path: tuple[Any, ...], how: str, junk: object, other: tuple[Any, ...]) -> Any:
    """The tree with one thing in it changed: deleted, added to, replaced by junk or by what stands elsewhere."""
    if not path:
        return junk
    tree = copy.deepcopy(tree)
    parent, value = at(tree, path[:-1]), at(tree, path)
    if how == "delete":
        del parent[path[-1]]
    elif how == "add" and isinstance(value, (dict, list)):
        value.update(more=junk) if isinstance(value, dict) else value.append(junk)
    else:
        parent[path[-1]] = copy.deepcopy(at(tree, other)) if how == "copy" else junk
    return tree
