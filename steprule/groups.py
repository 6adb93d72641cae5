"""Parameter groups by selector.

A selector says which parameters are meant: a glob over full names (``"*.bias"``, ``"blocks.{0..5}.*"``), a compiled
regular expression, a module class, a function of (name, parameter, module), or one of the ready-made ones, which
combine with ``&``, ``|`` and ``~``. Overrides map selectors to hyperparameters::

    overrides = {biases | norms: dict(weight_decay=0), "head.*": dict(lr=scale(10))}
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from numbers import Real
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor, nn

from steprule.names import nearest
from steprule.schedules import Schedule, arithmetic

__all__ = [
    "Scale",
    "Selectable",
    "Selector",
    "biases",
    "by_ndim",
    "embeddings",
    "exclusive",
    "fold",
    "groups",
    "layer_decay",
    "norms",
    "scale",
    "select",
    "selector",
    "untracked",
]

Test: TypeAlias = Callable[[str, Tensor, "nn.Module | None"], object]
Params: TypeAlias = "nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]]"
Overrides: TypeAlias = "Mapping[Any, Mapping[str, Any]]"


class Entry(NamedTuple):
    """A parameter as selectors see it.

    Attributes:
        name: its full name, the first one if it is tied; empty if it has none.
        parameter: the tensor.
        modules: the modules it lies in, from the outermost to its owner; empty where they are not known.
        aliases: the other names of a tied parameter.
    """

    name: str
    parameter: Tensor
    modules: tuple[nn.Module, ...] = ()
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class Selector:
    """Which parameters are meant. Selectors combine: ``norms | "*.bias"``, ``by_ndim(1) & ~norms``.

    Attributes:
        text: how it prints.
        test: whether it means an entry.
        needs: what it must know about parameters: ``"name"``, ``"module"`` or nothing.
        exclusive: no other exclusive entry may match the same parameter.
    """

    text: str
    test: Callable[[Entry], object]
    needs: frozenset[str] = frozenset()
    exclusive: bool = False

    def __repr__(self) -> str:
        return self.text

    def __and__(self, other: Selectable) -> Selector:
        first, second = self, selector(other)
        return Selector(
            f"({first} & {second})", lambda entry: first.test(entry) and second.test(entry), self.needs | second.needs
        )

    def __or__(self, other: Selectable) -> Selector:
        first, second = self, selector(other)
        return Selector(
            f"({first} | {second})", lambda entry: first.test(entry) or second.test(entry), self.needs | second.needs
        )

    def __rand__(self, other: Selectable) -> Selector:
        return selector(other) & self

    def __ror__(self, other: Selectable) -> Selector:
        return selector(other) | self

    def __invert__(self) -> Selector:
        return Selector(f"~{self}", lambda entry: not self.test(entry), self.needs)


Selectable: TypeAlias = "Selector | str | re.Pattern[str] | type[nn.Module] | Test"


def selector(what: Selectable) -> Selector:
    """Anything that selects as a :class:`Selector`, which combines with others.

    Args:
        what: a glob, in which ``*`` matches dots too, ``?`` one character, ``[0-9]`` one of some, ``{a,b}`` one of
            several texts and ``{0..11}`` or ``{0..10..2}`` one of a range of numbers; a compiled regular
            expression, searched for in the name; a module class: everything that lies in such a module;
            or a function of the name, the parameter and the module that owns it (None where it is not known).

    Raises:
        TypeError: it is none of these.

    Example:
        >>> selector("*.weight") & by_ndim(2)
        ('*.weight' & by_ndim(2))
    """
    if isinstance(what, Selector):
        return what
    if isinstance(what, str):
        matches = _glob(what).fullmatch
        return Selector(repr(what), lambda entry: matches(entry.name), frozenset({"name"}))
    if isinstance(what, re.Pattern):
        search = what.search
        return Selector(repr(what), lambda entry: search(entry.name), frozenset({"name"}))
    if isinstance(what, type) and issubclass(what, nn.Module):
        return Selector(
            what.__qualname__,
            lambda entry: any(isinstance(module, what) for module in entry.modules),
            frozenset({"module"}),
        )
    if callable(what) and not isinstance(what, (type, nn.Module)):
        return _from_function(what)
    raise TypeError(
        f"a selector is a glob, a compiled regular expression, a module class or a function of "
        f"(name, parameter, module), not {what!r}"
    )


def _from_function(test: Test) -> Selector:
    def matches(entry: Entry) -> object:
        return test(entry.name, entry.parameter, entry.modules[-1] if entry.modules else None)

    return Selector(getattr(test, "__qualname__", repr(test)), matches)


def by_ndim(*ndims: int) -> Selector:
    """Parameters with so many dimensions: ``by_ndim(1)`` is biases and the weights of norms.

    Raises:
        ValueError: no number of dimensions, or a negative one, is given.
    """
    if not ndims or any(not isinstance(ndim, int) or ndim < 0 for ndim in ndims):
        raise ValueError(f"ndims must be numbers of dimensions, got {ndims}")
    return Selector(f"by_ndim({', '.join(map(str, ndims))})", lambda entry: entry.parameter.ndim in ndims)


_NORM_CLASS = re.compile(r"Norm(?:\dd)?$")
_BIAS_NAME = re.compile(r"(?:^|[._])bias$|(?:^|\.)bias_[^.]*$")


def _owner_is(test: Callable[[nn.Module], object]) -> Callable[[Entry], object]:
    return lambda entry: entry.modules and test(entry.modules[-1])


norms = Selector(
    "norms",
    _owner_is(lambda owner: any(_NORM_CLASS.search(kind.__name__) for kind in type(owner).__mro__)),
    frozenset({"module"}),
)
"""What a normalization owns itself: a module whose class, or a base of it, is called ``...Norm`` or ``...Norm2d``."""

biases = Selector("biases", lambda entry: _BIAS_NAME.search(entry.name), frozenset({"name"}))
"""Parameters called ``bias``, ``..._bias`` or ``bias_...``."""

embeddings = Selector(
    "embeddings",
    _owner_is(lambda owner: isinstance(owner, (nn.Embedding, nn.EmbeddingBag))),
    frozenset({"module"}),
)
"""The tables of ``nn.Embedding`` and ``nn.EmbeddingBag``; a head tied to one is the same parameter."""


@dataclass(frozen=True)
class Scale:
    """A relative value: what the optimizer as a whole has, times ``factor``. Made by :func:`scale`."""

    factor: float

    def __repr__(self) -> str:
        return f"scale({self.factor})"

    def times(self, name: str, value: Any) -> Any:
        """``value`` scaled: a number, a tensor, a schedule or a function of the step.

        Raises:
            ValueError: ``value`` is something else.
        """
        if isinstance(value, Schedule) or (callable(value) and not isinstance(value, type)):
            return arithmetic("*", self.factor, value)
        if isinstance(value, bool) or not isinstance(value, (Real, Tensor)):
            raise ValueError(f"{self} can't multiply {name}={value!r}: it is not a number")
        return self.factor * value


def scale(factor: float) -> Scale:
    """A hyperparameter as a multiple of what the optimizer as a whole has, under a schedule too.

    Raises:
        ValueError: ``factor`` is not a finite number.
    """
    if not isinstance(factor, Real) or isinstance(factor, bool) or not math.isfinite(factor):
        raise ValueError(f"factor must be a finite number, got {factor!r}")
    return Scale(float(factor))


def exclusive(overrides: Overrides) -> dict[Selector, Mapping[str, Any]]:
    """The same overrides, of which no two may match the same parameter.

    Entries that may overlap go beside them: ``overrides={**exclusive({...}), "head.*": dict(lr=1e-3)}``.
    """
    return {replace(selector(what), exclusive=True): hyper for what, hyper in overrides.items()}


def groups(
    params: Params | Iterable[dict[str, Any]], base: Mapping[str, Any], overrides: Overrides | None = None
) -> list[dict[str, Any]]:
    """Parameter groups in torch's form, for any optimizer.

    Parameters with equal hyperparameters share a group; parameters keep their order, and groups come in the order
    of their first parameter. A tied parameter appears once, under its first name.

    Args:
        params: a module; tensors; (name, tensor) pairs; or group dictionaries, each of which is split by itself.
        base: hyperparameters of the optimizer as a whole, all that ``overrides`` may name.
        overrides: selector -> hyperparameters. Where several match, later entries win key by key.
            A value may be :func:`scale`: a multiple of what the parameter has without overrides.

    Returns:
        Dictionaries with ``params``, ``param_names`` (where names are known) and every hyperparameter.

    Raises:
        ValueError: a selector matches nothing, or needs names or modules that are not known; a hyperparameter is
            not in ``base``; a parameter is matched by two entries that are :func:`exclusive`.
        TypeError: a selector or its hyperparameters are of the wrong type.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
        >>> for group in groups(model, dict(lr=0.1, weight_decay=0.1), {norms | biases: dict(weight_decay=0)}):
        ...     print(group["param_names"], group["lr"], group["weight_decay"])
        ['0.weight'] 0.1 0.1
        ['0.bias', '1.weight', '1.bias'] 0.1 0
    """
    sections = _sections(params, base)
    rules = [(selector(what), hyper) for what, hyper in (overrides or {}).items()]
    _check_names(rules, set(base).union(*(hyper for hyper, _ in sections)))
    _check_selectors([rule for rule, _ in rules], [entry for _, part in sections for entry in part])
    return [group for hyper, part in sections for group in _split(part, hyper, rules)]


Rules: TypeAlias = "Sequence[tuple[Selector, Mapping[str, Any]]]"


def _sections(
    params: Params | Iterable[dict[str, Any]], base: Mapping[str, Any]
) -> list[tuple[dict[str, Any], list[Entry]]]:
    if isinstance(params, (nn.Module, Tensor, set)):
        return [(dict(base), entries(params))]
    given: list[Any] = list(params)
    if not given or not all(isinstance(group, dict) for group in given):
        return [(dict(base), entries(given))]
    return [({**base, **_resolved(base, _hyper(group))}, entries(_named(group))) for group in given]


def _hyper(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in ("params", "param_names")}


def _named(group: Mapping[str, Any]) -> Any:
    params = [group["params"]] if isinstance(group["params"], Tensor) else group["params"]
    return zip(group["param_names"], params, strict=True) if "param_names" in group else params


def _resolved(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.times(k, base.get(k)) if isinstance(v, Scale) else v for k, v in over.items()}


def _split(part: Sequence[Entry], base: dict[str, Any], rules: Rules) -> list[dict[str, Any]]:
    rules = [(rule, _resolved(base, over)) for rule, over in rules]
    found: dict[object, dict[str, Any]] = {}
    for entry in part:
        matching = [(rule, over) for rule, over in rules if rule.test(entry)]
        if len(clash := [str(rule) for rule, _ in matching if rule.exclusive]) > 1:
            raise ValueError(f"{_called(entry)} is matched by {' and '.join(clash)}, which are exclusive")
        hyper = dict(chain(base.items(), *(over.items() for _, over in matching)))
        key = frozenset((name, _key(value)) for name, value in hyper.items())
        group = found.setdefault(key, {"params": [], "param_names": [], **hyper})
        group["params"].append(entry.parameter)
        group["param_names"].append(entry.name)
    for group in found.values():
        if not all(group["param_names"]):
            del group["param_names"]
    return list(found.values()) or [{"params": [], **base}]


def _key(value: Any) -> object:
    if isinstance(value, (list, tuple)):
        return tuple(map(_key, value))
    return id(value) if isinstance(value, Tensor) or type(value).__hash__ is None else value


def _called(entry: Entry) -> str:
    return entry.name or f"a parameter of shape {tuple(entry.parameter.shape)}"


def _check_names(rules: Rules, known: set[str]) -> None:
    for rule, over in rules:
        if not isinstance(over, Mapping):
            raise TypeError(f"the override of {rule} must be a dictionary of hyperparameters, got {over!r}")
        for name in over:
            if name not in known:
                hint = nearest(str(name), sorted(known)) or f"; there are {', '.join(sorted(known))}"
                raise ValueError(f"unknown hyperparameter {name!r} in the override of {rule}{hint}")


def _check_selectors(rules: Iterable[Selector], among: Sequence[Entry]) -> None:
    for rule in rules:
        _chosen(rule, among)


def _chosen(rule: Selector, among: Sequence[Entry]) -> list[Entry]:
    if "module" in rule.needs and not all(entry.modules for entry in among):
        raise ValueError(f"{rule} selects by module, and only parameters were given: give the nn.Module itself")
    if "name" in rule.needs and not all(entry.name for entry in among):
        raise ValueError(
            f"{rule} selects by name, and parameters without names were given: "
            f"give the nn.Module or model.named_parameters()"
        )
    found = [entry for entry in among if rule.test(entry)]
    if not found:
        raise ValueError(f"{rule} matches no parameter{_hint(rule, among)}")
    return found


def _hint(rule: Selector, among: Sequence[Entry]) -> str:
    for entry in among:
        for alias in entry.aliases:
            if rule.test(entry._replace(name=alias)):
                return f"; {alias} is tied to {entry.name} and goes by that name"
    names = [entry.name for entry in among]
    parts = [name.split(".") for name in names]
    globs = [".".join(p[:i]) + ".*" for p in parts for i in range(1, len(p))] + [f"*.{p[-1]}" for p in parts]
    classes = [type(module).__qualname__ for entry in among for module in entry.modules]
    return nearest(str(rule).strip("'"), list(dict.fromkeys([*globs, *names, *classes])))


def entries(params: Params) -> list[Entry]:
    """The parameters as selectors see them; those with names once each, however often they are tied.

    Raises:
        TypeError: ``params`` is not a module or an ordered collection of tensors or (name, tensor) pairs.
    """
    if isinstance(params, (Tensor, set)):
        raise TypeError(f"params must be an nn.Module or a list of tensors or pairs, got {type(params).__name__}")
    lineage = _lineage(params) if isinstance(params, nn.Module) else {}
    given = params.named_parameters(remove_duplicate=False) if isinstance(params, nn.Module) else params
    found: dict[object, Entry] = {}
    for item in given:
        name, parameter = item if isinstance(item, tuple) else ("", item)
        if not isinstance(parameter, Tensor):
            raise TypeError(f"parameters must be tensors, but one of them is {type(parameter).__name__}")
        key = id(parameter) if name else object()
        if key in found:
            found[key] = found[key]._replace(aliases=(*found[key].aliases, name))
        else:
            found[key] = Entry(name, parameter, lineage.get(name.rpartition(".")[0], ()))
    return list(found.values())


def _lineage(model: nn.Module) -> dict[str, tuple[nn.Module, ...]]:
    found: dict[str, tuple[nn.Module, ...]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        above = found[path.rpartition(".")[0]] if path else ()
        found[path] = (*above, module)
    return found


def select(params: Params, what: Selectable) -> list[tuple[str, Tensor]]:
    """The parameters that a selector means, as (name, parameter); the name is empty if there is none.

    Raises:
        ValueError: it matches nothing, or needs names or modules that are not known.
        TypeError: it is not a selector.

    Example:
        >>> [name for name, _ in select(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)), norms)]
        ['1.weight', '1.bias']
    """
    return [(entry.name, entry.parameter) for entry in _chosen(selector(what), entries(params))]


def untracked(model: nn.Module, params: Iterable[Tensor]) -> list[tuple[str, nn.Parameter]]:
    """The (name, parameter) of a model that require a gradient and are not among ``params``.

    Example:
        >>> model = nn.Linear(2, 3)
        >>> [name for name, _ in untracked(model, [model.weight])]
        ['bias']
    """
    known = {id(parameter) for parameter in params}
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad and id(p) not in known]


def layer_decay(
    model: nn.Module, decay: float, order: Sequence[Selectable] | None = None
) -> dict[Selector, dict[str, Scale]]:
    r"""Overrides with a rate that falls from layer to layer towards the input: :math:`lr \cdot decay^{n - 1 - i}`.

    For fine-tuning (ELECTRA, https://arxiv.org/abs/2003.10555; BEiT, https://arxiv.org/abs/2106.08254). The
    layers are taken from the module tree in the order of its definition: first what stands before the blocks, and
    every embedding beside them; then each block in every ``nn.ModuleList`` and ``nn.Sequential``; last what
    stands after them. Blocks are of a class of which containers hold more than one, and have modules of their own;
    in a model that is made of plain layers alone, the layers with a matrix. A block is one layer, whatever is
    inside it; what stands between two blocks goes with the one before.

    Args:
        model: the module.
        decay: factor from a layer to the one before it, above 0.
        order: the layers by hand, the lowest first: one selector for each; a parameter that several match goes
            to the first. Together they cover the model.

    Returns:
        Overrides for ``groups`` and for the ``overrides`` of an optimizer, alone or merged with others; the last
        layer has the rate of the optimizer and needs none.

    Raises:
        ValueError: no layers were found; ``decay`` is not a positive number; ``order`` leaves parameters out or
            one of its selectors adds none.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> layer_decay(model, 0.5)
        {0.{weight,bias}: {'lr': scale(0.25)}, 2.{weight,bias}: {'lr': scale(0.5)}}
    """
    if not isinstance(decay, Real) or isinstance(decay, bool) or not 0 < decay < math.inf:
        raise ValueError(f"decay must be a positive number, got {decay!r}")
    known = entries(model)
    layers = _found_layers(model, known) if order is None else _ordered_layers(known, order)
    powers = range(len(layers) - 1, 0, -1)
    return {_exactly(layer): {"lr": scale(decay**power)} for layer, power in zip(layers, powers, strict=False)}


def _exactly(layer: Sequence[Entry]) -> Selector:
    tensors = {entry.parameter for entry in layer}
    return Selector(" ".join(fold(entry.name for entry in layer)), lambda entry: entry.parameter in tensors)


def _ordered_layers(known: Sequence[Entry], order: Sequence[Selectable]) -> list[list[Entry]]:
    left = {id(entry.parameter): entry for entry in known}
    layers = []
    for rule in map(selector, order):
        layer = [entry for entry in _chosen(rule, known) if left.pop(id(entry.parameter), None)]
        if not layer:
            raise ValueError(f"{rule} in order matches only parameters of the layers before it")
        layers.append(layer)
    if left:
        raise ValueError(f"order leaves out {' '.join(fold(entry.name for entry in left.values()))}")
    return layers


def _found_layers(model: nn.Module, known: Sequence[Entry]) -> list[list[Entry]]:
    left = {id(entry.parameter): entry for entry in known}
    stem: list[Entry] = []
    head: list[Entry] = []
    blocks: list[list[Entry]] = []
    for is_block, params in _units(model, _block_classes(model)):
        unit = [left.pop(id(parameter)) for parameter in params if id(parameter) in left]
        if is_block:
            if head:
                blocks[-1].extend(head)
                head = []
            blocks.append(unit)
        else:
            for entry in unit:
                (head if blocks and not embeddings.test(entry) else stem).append(entry)
    layers = [layer for layer in (stem, *blocks, head) if layer]
    if len(layers) < 2:
        raise ValueError(
            f"no ModuleList or Sequential of blocks was found in {type(model).__name__}: "
            f"give the layers with order=[...], the lowest first"
        )
    return layers


_CONTAINERS = (nn.ModuleList, nn.Sequential)
Classes: TypeAlias = "set[type[nn.Module]]"


def _block_classes(model: nn.Module) -> Classes:
    containers = [module for module in model.modules() if isinstance(module, _CONTAINERS)]
    children = [child for container in containers for child in container.children()]
    if blocks := _repeated(child for child in children if _is_composite(child)):
        return blocks
    plain = all(isinstance(child, _CONTAINERS) or not _is_composite(child) for child in model.children())
    return _repeated(child for child in children if _has_matrix(child)) if plain else set()


def _repeated(modules: Iterable[nn.Module]) -> Classes:
    return {kind for kind, number in Counter(map(type, modules)).items() if number > 1}


def _is_composite(module: nn.Module) -> bool:
    return any(any(True for _ in child.parameters()) for child in module.children())


def _has_matrix(module: nn.Module) -> bool:
    return any(parameter.ndim > 1 for parameter in module.parameters())


def _units(module: nn.Module, classes: Classes) -> Iterator[tuple[bool, list[nn.Parameter]]]:
    stack = _is_stack(module, classes)
    yield False, list(module.parameters(recurse=False))
    for child in module.children():
        is_block = stack and type(child) in classes
        if (not is_block or isinstance(child, _CONTAINERS)) and _has_stack(child, classes):
            yield from _units(child, classes)
        else:
            yield is_block, list(child.parameters())


def _is_stack(module: nn.Module, classes: Classes) -> bool:
    return isinstance(module, _CONTAINERS) and any(type(child) in classes for child in module.children())


def _has_stack(module: nn.Module, classes: Classes) -> bool:
    return any(_is_stack(part, classes) for part in module.modules())


_NUMBERED = re.compile(r"(\D*)(0|[1-9]\d*)(\D*)")
_MOST_WORDS, _LONGEST = 3, 30


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
    rows: list[Row] = [tuple((part,) for part in name.split(".")) for name in listed]
    rows = _gathered(_gathered(rows, _stem), lambda words: None)
    return [_pattern(row, others) for row in rows]


Row: TypeAlias = "tuple[tuple[str, ...], ...]"


def _gathered(rows: list[Row], kind: Callable[[tuple[str, ...]], object]) -> list[Row]:
    """Rows that differ at one place only, and there in words of one kind, become one row; from the last place on."""
    for place in range(max(map(len, rows), default=0) - 1, -1, -1):
        found: dict[object, Row] = {}
        for row in rows:
            sets = tuple(map(frozenset, row))
            rest = (kind(row[place]), sets[:place], sets[place + 1 :]) if place < len(row) else None
            key = rest or sets
            first = found.get(key)
            found[key] = (*first[:place], (*first[place], *row[place]), *first[place + 1 :]) if first else row
        rows = list(found.values())
    return rows


def _stem(words: tuple[str, ...]) -> object:
    found = _NUMBERED.fullmatch(words[0])
    return (found[1], found[3]) if found else words


def _pattern(row: Row, others: Iterable[str]) -> str:
    texts = [_braces(words) for words in row]
    for i, words in enumerate(row):
        if (len(words) > _MOST_WORDS and ".." not in texts[i]) or len(texts[i]) > _LONGEST:
            starred = ".".join([*texts[:i], "*", *texts[i + 1 :]])
            if len(words) > 1 and not any(map(_glob(starred).fullmatch, others)):
                texts[i] = "*"
    return ".".join(texts)


def _braces(words: tuple[str, ...]) -> str:
    if len(words) == 1:
        return words[0]
    found = [_NUMBERED.fullmatch(word) for word in words]
    stems = {(match[1], match[3]) if match else None for match in found}
    if len(stems) > 1 or None in stems:
        return f"{{{','.join(words)}}}"
    numbers = sorted(int(match[2]) for match in found if match)
    ((before, after),) = (stem for stem in stems if stem)
    return f"{before}{{{_ranges(numbers)}}}{after}"


def _ranges(numbers: Sequence[int]) -> str:
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


_GLOB_TOKENS = re.compile(r"\*|\{[^{}]*\}|\[!?\]?[^\]]*\]|.", re.DOTALL)


def _glob(text: str) -> re.Pattern[str]:
    return re.compile("".join(map(_glob_token, _GLOB_TOKENS.findall(text))), re.DOTALL)


def _glob_token(token: str) -> str:
    if token[0] == "{" and len(token) > 1:
        return f"(?:{'|'.join(_alternatives(token[1:-1]))})"
    if token == "*":
        return ".*"
    return fnmatch.translate(token).removeprefix("(?s:")[:-3]


def _alternatives(text: str) -> Iterator[str]:
    for part in text.split(","):
        if ends := re.fullmatch(r"(\d+)\.\.(\d+)(?:\.\.(\d+))?", part):
            first, last, step = int(ends[1]), int(ends[2]), int(ends[3] or 1)
            yield from map(str, range(first, last + 1, step))
        else:
            yield re.escape(part)
