"""Selectors: which parameters are meant.

A glob over full names (``"*.bias"``, ``"blocks.{0..5}.*"``), a compiled regular expression, a module class, a
function of (name, parameter, module), or one of the ready-made ones, which combine with ``&``, ``|`` and ``~``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from steprule.messages.spelling import nearest

from .globs import compile_glob

__all__ = [
    "NamedParameter",
    "Params",
    "Selectable",
    "Selector",
    "biases",
    "by_ndim",
    "chosen",
    "dimensions",
    "embeddings",
    "entries",
    "guesses",
    "hidden_matrices",
    "norms",
    "outer_weights",
    "select",
    "selector",
    "untracked",
]

Test: TypeAlias = Callable[[str, Tensor, "nn.Module | None"], object]
Params: TypeAlias = "nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]]"


class NamedParameter(NamedTuple):
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
        guess: what it guessed of a model, in words; None where it is certain.
        spelled: whether somebody wrote a name, which may be misspelt: it is a glob or a regular expression.
        function: whether somebody's function has a part in it, which may look at anything.
        written: those that it is put together of; each must match something by itself.
    """

    text: str
    test: Callable[[NamedParameter], object]
    needs: frozenset[str] = frozenset()
    exclusive: bool = False
    guess: Callable[[nn.Module], str | None] | None = None
    spelled: bool = False
    function: bool = False
    written: tuple[Selector, ...] = ()

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return f"<code>{escape(self.text)}</code>"

    def __and__(self, other: Selectable) -> Selector:
        first, second = self, selector(other)
        return first.joined(second, "&", lambda entry: first.test(entry) and second.test(entry))

    def __or__(self, other: Selectable) -> Selector:
        first, second = self, selector(other)
        return first.joined(second, "|", lambda entry: first.test(entry) or second.test(entry))

    def joined(self, other: Selector, sign: str, test: Callable[[NamedParameter], object]) -> Selector:
        """Two selectors as one."""
        return Selector(
            f"({self} {sign} {other})",
            test,
            self.needs | other.needs,
            guess=self.guess or other.guess,
            function=self.function or other.function,
            written=self.names() + other.names(),
        )

    def names(self) -> tuple[Selector, ...]:
        return (self,) if self.spelled else self.written

    def __rand__(self, other: Selectable) -> Selector:
        return selector(other) & self

    def __ror__(self, other: Selectable) -> Selector:
        return selector(other) | self

    def __invert__(self) -> Selector:
        kept: dict[str, Any] = dict(guess=self.guess, function=self.function, written=self.names())
        return Selector(f"~{self}", lambda entry: not self.test(entry), self.needs, **kept)


Selectable: TypeAlias = "Selector | str | re.Pattern[str] | type[nn.Module] | Test"


def selector(what: Selectable) -> Selector:
    """Anything that selects as a :class:`Selector`, which combines with others.

    Args:
        what: a glob, in which ``*`` matches dots too, ``?`` one character, ``[0-9]`` one of some, ``{a,b}`` one of
            several texts and ``{0..11}`` or ``{0..10..2}`` one of a range of numbers; a compiled regular
            expression, searched for in the name; a module class: everything that lies in such a module;
            or a function of the name, the parameter and the module that owns it (None where it is not known).

    Raises:
        TypeError: it is none of these, or a function that does not take three.

    Example:
        >>> selector("*.weight") & by_ndim(2)
        ('*.weight' & by_ndim(2))
    """
    if isinstance(what, Selector):
        return what
    if isinstance(what, str):
        matches = compile_glob(what).fullmatch
        return Selector(repr(what), lambda entry: matches(entry.name), frozenset({"name"}), spelled=True)
    if isinstance(what, re.Pattern):
        search = what.search
        return Selector(repr(what), lambda entry: search(entry.name), frozenset({"name"}), spelled=True)
    if isinstance(what, type) and issubclass(what, nn.Module):
        return Selector(
            what.__qualname__,
            lambda entry: any(isinstance(module, what) for module in entry.modules),
            frozenset({"module"}),
        )
    if callable(what) and not isinstance(what, (type, nn.Module)):
        return from_function(what)
    raise TypeError(
        f"a selector is a glob, a compiled regular expression, a module class or a function of "
        f"(name, parameter, module), not {what!r}"
    )


def from_function(test: Test) -> Selector:
    text = getattr(test, "__qualname__", repr(test))
    check_takes_three(test, text)

    def matches(entry: NamedParameter) -> object:
        module = entry.modules[-1] if entry.modules else None
        try:
            return test(entry.name or Nameless(), entry.parameter, module)
        except NamelessError:
            raise ValueError(f"{text} looks at names, {NO_NAMES}") from None
        except (AttributeError, TypeError) as error:
            if module is None and "NoneType" in str(error):
                raise ValueError(f"{text} looks at the module ({error}), {NO_MODULES}") from error
            raise

    return Selector(text, matches, function=True)


def check_takes_three(test: Test, text: str) -> None:
    try:
        takes = inspect.signature(test)
    except (TypeError, ValueError):  # some functions that are not written in Python tell nobody
        return
    try:
        takes.bind("", None, None)
    except TypeError as error:
        raise TypeError(
            f"{text}{takes} cannot select ({error}): a function that selects is called with three, as in "
            "lambda name, parameter, module: parameter.ndim < 2"
        ) from None


class NamelessError(Exception):
    """Somebody looked at the name of a parameter that has none."""


def refused(*args: Any) -> Any:
    raise NamelessError


class Nameless(str):
    """The name of a parameter that has none: it is empty, and can be asked for nothing else."""

    __slots__ = ()
    __contains__ = __getitem__ = __hash__ = __iter__ = __add__ = __mod__ = __format__ = refused
    __lt__ = __le__ = __gt__ = __ge__ = __getattribute__ = refused

    def __eq__(self, other: object) -> bool:
        return other == "" or bool(refused())


def by_ndim(*ndims: int) -> Selector:
    """Parameters with so many dimensions: ``by_ndim(1)`` is biases and the weights of norms.

    Raises:
        ValueError: no number of dimensions, or a negative one, is given.
    """
    if not ndims or any(not isinstance(ndim, int) or ndim < 0 for ndim in ndims):
        raise ValueError(f"ndims must be numbers of dimensions, got {ndims}")
    return Selector(
        f"by_ndim({', '.join(map(str, ndims))})", lambda entry: dimensions(entry.name, entry.parameter) in ndims
    )


def dimensions(name: str, parameter: Tensor) -> int:
    """How many dimensions a parameter has.

    Raises:
        ValueError: it has none yet, as that of a lazy module before its first input.
    """
    if is_lazy(parameter):
        raise ValueError(
            f"parameter {name} has no shape yet, by which it could be told what it is: let the model see one input "
            "before the optimizer is made"
        )
    return parameter.ndim


NORM_CLASS: re.Pattern[str] = re.compile(r"Norm(?:\dd)?$")
BIAS_NAME: re.Pattern[str] = re.compile(r"(?:^|[._])bias$|(?:^|\.)bias_[^.]*$")


def owner_is(test: Callable[[nn.Module], object]) -> Callable[[NamedParameter], object]:
    return lambda entry: entry.modules and test(entry.modules[-1])


norms: Selector = Selector(
    "norms",
    owner_is(lambda owner: any(NORM_CLASS.search(kind.__name__) for kind in type(owner).__mro__)),
    frozenset({"module"}),
)
"""What a normalization owns itself: a module whose class, or a base of it, is called ``...Norm`` or ``...Norm2d``."""


biases: Selector = Selector("biases", lambda entry: BIAS_NAME.search(entry.name), frozenset({"name"}))
"""Parameters called ``bias``, ``..._bias`` or ``bias_...``."""


embeddings: Selector = Selector(
    "embeddings",
    owner_is(lambda owner: isinstance(owner, (nn.Embedding, nn.EmbeddingBag))),
    frozenset({"module"}),
)
"""The tables of ``nn.Embedding`` and ``nn.EmbeddingBag``; a head tied to one is the same parameter."""


TABLE_NAME: re.Pattern[str] = re.compile(
    r"emb(?:ed|edding|eddings)?$|(?:^|_)(?:token|tokens|pos|position|positions|wpe|wte)(?:_|$)"
)
TABLES = (nn.Embedding, nn.EmbeddingBag)


def outer_weights(model: nn.Module) -> tuple[dict[int, str], str | None]:
    """The weights of embeddings and of the last layer, which no hidden layer owns.

    The last layer is what the model says (``get_output_embeddings()``), else a layer that shares its weight with an
    embedding, else the last that owns a weight of two dimensions or more. A parameter that is no layer's weight is a
    table if it is called so (``pos_embed``, ``cls_token``).

    Returns:
        Their names by identity, and in words what was guessed.
    """
    named = dict(model.named_modules())
    own = [(path, m, name, p) for path, m in named.items() for name, p in m.named_parameters(recurse=False)]
    own = [entry for entry in own if not is_lazy(entry[-1])]
    full = {id(p): f"{path}.{name}".lstrip(".") for path, _, name, p in reversed(own)}
    tables = {id(p) for _, m, _, p in own if isinstance(m, TABLES)}
    by_name = [
        id(p) for _, m, name, p in own if not isinstance(m, TABLES) and name != "weight" and TABLE_NAME.search(name)
    ]
    layers = [p for _, m, name, p in own if name == "weight" and p.ndim > 1 and not isinstance(m, TABLES)]
    ask: Any = getattr(model, "get_output_embeddings", None)
    said = ask() if ask is not None else None
    last = [said.weight] if said is not None else [p for p in layers if id(p) in tables]
    guessed = [] if last else layers[-1:]
    words = [f"{full[id(p)]} for the last layer" for p in guessed] + [f"{full[key]} for a table" for key in by_name]
    found = {*tables, *by_name, *map(id, last), *map(id, guessed)}
    return {key: full[key] for key in found if key in full}, ", ".join(words) or None


def is_hidden_matrix(entry: NamedParameter) -> bool:
    return dimensions(entry.name, entry.parameter) > 1 and id(entry.parameter) not in outer_weights(entry.modules[0])[0]


hidden_matrices: Selector = Selector(
    "hidden_matrices",
    is_hidden_matrix,
    frozenset({"module"}),
    guess=lambda model: outer_weights(model)[1],
)
"""Weights of at least two dimensions that are neither embeddings nor the last layer, tied ones included: those that
:class:`steprule.Muon` is for. Where the model does not say which its last layer is, it is guessed, and
``print(optimizer)`` shows the guess; another selector beside it puts it right: ``hidden_matrices & ~"head.*"``."""


def guesses(what: Iterable[Selectable], model: object) -> list[str]:
    """What selectors guessed of a model, each once."""
    if not isinstance(model, nn.Module):
        return []
    known = [rule for rule in map(selector, what) if rule.guess is not None]
    return list(dict.fromkeys(f"guessed: {words}" for rule in known if rule.guess and (words := rule.guess(model))))


def entries(params: Params) -> list[NamedParameter]:
    """The parameters as selectors see them; those with names once each, however often they are tied.

    Raises:
        TypeError: ``params`` is not a module or an ordered collection of tensors or (name, tensor) pairs.
    """
    if isinstance(params, (Tensor, set)):
        raise TypeError(f"params must be an nn.Module or a list of tensors or pairs, got {type(params).__name__}")
    lineage = lineages(params) if isinstance(params, nn.Module) else {}
    given = params.named_parameters(remove_duplicate=False) if isinstance(params, nn.Module) else params
    found: dict[object, NamedParameter] = {}
    for item in given:
        name, parameter = item if isinstance(item, tuple) else ("", item)
        if not isinstance(parameter, Tensor):
            raise TypeError(f"parameters must be tensors, but one of them is {type(parameter).__name__}")
        key = id(parameter) if name else object()
        if key in found:
            found[key] = found[key]._replace(aliases=(*found[key].aliases, name))
        else:
            found[key] = NamedParameter(name, parameter, lineage.get(name.rpartition(".")[0], ()))
    return list(found.values())


def lineages(model: nn.Module) -> dict[str, tuple[nn.Module, ...]]:
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
    return [(entry.name, entry.parameter) for entry in chosen(selector(what), entries(params))]


def chosen(rule: Selector, among: Sequence[NamedParameter]) -> list[NamedParameter]:
    """Those that a selector means.

    Raises:
        ValueError: it matches nothing, or needs names or modules that are not known.
    """
    nameless = not all(entry.name for entry in among)
    moduleless = not all(entry.modules for entry in among)
    if "module" in rule.needs and moduleless:
        raise ValueError(f"{rule} selects by module, {NO_MODULES}")
    if "name" in rule.needs and nameless:
        raise ValueError(f"{rule} selects by name, {NO_NAMES}")
    for part in rule.written:
        if not any(part.test(entry) for entry in among):
            raise ValueError(f"{part} in {rule} matches no parameter{hint(part, among)}")
    found = [entry for entry in among if rule.test(entry)]
    if not found:
        unseen = (f", {NO_NAMES}" if nameless else f", {NO_MODULES}") if rule.function and moduleless else ""
        raise ValueError(f"{rule} matches no parameter{unseen or ('' if nameless else hint(rule, among))}")
    return found


WITHOUT_NAMES = (
    "where a trainer gives bare parameters, by_ndim(...) and functions of the parameter, such as "
    "lambda name, parameter, module: parameter.ndim < 2, need neither"
)
"""What a selector may look at where there are no names and no modules."""

NO_NAMES = f"and parameters without names were given: give the nn.Module or model.named_parameters(); {WITHOUT_NAMES}"
NO_MODULES = f"and only parameters were given: give the nn.Module itself; {WITHOUT_NAMES}"
"""What to give in the place of bare parameters."""


def hint(rule: Selector, among: Sequence[NamedParameter]) -> str:
    for entry in among:
        for alias in entry.aliases:
            if rule.test(entry._replace(name=alias)):
                return f"; {alias} is tied to {entry.name} and goes by that name"
    names = [entry.name for entry in among]
    parts = [name.split(".") for name in names]
    globs = [".".join(p[:i]) + ".*" for p in parts for i in range(1, len(p))] + [f"*.{p[-1]}" for p in parts]
    classes = [type(module).__qualname__ for entry in among for module in entry.modules]
    return nearest(str(rule).strip("'"), list(dict.fromkeys([*globs, *names, *classes])))


def untracked(model: nn.Module, params: Iterable[Tensor]) -> list[tuple[str, nn.Parameter]]:
    """The (name, parameter) of a model that require a gradient and are not among ``params``.

    Example:
        >>> model = nn.Linear(2, 3)
        >>> [name for name, _ in untracked(model, [model.weight])]
        ['bias']
    """
    known = {id(parameter) for parameter in params}
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad and id(p) not in known]
