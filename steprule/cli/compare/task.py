"""What is trained: the demo's network, or a task of the user's."""

from __future__ import annotations

import importlib
import os
import random
import sys
from collections.abc import Callable, Iterator
from itertools import count
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import steprule.cli.digits as digits
from steprule.cli.console import fail
from steprule.cli.demo import load_digits

__all__ = ["DEMO", "Task", "begin", "find_task", "try_out"]

Task: TypeAlias = Callable[[], tuple[nn.Module, Iterator[Tensor]]]

DEMO = "demo"


def find_task(name: str, seed: int) -> Task:
    """The task of a name: ``demo``, or ``package.module:function``.

    Such a function takes nothing and returns a model and an iterator of losses. For each step one loss is asked for,
    which is then differentiated, so that the iterator computes it with the parameters as they are at that moment.
    """
    if name == DEMO:
        return demo_task(seed)
    module, colon, function = name.partition(":")
    if not colon or not function:
        fail(f"--task is {DEMO}, or a function as package.module:function, not {name!r}")
    sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
        for part in function.split("."):
            found = getattr(found, part)
    except Exception as error:
        fail(f"--task {name}: {type(error).__name__}: {error}")
    finally:
        sys.path.pop(0)
    if not callable(found):
        fail(f"--task {name} is not a function")
    return found


def demo_task(seed: int) -> Task:
    """LeNet on handwritten digits."""
    device = torch.device("cpu")
    torch.set_num_threads(1)  # as in the demo
    train, _ = load_digits(device)

    def task() -> tuple[nn.Module, Iterator[Tensor]]:
        model = digits.build_model(seed, device)
        batches = (batch for epoch in count() for batch in digits.batches(train, seed, epoch))
        return model, (cross_entropy(model(batch.images), batch.labels) for batch in batches)

    return task


def begin(task: Task, seed: int) -> tuple[nn.Module, Iterator[Tensor]]:
    """A task at its start, which depends on the seed alone.

    Raises:
        TypeError: the function does not return a model and an iterator.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    made = task()
    if not isinstance(made, tuple) or len(made) != 2 or not isinstance(made[0], nn.Module):
        raise TypeError(f"the task must return a model and an iterator of losses, not {made!r:.80}")
    model, losses = made
    return model, iter(losses)


def try_out(task: Task, name: str, seed: int, kept: str) -> None:
    """Make a task and its first loss, before anything is removed for it; what is wrong with it ends the command.

    Args:
        task: what is tried.
        name: what it is called on the command line.
        seed: of the task.
        kept: the folder that is as it was if it fails.
    """
    try:
        _, losses = begin(task, seed)
        loss = next(losses, None)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise TypeError(f"the first loss must be a tensor of one number, not {loss!r:.80}")
    except (Exception, SystemExit) as error:
        first = (str(error).splitlines() or [""])[0]
        fail(f"--task {name}: {type(error).__name__}: {first}; {kept} is as it was")
