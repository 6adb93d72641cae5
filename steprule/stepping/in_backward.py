"""A step in backward: each parameter is updated as soon as its gradient is complete, and the gradient freed."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from steprule.kernels.plan import Plan
from steprule.portability.torch_private import engine_run, graph_task, increment_version, queue_callback

from .applying import asked_now, made_plan
from .backward_refusals import (
    SCALED,
    refuse_model,
    refuse_optimizer,
    refuse_parts,
    refuse_program,
    refuse_scaler,
    refuse_step,
)
from .large_parameters import Place, Singles
from .planning import Asked, called
from .workings import workings

if TYPE_CHECKING:
    from steprule.optimizer import Optimizer

__all__ = ["StepInBackward", "step_in_backward"]

HERALDS = 8
"""How many small parameters say that backward runs, in case that no large one gets a gradient."""

ACTIVE: weakref.WeakSet[StepInBackward] = weakref.WeakSet()


def step_in_backward(optimizer: Optimizer, model: nn.Module) -> StepInBackward:
    """Update each parameter while backward runs, as soon as its gradient is complete, and free the gradient.

    ``backward()`` leaves no gradients behind, and their memory is not needed all at once. ``step()`` is called as
    ever, after each backward: it counts the step, moves schedules and runs hooks. State and results have the bits
    of plain steps. Parameters of 16,384 elements and more are updated one by one, smaller ones together when
    backward ends.

    Hyperparameters of a step are those that stand in the groups when its backward begins.

    Args:
        model: the module that is trained; it has all parameters of the optimizer.

    Returns:
        A handle: ``remove()`` goes back to plain steps, and so does the end of a ``with`` block. ``updated`` names
        the parameters that were updated since the last ``step()``.

    Raises:
        RuntimeError: at once, or when backward begins, for what would need all gradients together, or several
            backwards: ``clip_norm``, rules with ``scope="all"``, ``nonfinite`` other than ``"propagate"``,
            ``track``, SAM, LBFGS, closures, GradScaler, accumulation over two backwards, sharded parameters,
            DistributedDataParallel. Nothing has changed then.
        ValueError: the optimizer has parameters that the model does not have.

    Example:
        >>> import torch, steprule
        >>> model = torch.nn.Linear(200, 100)
        >>> optimizer = steprule.AdamW(model, lr=0.01)
        >>> with optimizer.step_in_backward(model):
        ...     for batch in torch.ones(3, 5, 200):
        ...         model(batch).square().mean().backward()
        ...         optimizer.step()
        >>> model.weight.grad is None, optimizer.steps_taken
        (True, 3)
    """
    graph_task()  # which a version of torch may lack
    return StepInBackward(optimizer, model)


class StepInBackward:
    """Takes an optimizer's steps while backward runs, until it is removed; see
    :meth:`steprule.Optimizer.step_in_backward`.

    Args:
        optimizer: the optimizer.
        model: the module that is trained.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module) -> None:
        works = workings(optimizer)
        refuse_optimizer(optimizer)
        refuse_step(optimizer)
        refuse_model(model, optimizer.param_groups)
        refuse_parts(optimizer.param_groups)
        refuse_scaler(optimizer)
        refuse_rules(optimizer)
        refuse_others(optimizer)
        self.optimizer, self.model = optimizer, model
        self.task = self.nested = -1
        self.round = 0
        """The number of the step under way or done last."""
        self.pending = False
        """Whether a backward has updated parameters and step() is still to count it."""
        self.open = False
        """Whether a backward has begun and has not come to its end."""
        self.looked = False
        self.lock = works.planner.lock
        self.numbers: list[tuple[Any, ...]] = []
        """What stood in the groups when the step began."""
        self.done: list[Place] = []
        self.together: list[torch.Tensor] = []
        """The parameters that were updated at the end of the last backward."""
        self.rest: tuple[Plan | None, Asked | None] = (None, None)
        self.singles = Singles(optimizer)
        self.planner = works.planner
        self.hooks: list[Any] = []
        self.handles = [
            optimizer.register_step_pre_hook(self.before_step),
            optimizer.register_step_post_hook(self.after_step),
            optimizer.register_state_dict_pre_hook(self.before_saving),
        ]
        self.arrange()
        ACTIVE.add(self)

    def remove(self) -> None:
        """Take plain steps again, from the next backward on."""
        works = workings(self.optimizer)
        with works.planner.lock:
            self.settle()
            for handle in (*self.hooks, *self.handles):
                handle.remove()
            self.hooks, self.handles = [], []
            if works.planner.beside is self.singles.beside:
                works.planner.settle()
                self.singles.beside.clear()
            ACTIVE.discard(self)

    def __enter__(self) -> StepInBackward:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: Any, traceback: TracebackType | None) -> None:
        self.remove()

    # -- hooks ---------------------------------------------------------------------------------------------------

    def arrange(self) -> None:
        """Let every large parameter say when its gradient is complete, and a few small ones that backward runs."""
        for handle in self.hooks:
            handle.remove()
        self.hooks = []
        places = self.singles.places
        small = [p for p in self.singles.params if id(p) not in places and not is_lazy(p)]
        for place in places.values():
            self.hooks.append(hook(place.param, self.completing(place)))
        for p in small[:: max(1, len(small) // HERALDS)]:
            self.hooks.append(hook(p, self.herald))

    def completing(self, place: Place) -> Callable[[torch.Tensor], None]:
        """What a large parameter calls when its gradient is complete."""
        update, param, enter = self.singles.update, (place.param,), self.enter

        def complete(p: torch.Tensor) -> None:
            task = graph_task()
            if task != self.task and not enter(task):
                return
            with self.lock:
                if place.round == self.round:
                    self.refuse_again([place.name])
                try:
                    if not update(place, self.round):
                        return  # it is taken at the end, with the small ones
                except BaseException as error:
                    if place.torn:
                        self.done.append(place)
                    self.say(error)
                    raise
                place.round = self.round
                self.done.append(place)
                increment_version(param)
                if place.mastered:
                    self.singles.entry(place).note_version()
                p.grad = None

        return complete

    def herald(self, p: torch.Tensor) -> None:
        """A small parameter has a gradient."""
        task = graph_task()
        if task != self.task:
            self.enter(task)

    def enter(self, task: int) -> bool:
        """A hook runs in another backward than the one before it.

        Returns:
            Whether parameters are updated in it. In one that runs inside another, as a reentrant checkpoint makes
            them, gradients are not complete: they are taken at the end of the outer one, or by step().
        """
        if task == self.nested:
            return False
        if is_nested():
            self.nested = task
            return False
        with workings(self.optimizer).planner.lock:
            self.begin(task)
        return self.task == task

    # -- a step --------------------------------------------------------------------------------------------------

    def begin(self, task: int) -> None:
        """A backward begins; where this raises, nothing has changed.

        Raises:
            RuntimeError: saying what does not go together with a step in backward, or what happened before.
        """
        optimizer, singles = self.optimizer, self.singles
        self.look_for_another_state()
        works = workings(optimizer)
        self.lock = works.planner.lock
        if self.open:
            self.refuse_broken()
        if self.pending:
            self.refuse_accumulation()
        refuse_optimizer(optimizer)
        if not self.looked:
            refuse_scaler(optimizer)
            refuse_model(self.model, optimizer.param_groups)
            self.looked = True
        groups = optimizer.param_groups
        if works.scheduled:
            works.planner.timetable.write(groups, optimizer.steps_taken)
        if singles.dropped:
            singles.drop()
            self.rest = None, None
        stale = singles.outdated
        if not stale:
            singles.begin()
        queue_callback(self.finish)
        self.numbers = [tuple(group.values()) for group in groups]
        self.open, self.done, self.together = True, [], []
        self.round += 1
        if stale:  # hooks are for other parameters: all are taken at the end
            self.nested = task
        else:
            self.task = task

    def finish(self) -> None:
        """The outermost backward is done: take what is left, and count what was updated."""
        with workings(self.optimizer).planner.lock:
            again = [place.name for place in self.done if place.param.grad is not None]
            if again:
                self.refuse_again(again)
            self.singles.commit()
            try:
                self.take_rest()
            except BaseException as error:
                self.say(error)
                raise
            self.open, self.pending, self.task = False, True, -1

    def take_rest(self) -> None:
        """A plain update of all parameters that have a gradient: the small ones, and what no hook could take."""
        optimizer, planner = self.optimizer, workings(self.optimizer).planner
        groups, state, asked = optimizer.param_groups, optimizer.state, asked_now(optimizer)
        if all(p.grad is None for group in groups for p in group["params"]):
            return
        kept = planner.plan, planner.asked, planner.flagged
        before, planner.asked = self.rest
        planner.plan = plan = before
        try:
            planner.begin()
            if plan is None or asked != planner.asked or not plan.current(groups, state):
                plan = planner.recall(groups, state, asked) or made_plan(optimizer, asked)
                for launch in plan.launches:
                    refuse_program(launch.program, launch.entries[0].name)
            plan.run(groups, {}, state)
        except BaseException as error:
            planner.abandon(error)
            raise
        finally:
            self.rest = planner.plan, planner.asked
            planner.plan, planner.asked, planner.flagged = kept
        if plan is not before:
            old = set(map(id, before.whole)) if before is not None else set()
            beside = self.singles.beside
            beside[:] = [*(launch for launch in beside if id(launch) not in old), *plan.whole]
        self.together = plan.updated
        plan.count_writes()
        for p in plan.updated:
            p.grad = None

    def before_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """step() is called.

        Raises:
            RuntimeError: it is given what only a plain step can use; backward broke off, or there were two.
        """
        if (args[1] if len(args) > 1 else kwargs.get("closure")) is not None:
            raise RuntimeError(
                "step(closure) evaluates the model inside of the step, and a step in backward is taken by then: call "
                f"backward() and then step() without a closure{self.so_far()}"
            )
        if kwargs.get("inputs"):
            raise RuntimeError(f"step(inputs=...) comes after a step in backward has been taken{self.so_far()}")
        if "grad_scale" in vars(optimizer) or "found_inf" in vars(optimizer):
            raise RuntimeError(SCALED + self.so_far())
        self.look_for_another_state()
        if self.open:
            self.refuse_broken()
        if not self.pending:
            return
        again = [place.name for place in self.done if place.param.grad is not None]
        again += self.names([p for p in self.together if p.grad is not None])
        if again:
            self.refuse_again(again)
        for index, (group, before) in enumerate(zip(optimizer.param_groups, self.numbers, strict=False)):
            if tuple(group.values()) != before:
                raise RuntimeError(
                    f"hyperparameters of group {index} were changed after backward, which has used those before; "
                    f"change them before backward, or after step(){self.so_far()}"
                )

    def after_step(self, *_: Any) -> None:
        """The step is counted."""
        self.pending, self.done, self.together = False, [], []
        if self.singles.outdated:
            workings(self.optimizer).planner.settle()
            self.singles.forget()
            refuse_parts(self.optimizer.param_groups)
            self.arrange()

    def before_saving(self, _: torch.optim.Optimizer) -> None:
        """A state dictionary is asked for.

        Raises:
            RuntimeError: parameters are updated that no step has counted.
        """
        self.look_for_another_state()
        if self.pending:
            raise RuntimeError(f"a step in backward is not counted yet: call step() before saving{self.so_far()}")
        self.settle()

    def settle(self) -> None:
        """Count what a backward has updated that broke off."""
        if self.open:
            self.singles.commit()

    def look_for_another_state(self) -> None:
        """Begin anew if a state was loaded."""
        works = workings(self.optimizer)
        if self.planner is not works.planner:
            self.planner = works.planner
            self.open, self.pending, self.done, self.together = False, False, [], []

    # -- errors --------------------------------------------------------------------------------------------------

    def names(self, params: list[torch.Tensor]) -> list[str]:
        """What a person calls parameters."""
        wanted = {id(p) for p in params}
        groups = enumerate(self.optimizer.param_groups) if wanted else ()
        return [called(g, index, i) for index, g in groups for i, p in enumerate(g["params"]) if id(p) in wanted]

    @property
    def updated(self) -> list[str]:
        """The names of the parameters that were updated since the last ``step()``."""
        return [place.name for place in self.done] + self.names(self.together)

    def so_far(self) -> str:
        """Which parameters were updated, in words."""
        names = self.updated
        return f". Updated since the last step(): {', '.join(names)}" if names else ". Nothing has changed"

    def say(self, error: BaseException) -> None:
        """Let an error say which parameters were updated."""
        if hasattr(error, "add_note"):
            error.add_note(f"a step in backward broke off{self.so_far()}")

    def refuse_broken(self) -> None:
        """Refuse to go on after a backward that broke off, unless it has changed nothing."""
        self.settle()
        self.task = -1
        if not self.updated:
            self.open = False
            return
        raise RuntimeError(
            "a step in backward broke off (or another thread is in one): parameters "
            f"{', '.join(self.updated)} are updated and the others are not. Load a checkpoint; or, to go on from here "
            "all the same, optimizer.load_state_dict(optimizer.state_dict())"
        )

    def refuse_accumulation(self) -> None:
        raise RuntimeError(
            "a second backward before step(): a step in backward has updated parameters at the end of the first, so "
            "that gradients can't be accumulated; add the losses up before one backward, call step() after each, or "
            "take plain steps. The second has changed nothing"
        )

    def refuse_again(self, names: list[str]) -> None:
        raise RuntimeError(
            f"the gradient of parameter {', '.join(names)} came again after a step in backward had updated it: "
            "gradients can't be accumulated over several backwards (reentrant checkpoints run several; use "
            f"use_reentrant=False). The second gradient is not applied{self.so_far()}"
        )


def hook(p: torch.Tensor, function: Callable[[torch.Tensor], None]) -> Any:
    """Call a function when a parameter's gradient is complete; one that is frozen may be trained later."""
    trains = p.requires_grad
    try:
        return p.requires_grad_().register_post_accumulate_grad_hook(function)  # type: ignore[no-untyped-call]
    finally:
        p.requires_grad_(trains)


def is_nested() -> bool:
    """Whether the backward that calls runs inside of another one."""
    frame, runs = sys._getframe(2), 0
    while True:
        runs += frame.f_code is engine_run
        if runs == 2:
            return True
        if frame.f_back is None:
            # a thread of autograd's own begins with the function whose backward it runs
            return runs == 1 and frame.f_code.co_filename == torch.autograd.function.__file__
        frame = frame.f_back


def refuse_rules(optimizer: Optimizer) -> None:
    """Refuse rules that have to know more than one parameter and its gradient.

    Raises:
        RuntimeError: naming what they need.
    """
    works = workings(optimizer)
    groups, roles, asked = optimizer.param_groups, works.roles, asked_now(optimizer)
    roles.adopt(groups)
    for index, group in enumerate(groups):
        algorithm, seen = roles.algorithm(group, optimizer), set()
        for position, p in enumerate(group["params"]):
            if not is_lazy(p) and p.ndim not in seen:
                seen.add(p.ndim)
                program = works.planner.program(algorithm, group, asked, p)
                refuse_program(program, called(group, index, position))


def refuse_others(optimizer: Optimizer) -> None:
    """Refuse parameters whose gradients another step in backward takes.

    Raises:
        RuntimeError: there is one.
    """
    own = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for other in ACTIVE:
        if other.optimizer is optimizer or any(id(p) in own for p in other.singles.params):
            raise RuntimeError("these parameters are stepped in backward already: call remove() of that one first")
