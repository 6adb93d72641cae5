"""`steprule memory`: what a model's weights, gradients and state will take."""

from __future__ import annotations

import ast
import importlib
import json
import os
import sys
from typing import Annotated, Any

import torch
import typer
from torch import nn

import steprule
from steprule.display.table import encodable
from steprule.stepping.memory_ahead import Memory

from .console import fail

UNITS = ("weights", "gradients", "state", "masters", "total")


def memory(
    model: Annotated[
        str, typer.Argument(metavar="MODULE:FUNCTION", help="What makes the model, without arguments, or an optimizer.")
    ],
    optimizer: Annotated[str, typer.Option(help="The algorithm, as AdamW.")] = "AdamW",
    options: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A hyperparameter or option, as state_dtype=bfloat16."),
    ] = None,
    ranks: Annotated[int, typer.Option(min=1, metavar="N", help="Sharded by fully_shard over so many processes.")] = 1,
    device: Annotated[str, typer.Option(help="Where the model is made; meta takes no memory.")] = "meta",
    as_json: Annotated[bool, typer.Option("--json", help="Print bytes as JSON.")] = False,
) -> None:
    """Show the memory that weights, gradients and an optimizer's state take, by group, before any of it is there."""
    made, hyper = make(model, device), dict(map(setting, options or ()))
    try:
        if isinstance(made, steprule.Optimizer):
            found = made.memory(ranks=ranks)
        else:
            found = steprule.create(optimizer, made, **hyper).memory(ranks=ranks)
    except (ValueError, TypeError, RuntimeError) as error:
        fail(str(error))
    if as_json:
        print(json.dumps(as_dictionary(found)))
    else:
        print(encodable(str(found)))


def make(name: str, device: str) -> nn.Module | steprule.Optimizer:
    """The model, or the optimizer, that a function makes."""
    module, _, function = name.partition(":")
    if not module or not function:
        fail(f"give the model as MODULE:FUNCTION, such as my_models:small, not {name!r}")
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
        for part in function.split("."):
            found = getattr(found, part)
        with torch.device(device):
            made = found() if callable(found) and not isinstance(found, nn.Module) else found
    except Exception as error:
        fail(f"{name} made no model: {type(error).__name__}: {error}")
    finally:
        sys.path.remove(os.getcwd())
    if not isinstance(made, (nn.Module, steprule.Optimizer)):
        fail(f"{name} gave a {type(made).__name__}, not a torch.nn.Module or an optimizer of steprule")
    return made


def setting(text: str) -> tuple[str, Any]:
    """``lr=0.1`` as a name and a value; what is no Python literal is text."""
    name, given, value = text.partition("=")
    if not given:
        fail(f"--set takes NAME=VALUE, not {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def as_dictionary(found: Memory) -> dict[str, Any]:
    groups = [{"params": g.params, **{u: getattr(g, u) for u in UNITS}, "slots": dict(g.slots)} for g in found.groups]
    totals = {unit: getattr(found, unit) for unit in UNITS}
    totals["in_backward"] = found.in_backward
    return {"optimizer": found.optimizer, "ranks": found.ranks, **totals, "slots": found.slots, "groups": groups}
