"""What a comparison is between: an algorithm and its hyperparameters, as they stand on the command line."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import steprule
from steprule import schedules
from steprule.cli.console import fail
from steprule.cli.demo_run import algorithm

__all__ = ["Setting", "parse"]

NAMES = {name: getattr(schedules, name) for name in schedules.__all__ if name[0].islower()}


@dataclass(frozen=True)
class Setting:
    """An algorithm with its hyperparameters."""

    text: str
    algorithm: type[steprule.Optimizer]
    options: dict[str, Any]

    def optimizer(self, model: nn.Module) -> steprule.Optimizer:
        """A new optimizer for all parameters of a model."""
        made: Any = self.algorithm
        optimizer: steprule.Optimizer = made(model, **self.options)
        return optimizer


def parse(text: str) -> Setting:
    """The setting that a text such as ``"SGD lr=0.1*cosine(450) momentum=0.9"`` describes.

    Values are written as in Python, with the functions of :mod:`steprule.schedules`; a word is a string.

    Example:
        >>> parse("adamw lr=1e-3 betas=(0.8,0.9) backend=eager").options
        {'lr': 0.001, 'betas': (0.8, 0.9), 'backend': 'eager'}
    """
    try:
        name, *words = shlex.split(text)
    except ValueError as error:
        fail(f"{text!r} is not an optimizer and its settings: {error}")
    options: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.isidentifier() or key in options:
            fail(f"{word!r} in {text!r} is not a setting of its own, such as lr=0.1")
        options[key] = option_value(value, text)
    setting = Setting(text, algorithm(name), options)
    try:
        setting.optimizer(nn.Linear(2, 2, bias=False))
    except (TypeError, ValueError, RuntimeError) as error:
        fail(f"{text!r}: {error}")
    return setting


def option_value(value: str, text: str) -> Any:
    if value.isidentifier() and value not in ("True", "False", "None"):
        return value
    try:
        return eval(value, {"__builtins__": {}, "tensor": torch.tensor, **NAMES})
    except Exception as error:
        fail(f"{value!r} in {text!r}: {error}")
