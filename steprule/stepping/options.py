"""What every algorithm takes as keywords and in a group, and what is refused of it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, TypedDict

from torch import nn

from steprule.grouping.hyperparameters import Choice, Declared, Range, check_ranges
from steprule.kernels.choose import BACKENDS
from steprule.kernels.entry import Entry
from steprule.messages.spelling import nearest
from steprule.portability.torch_private import capturable_devices, fused_devices
from steprule.storage import FORMATS, MASTERS, check_state_dtype

__all__ = [
    "NOT_HYPER",
    "OPTIONS",
    "SAYS",
    "SWITCHES",
    "CommonOptions",
    "KeywordOptions",
    "MatrixOptions",
    "Options",
    "PlacedOptions",
    "check_capturable",
    "check_fused",
    "check_nonfinite",
    "check_options",
    "full_embeddings",
    "refuse_hyper",
    "refuse_options",
    "spell_out_options",
]

OPTIONS: dict[str, Any] = {
    "maximize": False,
    "l1": 0.0,
    "clip_norm": None,
    "seed": 0,
    "backend": "auto",
    "modifiers": (),
    "state_dtype": None,
    "rounding": "nearest",
    "master": None,
    "foreach": None,
    "fused": None,
    "capturable": False,
    "differentiable": False,
}
"""What every algorithm takes as keywords, and in a group, with its default."""


class CommonOptions(TypedDict, total=False):
    """Their types, for those who check calls: ``**options: Unpack[...]``. These no algorithm names itself."""

    nonfinite: str
    l1: Any
    clip_norm: Any
    seed: int
    backend: str
    modifiers: Sequence[Any]
    state_dtype: Any
    rounding: str
    master: str | None


class MatrixOptions(CommonOptions, total=False):
    """Of algorithms that name ``overrides`` and take none of torch's switches."""

    maximize: bool


class PlacedOptions(CommonOptions, total=False):
    """Of algorithms that name torch's switches, in torch's places."""

    overrides: Mapping[Any, Any] | None
    fused: bool | None


class KeywordOptions(PlacedOptions, total=False):
    """Of algorithms that name ``foreach``."""

    maximize: bool
    capturable: bool
    differentiable: bool


class Options(KeywordOptions, total=False):
    """All of them."""

    foreach: bool | None


RANGES: dict[str, Declared] = {
    "l1": Range(least=0),
    "clip_norm": Range(least=0, optional=True),
    "seed": Range(least=0, below=2**53),
    "backend": Choice(choices=BACKENDS),
    "rounding": Choice(choices=("nearest", "stochastic")),
    "master": Choice(choices=MASTERS),
}
"""What options may be."""

NONFINITE = ("propagate", "skip", "raise")
"""What a step may do about gradients that are not finite."""

SWITCHES = frozenset({"foreach", "fused", "capturable", "differentiable"})
"""The options that choose between torch's implementations."""

SAYS = ("update", "refuse", "accept", "validate", "slots", "ranges", "parts", "switches")
"""What a subclass of Optimizer may say for others to ask."""

NOT_HYPER = frozenset({"params", "param_names", "schedules"})
"""The keys of a group that are no hyperparameters."""


def spell_out_options(cls: Any) -> None:
    """Let the constructor that a class defines take all options, and say so in its signature."""
    own: Any = cls.__dict__.get("__init__")
    if inspect.isfunction(own):
        if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(own).parameters.values()):
            own = cls.__init__ = passing_options(own)
        vars(own)["__signature__"] = spelled_out(inspect.signature(own), SWITCHES - cls.switches)


def passing_options(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor without ``**options`` that takes them all the same, past its own code to that of the optimizer."""
    known = inspect.signature(init)
    options = inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)
    taken = [name for name in ("overrides", "nonfinite", *OPTIONS) if name not in known.parameters]

    @functools.wraps(init)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        passed = {name: kwargs.pop(name) for name in taken if name in kwargs}
        if passed:
            self.__dict__["_passed"] = {**self.__dict__.get("_passed", {}), **passed}
        init(self, *args, **kwargs)

    vars(wrapper)["__signature__"] = known.replace(parameters=[*known.parameters.values(), options])
    return wrapper


def spelled_out(signature: inspect.Signature, refused: frozenset[str]) -> inspect.Signature:
    """A constructor's signature with what its ``**options`` are, for those who ask which arguments there are."""
    parameters = [p for p in signature.parameters.values() if (p.name, p.kind) != ("options", p.VAR_KEYWORD)]
    if len(parameters) == len(signature.parameters):
        return signature
    named = {"overrides": None, "nonfinite": "propagate", **OPTIONS}
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
        for name, default in named.items()
        if name not in signature.parameters and name not in refused
    ]
    return signature.replace(parameters=[*parameters, *options])


def refuse_options(options: Mapping[str, Any], switches: Container[str], own: Iterable[str], optimizer: str) -> None:
    """Refuse keywords that are no options, and torch's switches that an algorithm does not take.

    Args:
        options: the keywords.
        switches: those of torch's switches that the algorithm takes.
        own: the names of the algorithm's hyperparameters.
        optimizer: what it is called.

    Raises:
        TypeError: as Python does, with the nearest name that there is.
    """
    own = list(own)
    known = [*own, "overrides", "nonfinite", *(name for name in OPTIONS if name not in SWITCHES or name in switches)]
    for name, value in options.items():
        if name not in OPTIONS or (name in SWITCHES and name not in switches and value != OPTIONS[name]):
            near = (
                UNDECLARED.format(name)
                if not own
                else switches_in_words(switches)
                if name in SWITCHES
                else meant(name, known)
            )
            raise TypeError(f"{optimizer}() got an unexpected keyword argument {name!r}{near}")


def switches_in_words(switches: Container[str]) -> str:
    """Which of torch's switches there are, in words."""
    names = [name for name in sorted(SWITCHES) if name in switches]
    return f"; of torch's switches it takes {', '.join(names) or 'none'}, and every step is fused without one"


UNDECLARED = (
    "; it has no hyperparameters: write an __init__(self, params, {0}, **options) that calls "
    "super().__init__(params, dict({0}={0}), **options)"
)
"""What is said to those who give hyperparameters to a class that declares none."""

ELSEWHERE = {
    "learning_rate": "lr",
    "alpha": "lr",
    "wd": "weight_decay",
    "max_norm": "clip_norm",
    "max_grad_norm": "clip_norm",
}
"""What other libraries call hyperparameters and options."""


def meant(name: str, known: Sequence[str]) -> str:
    """The nearest of the names that there are, in words."""
    called = ELSEWHERE.get(name)
    return f"; did you mean {called!r}?" if called in known else nearest(name, known)


def refuse_hyper(hyper: Iterable[str], defaults: Mapping[str, Any], optimizer: str) -> None:
    """Refuse hyperparameters that an optimizer does not have.

    Raises:
        TypeError: naming the first, and the nearest that there is.
    """
    for name in hyper:
        if name not in defaults:
            known = meant(name, list(defaults)) or f"; there are {', '.join(defaults)}"
            raise TypeError(f"{optimizer} has no hyperparameter {name!r}{known}")


def check_nonfinite(value: object, rule: bool) -> None:
    """Refuse what no step does about gradients that are not finite.

    Args:
        value: what was asked for.
        rule: whether the algorithm has an update rule, of which the check is a part.

    Raises:
        ValueError: naming it.
    """
    if value not in NONFINITE:
        raise ValueError(f"Invalid nonfinite: {value!r}; it is one of {', '.join(NONFINITE)}")
    if value != "propagate" and not rule:
        raise ValueError(f"nonfinite={value!r} needs an update rule, which this algorithm has not")


def check_options(h: Mapping[str, Any], own: Container[str]) -> None:
    """Refuse options out of range, or that exclude each other.

    Args:
        h: hyperparameters and options.
        own: the options that stand among the rule's own hyperparameters, which are the rule's to check.

    Raises:
        ValueError: naming the option and its value.
        TypeError: naming one that is no number.
        RuntimeError: as torch does.
    """
    check_ranges({name: declared for name, declared in RANGES.items() if name not in own}, h)
    if "seed" not in own and (isinstance(h["seed"], bool) or h["seed"] != int(h["seed"])):
        raise ValueError(f"Invalid seed: {h['seed']!r}; it is a whole number")
    check_state_dtype(h["state_dtype"])
    refuse_with_fewer_bits(h)
    if h["fused"] and h["foreach"]:
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
    if h["fused"] and h["differentiable"]:
        raise RuntimeError("`fused` does not support `differentiable`")


def refuse_with_fewer_bits(h: Mapping[str, Any]) -> None:
    """Refuse to hold state, or to round weights, otherwise than the rule says where nothing would.

    Raises:
        ValueError: naming what does not go together.
    """
    for name in ("differentiable", "capturable"):
        if h["rounding"] == "stochastic" and h[name]:
            raise ValueError(f"rounding='stochastic' with {name}=True: its random numbers are drawn on the host")
    if h["master"] is not None and h["differentiable"]:
        raise ValueError(f"master={h['master']!r}: autograd can't follow weights in two parts; differentiable=True")
    if h["rounding"] == "stochastic" and h["master"] in ("16bit", "float32"):
        raise ValueError(
            f"rounding='stochastic' with master={h['master']!r}, with which nothing is rounded away; leave one of them "
            "out"
        )
    asked = h["state_dtype"]
    names = set(asked.values()) if isinstance(asked, Mapping) else {asked}
    for name in sorted(names - {None}):
        if h["differentiable"]:
            raise ValueError(
                f"state_dtype={name!r}: autograd can't follow how numbers are rounded to it; differentiable=True"
            )
        if h["capturable"] and name != "float32":
            raise ValueError(f"state_dtype={name!r} with capturable=True: its random numbers are counted on the host")


def full_embeddings(params: Any, state_dtype: Any) -> dict[Any, dict[str, Any]]:
    """Overrides that leave the state of a module's embeddings in float32, where the optimizer's is in codes: the rows
    of a block see gradients of very different sizes, or none for long."""
    if not isinstance(params, nn.Module):
        return {}
    value = state_dtype if isinstance(state_dtype, Mapping) else {None: state_dtype}
    coded = {slot: name for slot, name in value.items() if name is not None and FORMATS[name].signed is not None}
    if not coded:
        return {}
    full = {**value, **dict.fromkeys(coded, "float32")} if isinstance(state_dtype, Mapping) else "float32"
    kinds = (nn.Embedding, nn.EmbeddingBag)
    present = {
        kind for kind in kinds for m in params.modules() if isinstance(m, kind) and any(True for _ in m.parameters())
    }
    return {kind: {"state_dtype": full} for kind in kinds if kind in present}


def check_capturable(entry: Entry) -> None:
    """Refuse to capture where there are no graphs.

    Raises:
        AssertionError: as torch does.
    """
    supported = capturable_devices()
    if entry.param.device.type not in supported:
        raise AssertionError(
            f"If capturable=True, params and state_steps must be on supported devices: {supported}. Parameter "
            f"{entry.name} is on {entry.param.device}"
        )


def check_fused(entry: Entry) -> None:
    """Refuse what torch's fused implementations refuse.

    Raises:
        RuntimeError: as torch does.
    """
    p, supported = entry.param, fused_devices()
    if not p.is_floating_point() or p.device.type not in supported:
        raise RuntimeError(
            "`fused=True` requires all the params to be floating point Tensors of supported devices: "
            f"{supported} but {p.dtype} and {p.device.type}: parameter {entry.name}; leave fused=True out, for every "
            "step is fused"
        )
