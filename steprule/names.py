"""Parameter names as two sides know them: seen through wrappers, renamed, and brought together."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TypeAlias

from steprule.messages.spelling import nearest

__all__ = ["Rename", "match", "part_for", "refuse_unknown", "unwrapped"]

Rename: TypeAlias = Mapping[str, str] | Callable[[str], str]

_WRAPPER = re.compile(r"(?<![^.])(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def unwrapped(name: str) -> str:
    """The name without what DistributedDataParallel, torch.compile and FSDP put into it.

    Example:
        >>> unwrapped("module._orig_mod.blocks.0._checkpoint_wrapped_module.fc.weight")
        'blocks.0.fc.weight'
    """
    return _WRAPPER.sub("", name)


def part_for(rename: Rename | None, names: Sequence[str]) -> Rename | None:
    """What of a mapping is about these names; a function is about all.

    Example:
        >>> part_for({"encoder": "body", "head": "top"}, ["encoder.weight", "encoder.bias"])
        {'encoder': 'body'}
    """
    if not isinstance(rename, Mapping):
        return rename
    seen = [f"{unwrapped(name)}." for name in names]
    part = {old: new for old, new in rename.items() if any(name.startswith(f"{unwrapped(old)}.") for name in seen)}
    return part or None


def refuse_unknown(option: str, wanted: Iterable[str], names: Collection[str], where: str) -> None:
    """Refuses an option that asks for names which are not there.

    Raises:
        ValueError: with the nearest names.
    """
    known = {unwrapped(name) for name in names}
    strange = [name for name in wanted if unwrapped(name) not in known]
    if strange:
        what = "; ".join(f"{name!r}{nearest(name, names)}" for name in sorted(strange))
        raise ValueError(f"{option} names nothing in {where}: {what}")


def match(current: Sequence[str], saved: Sequence[str], rename: Rename | None = None) -> list[int | None]:
    """For each current name the index of its saved name, or None.

    Names that agree as they stand are taken so; otherwise both sides are seen through their wrappers.

    Args:
        current: the names here.
        saved: the names in the dictionary or file.
        rename: saved name -> current name, as a function of the name without wrappers, or as a mapping
            whose keys are full names or whole leading parts of names (``{"encoder": "backbone.encoder"}``).

    Raises:
        ValueError: two names of one side become one, or an entry of ``rename`` names nothing.
        TypeError: ``rename`` returned something that is not a string.

    Example:
        >>> match(["fc.weight", "fc.bias"], ["module.fc.bias", "module.fc.weight"])
        [1, 0]
    """
    if rename is None and list(current) == list(saved):
        return list(range(len(current)))
    if rename is None and len(set(current)) == len(current) and sorted(current) == sorted(saved):
        return _lookup(current, saved)
    here = [unwrapped(name) for name in current]
    there = _renamed([unwrapped(name) for name in saved], rename)
    _refuse_clashes(here, current, "the optimizer's")
    _refuse_clashes(there, saved, "the saved")
    return _lookup(here, there)


def _lookup(current: Sequence[str], saved: Sequence[str]) -> list[int | None]:
    place: dict[str, int] = {name: i for i, name in enumerate(saved)}
    return [place.get(name) for name in current]


def _refuse_clashes(keys: Sequence[str], names: Sequence[str], whose: str) -> None:
    first: dict[str, int] = {}
    clashes = [
        f"{names[first[key]]!r} and {names[i]!r} are both {key!r}"
        for i, key in enumerate(keys)
        if first.setdefault(key, i) != i
    ]
    if clashes:
        raise ValueError(f"{whose} parameter names are ambiguous: {'; '.join(clashes)}; tell them apart with rename=")


def _renamed(names: list[str], rename: Rename | None) -> list[str]:
    if rename is None:
        return names
    if not callable(rename) and not isinstance(rename, Mapping):
        raise TypeError(f"rename= must be a mapping or a function, got {rename!r}")
    if isinstance(rename, Mapping):
        return _renamed_by_mapping(names, {unwrapped(old): new for old, new in rename.items()})
    new_names = [rename(name) for name in names]
    for old, new in zip(names, new_names, strict=True):
        if not isinstance(new, str):
            raise TypeError(f"rename({old!r}) returned {type(new).__name__}, not a string")
    return new_names


def _renamed_by_mapping(names: list[str], rename: Mapping[str, str]) -> list[str]:
    unused = set(rename)
    new_names = []
    for name in names:
        parts = name.split(".")
        heads = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
        head = next((h for h in heads if h in rename), None)
        if head is not None:
            unused.discard(head)
            name = rename[head] + name[len(head) :]
        new_names.append(name)
    refuse_unknown("rename=", unused, names, "what is loaded")
    return new_names
