"""Globs over parameter names, both ways: what a glob matches, and the few globs that say what names there are."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TypeAlias

__all__ = ["compile_glob", "fold"]

Parts: TypeAlias = "tuple[tuple[str, ...], ...]"

GLOB_TOKENS = re.compile(r"\*|\{[^{}]*\}|\[!?\]?[^\]]*\]|.", re.DOTALL)
NUMBERED = re.compile(r"(\D*)(0|[1-9]\d*)(\D*)")
MOST_WORDS, LONGEST = 3, 30


def compile_glob(text: str) -> re.Pattern[str]:
    """The names that a glob means, as a regular expression for ``fullmatch``."""
    return re.compile("".join(map(glob_token, GLOB_TOKENS.findall(text))), re.DOTALL)


def glob_token(token: str) -> str:
    if token[0] == "{" and len(token) > 1:
        return f"(?:{'|'.join(alternatives(token[1:-1]))})"
    if token == "*":
        return ".*"
    return fnmatch.translate(token).removeprefix("(?s:")[:-3]


def alternatives(text: str) -> Iterator[str]:
    for part in text.split(","):
        if ends := re.fullmatch(r"(\d+)\.\.(\d+)(?:\.\.(\d+))?", part):
            first, last, step = int(ends[1]), int(ends[2]), int(ends[3] or 1)
            yield from map(str, range(first, last + 1, step))
        else:
            yield re.escape(part)


def fold(names: Iterable[str], among: Iterable[str] = ()) -> list[str]:
    """Names as few short globs: ``blocks.{0..11}.attn.*.weight``.

    Args:
        names: full parameter names.
        among: all names there are. ``*`` stands for more than three words, and only where it matches nothing of
            ``among`` but ``names``; so with all names given the globs mean exactly ``names``.

    Returns:
        Globs, in the order of the first name in each.

    Example:
        >>> fold(f"blocks.{i}.{part}.{kind}" for i in range(100) for part in "qkvo" for kind in ("weight", "bias"))
        ['blocks.{0..99}.*.{weight,bias}']
    """
    listed = list(dict.fromkeys(names))
    others = set(among).difference(listed)
    rows: list[Parts] = [tuple((part,) for part in name.split(".")) for name in listed]
    rows = merged_rows(merged_rows(rows, stem), lambda words: None)
    return [pattern(row, others) for row in rows]


def merged_rows(rows: list[Parts], kind: Callable[[tuple[str, ...]], object]) -> list[Parts]:
    """Rows that differ at one place only, and there in words of one kind, become one row; from the last place on."""
    for place in range(max(map(len, rows), default=0) - 1, -1, -1):
        found: dict[object, Parts] = {}
        for row in rows:
            sets = tuple(map(frozenset, row))
            rest = (kind(row[place]), sets[:place], sets[place + 1 :]) if place < len(row) else None
            key = rest or sets
            first = found.get(key)
            found[key] = (*first[:place], (*first[place], *row[place]), *first[place + 1 :]) if first else row
        rows = list(found.values())
    return rows


def stem(words: tuple[str, ...]) -> object:
    found = NUMBERED.fullmatch(words[0])
    return (found[1], found[3]) if found else words


def pattern(row: Parts, others: Iterable[str]) -> str:
    texts = [braces(words) for words in row]
    for i, words in enumerate(row):
        if (len(words) > MOST_WORDS and ".." not in texts[i]) or len(texts[i]) > LONGEST:
            starred = ".".join([*texts[:i], "*", *texts[i + 1 :]])
            if len(words) > 1 and not any(map(compile_glob(starred).fullmatch, others)):
                texts[i] = "*"
    return ".".join(texts)


def braces(words: tuple[str, ...]) -> str:
    if len(words) == 1:
        return words[0]
    found = [NUMBERED.fullmatch(word) for word in words]
    stems = {(match[1], match[3]) if match else None for match in found}
    if len(stems) > 1 or None in stems:
        return f"{{{','.join(words)}}}"
    numbers = sorted(int(match[2]) for match in found if match)
    ((before, after),) = (stem for stem in stems if stem)
    return f"{before}{{{ranges(numbers)}}}{after}"


def ranges(numbers: Sequence[int]) -> str:
    steps = {b - a for a, b in pairwise(numbers)}
    if len(numbers) > 3 and len(steps) == 1 and steps != {1}:
        return f"{numbers[0]}..{numbers[-1]}..{steps.pop()}"
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}..{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)
