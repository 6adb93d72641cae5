"""Optimizer: what a person constructs, steps and saves."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, TypeVar, overload

import torch
from torch import nn
from typing_extensions import Self

from steprule.grouping.following import Followed
from steprule.grouping.hyperparameters import Declared, check_ranges
from steprule.grouping.selectors import Selectable
from steprule.kernels.tracking import total_norm
from steprule.messages.spelling import refuse_misspelt
from steprule.portability.torch_private import FAKE, dispatch_mode
from steprule.rule.modifier import Modifier
from steprule.rule.slot import Slot
from steprule.saving.fit import LoadResult
from steprule.saving.groups import Hyperparameters
from steprule.saving.state_dict import StateDict
from steprule.stepping import (
    applying,
    changing,
    constructing,
    evaluation,
    idle,
    in_backward,
    measuring,
    memory_ahead,
    new_groups,
    pickling,
    showing,
    skipping,
    state_dicts,
    taking_over,
    two_points,
)
from steprule.stepping import options as common
from steprule.stepping.documented import documented
from steprule.stepping.hooks import counted_step, hooked, not_compiled
from steprule.stepping.options import SWITCHES
from steprule.stepping.workings import Workings

__all__ = ["SWITCHES", "Optimizer"]

T = TypeVar("T")


class Optimizer(torch.optim.Optimizer):
    r"""Base class of all optimizers: a subclass says what one update is, in :meth:`update`.

    Args:
        params: the parameters: an iterable of tensors, of (name, tensor) pairs or of group dictionaries, or a
            :class:`torch.nn.Module` (then the names are known).
        defaults: the hyperparameters that the rule reads as ``h.name``, with their defaults;
            ``torch.optim.optimizer.required`` for one without. Any number may be a
            :class:`steprule.schedules.Schedule`: it is evaluated at each step with the number of steps taken.
        overrides: selector -> hyperparameters of the parameters it means, see :mod:`steprule.grouping.selectors`.
        modifiers (list): what goes around the rule, in the order in which it acts, see :mod:`steprule.modifiers`.
        state_dtype (str or mapping, optional): how state like the parameters is held: ``"float32"``, ``"bfloat16"``,
            ``"8bit"``, or a mapping from slots to these, see ``docs/low_bits.md``; None holds it as the parameter is,
            but running means of squares of float16 parameters in float32.
        rounding (str): how weights of 16 bits are rounded: ``"nearest"``, which loses every update below half a unit in
            the last place, or ``"stochastic"``, up or down at random, so that on average nothing is lost; weights of
            float32 and float64 are not rounded.
        master (str, optional): what stands beside each bfloat16 weight, so that no update is lost: ``"16bit"``, the
            rest of a float32, ``"8bit"``, half of that, or ``"float32"``, all of it, with the same numbers as
            ``"16bit"``, for float16 weights too; None for nothing. Float32 weights need nothing.
        maximize (bool): go up along the gradient instead of down.
        l1 (float): L1 penalty: ``l1 * sign(p)`` is added to the gradient.
        clip_norm (float, optional): the norm of all gradients together, above which they are scaled down to it; None
            or 0 leaves them as they are.
        nonfinite (str): what a step does about gradients that are not finite: ``"propagate"`` takes it all the same;
            ``"skip"`` leaves parameters, state, count and schedules as they are and counts in :attr:`skipped`;
            ``"raise"`` does so too and raises RuntimeError, naming the parameters. It holds for the whole optimizer
            and costs one read of the gradients, none where ``clip_norm`` reads them already. Hooks before a step run
            before it is known whether it is left out, for they may change gradients; hooks after it, for steps taken.
        seed (int): of the random numbers that the rule draws, if it does.
        backend (str): ``"auto"``, or the kernel to insist on: ``"llvm"``, ``"triton"``, ``"eager"``.
        foreach, fused (bool, optional): accepted for torch's sake; every step is fused. With ``fused=True`` a step
            refuses what torch's does, complex parameters and devices without such kernels, and takes GradScaler's
            scale as below.
        capturable (bool): the step can be captured in a CUDA graph.
        differentiable (bool): autograd can differentiate through the step.

    Under :class:`torch.amp.GradScaler` it is as with torch. The scaler unscales the gradients, and calls ``step`` only
    where they are finite. With ``fused=True`` the step divides by the scale and looks at the scaler's flag in its one
    pass, and leaves the gradients unscaled; a subclass's own ``step``, which calls that of the class above, sees them
    scaled, as with torch. Schedules, hooks and :attr:`steps_taken` count no step that was skipped.

    Example:
        >>> import torch
        >>> from steprule import Optimizer
        >>> from steprule.rule import sign
        >>> class SignSGD(Optimizer):
        ...     def __init__(self, params, lr=1e-3):
        ...         super().__init__(params, dict(lr=lr))
        ...
        ...     def update(self, p, g, s, h):
        ...         return p - h.lr * sign(g)
        >>> weight = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> optimizer = SignSGD([weight], lr=0.5)
        >>> weight.square().sum().backward()
        >>> optimizer.step()
        >>> weight.detach()
        tensor([0.5000, 1.5000])
    """

    slots: ClassVar[Mapping[str, Slot]] = {}
    """Slots that are not zeros like the parameter, as :func:`steprule.rule.array` or ``scalar`` declares them."""

    ranges: ClassVar[Mapping[str, Declared]] = {}
    """What hyperparameters may be, as :class:`steprule.Range` declares it, in the order in which they are checked."""

    parts: ClassVar[tuple[Modifier, ...]] = ()
    """Modifiers that the algorithm is made of, as :meth:`steprule.rule.modifier.Modifier.within` gives them: they go
    around its rule, inside of those that a person gives."""

    switches: ClassVar[frozenset[str]] = SWITCHES
    """Those of torch's switches that the constructor takes; it refuses the others, as torch does."""

    _workings: Workings

    _step_supports_amp_scaling = skipping.TakesScale()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_misspelt(cls, Optimizer, common.SAYS)
        common.spell_out_options(cls)

    @not_compiled
    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        defaults: Mapping[str, Any] | None = None,
        *,
        overrides: Mapping[Any, Mapping[str, Any]] | None = None,
        nonfinite: str = "propagate",
        **options: Any,
    ) -> None:
        options |= dict(overrides=overrides, nonfinite=nonfinite)
        super().__init__(*constructing.construct(self, params, defaults, options, has_rule(type(self))))
        self.__dict__.setdefault("_amp_scaling", self._step_supports_amp_scaling)  # wrappers copy what stands here
        self._workings.members.note(self.param_groups)

    @classmethod
    @documented(taking_over.from_torch)
    def from_torch(cls, optimizer: torch.optim.Optimizer) -> Self:
        return taking_over.from_torch(cls, optimizer)

    # -- what a subclass writes ----------------------------------------------------------------------------------

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        """The rule: a parameter's new value.

        It runs once, on symbols, and again when a flag changes. Numbers that change while training are hyperparameters:
        attributes of the optimizer are read only then.

        Args:
            p: the parameter, an array expression.
            g: its gradient, an array expression.
            s: its state: reading or writing ``s.name`` makes a slot; ``s.step`` counts its updates, this one
                included; ``s.is_new`` holds in the first.
            h: the hyperparameters of its group: numbers are scalar expressions, flags are what they are.

        Returns:
            The expression of the new value.
        """
        raise NotImplementedError(f"{type(self).__name__} has no rule: define update(self, p, g, s, h)")

    def refuse(self, p: torch.Tensor) -> None:
        """Raise if a parameter with a gradient is of a kind that the algorithm is not for; nothing has changed yet."""

    def accept(self, group: Mapping[str, Any]) -> None:
        """Raise if a group that has just been made holds parameters of a kind that the algorithm is not for."""

    def validate(self, h: Mapping[str, Any]) -> None:
        """Refuse hyperparameters that ``ranges`` does not allow; called with the defaults and with each group.

        An algorithm adds combinations that it refuses.

        Raises:
            ValueError: naming the hyperparameter and its value.
            TypeError: naming the hyperparameter that is no number.
        """
        check_ranges(self.ranges, h)
        common.check_options(h, self._workings.own_options)

    # -- construction --------------------------------------------------------------------------------------------

    def _patch_step_function(self) -> None:
        self._zero_grad_profile_name = f"Optimizer.zero_grad#{type(self).__name__}.zero_grad"
        step = type(self).step
        if not getattr(step, "hooked", None):
            type(self).step = hooked(counted_step(step))  # type: ignore[method-assign]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **pickling.pickled(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        pickling.unpickle(self, has_rule(type(self)))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, which takes part from the next step on.

        Args:
            param_group: ``params`` (tensors, or (name, tensor) pairs) and the hyperparameters in which the group
                differs from the defaults.

        Raises:
            TypeError: if it is not a dictionary, or ``params`` is a set or holds something that is not a tensor.
            ValueError: if a parameter is not a leaf or stands in a group already, a required hyperparameter is
                missing, or one is out of range.
        """
        new_groups.fill(self, param_group)
        with new_groups.filling_defaults(self, param_group):
            super().add_param_group(param_group)
        new_groups.take_in(self)

    def _begin_state(self) -> None:
        """What goes before a step of zeros that is to make state only, see :func:`hooks.asks_for_state`."""

    @property
    def nonfinite(self) -> str:
        """What a step does about gradients that are not finite: ``"propagate"``, ``"skip"`` or ``"raise"``."""
        return self._workings.nonfinite

    @nonfinite.setter
    def nonfinite(self, value: str) -> None:
        common.check_nonfinite(value, rule=self._workings.has_rule)
        self._workings.nonfinite = value

    # -- a step --------------------------------------------------------------------------------------------------

    # what may follow closure is open, so that a class may override step(closure) as those of torch do
    @overload
    def step(self, closure: None = None, *args: Any, **kwargs: Any) -> None: ...

    @overload
    def step(self, closure: Callable[[], T], *args: Any, **kwargs: Any) -> T: ...

    @hooked
    def step(self, closure: Callable[[], Any] | None = None, *, inputs: Mapping[str, Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: evaluates the model again, with gradients enabled, and returns the loss.
            inputs: what the rule reads beside gradients, as :func:`steprule.rule.given` says: name -> a number, or a
                mapping from parameters to tensors of their shapes.

        Returns:
            What the closure returned; None without one.

        Raises:
            RuntimeError: the weights are those to evaluate with; or a modifier needs gradients at two points, and there
                is neither a closure nor a :meth:`first_step` before.
        """
        works = self._workings
        if works.evaluates:
            evaluation.refuse_evaluation()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if works.roles.two_points:
            two_points.take_second(self, closure)
        with works.planner.lock:
            (applying.update_all if dispatch_mode(FAKE) is None else applying.update_all_fake)(self, inputs)
        return loss

    @property
    def steps_taken(self) -> int:
        """How many steps were taken, over all sessions: saved and loaded. A step that GradScaler skips is none.

        With ``fused=True`` on a GPU it waits until the GPU has decided on the last step.
        """
        return self._workings.count.settled().taken

    @property
    def skipped(self) -> int:
        """How many steps were left out as gradients were not finite: by ``nonfinite="skip"``, or by GradScaler's flag
        with ``fused=True``. It waits for a GPU as :attr:`steps_taken` does."""
        return self._workings.count.settled().skipped

    @not_compiled
    def explain(self, source: bool = False) -> str:
        """Which kernel serves which parameters, and why.

        Before the first step, and after a change, the answer is that for the gradients present now.

        Args:
            source: show each Program as mathematics, and the code that was generated from it.
        """
        if not self._workings.has_rule and type(self).step is not Optimizer.step:
            return f"{type(self).__name__} works by torch operations, on whatever device its parameters are"
        with self._workings.planner.lock:
            return showing.explained(self, source)

    @not_compiled
    def __repr__(self) -> str:
        """The groups as a table that fits the terminal, as plain text."""
        return showing.shown(self)

    @not_compiled
    def _repr_html_(self) -> str:
        return showing.shown_as_html(self)

    @property
    def grad_norm(self) -> torch.Tensor:
        """The norm of all gradients together in the last step, before clipping: a 0-dim float64 tensor.

        Raises:
            RuntimeError: if no group has ``clip_norm``, or no step was taken yet.
        """
        return total_norm(self._workings.planner.plan)

    # -- around the step: what these do is said where it is done ------------------------------------------------------

    @documented(two_points.first_step)
    def first_step(self, zero_grad: bool = False) -> None:
        two_points.first_step(self, zero_grad)

    @documented(two_points.second_step)
    def second_step(self, zero_grad: bool = False) -> None:
        two_points.second_step(self, zero_grad)

    @documented(two_points.go_back)
    def go_back(self) -> None:
        two_points.go_back(self)

    @documented(evaluation.eval)
    def eval(self) -> None:
        evaluation.eval(self)

    @documented(evaluation.train)
    def train(self, mode: bool = True) -> None:
        evaluation.train(self, mode)

    @documented(evaluation.evaluating)
    def evaluating(self) -> AbstractContextManager[None]:
        return evaluation.evaluating(self)

    @documented(in_backward.step_in_backward)
    def step_in_backward(self, model: nn.Module) -> in_backward.StepInBackward:
        return in_backward.step_in_backward(self, model)

    @documented(memory_ahead.memory)
    def memory(self, *, ranks: int = 1) -> memory_ahead.Memory:
        return memory_ahead.memory(self, ranks=ranks)

    @documented(changing.freeze)
    def freeze(self, what: Selectable) -> list[str]:
        return changing.freeze(self, what)

    @documented(changing.unfreeze)
    def unfreeze(self, what: Selectable) -> list[str]:
        return changing.unfreeze(self, what)

    @documented(changing.add)
    def add(self, what: nn.Module | torch.Tensor | Iterable[Any], **hyper: Any) -> None:
        changing.add(self, what, **hyper)

    @documented(changing.check)
    def check(self, model: nn.Module) -> None:
        changing.check(self, model)

    @documented(changing.follow)
    def follow(self, model: nn.Module) -> Followed:
        return changing.follow(self, model)

    @documented(changing.report_metric)
    def report_metric(self, value: float) -> None:
        changing.report_metric(self, value)

    @documented(measuring.track)
    def track(self, *names: str) -> None:
        measuring.track(self, *names)

    @documented(measuring.tracked)
    def tracked(self, by: str = "parameter") -> dict[str, float]:
        return measuring.tracked(self, by)

    @documented(idle.untrained)
    def untrained(self) -> dict[str, str]:
        return idle.untrained(self)

    # -- saving --------------------------------------------------------------------------------------------------

    @not_compiled
    def state_dict(self, *, full: bool = False) -> StateDict:
        """The optimizer as a dictionary, which ``torch.optim`` loads too.

        Args:
            full: give what is held in codes of 8 bits as the numbers that they stand for, in float32, for others to
                load; otherwise codes stand under the slot's name, and their scales under ``name::scale``.

        Returns:
            torch's form, ``{"state": {index: {slot: value}}, "param_groups": [...]}``, with names, schedules as
            plain data, and under ``"steprule"`` what else is needed to know that a state fits.
        """
        with self._workings.planner.lock:
            return state_dicts.packed(self, full)

    @not_compiled
    def load_state_dict(  # type: ignore[override]
        self,
        state_dict: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        strict: bool = True,
        *,
        hyperparameters: Hyperparameters = "saved",
        rename: Any = None,
        resize: Collection[str] = (),
    ) -> LoadResult:
        """Take over a saved state: everything is checked first, and on any error nothing has changed.

        The slots of the rule become copies. What somebody keeps beside them loads as it does into torch's optimizers:
        in new containers, tensors cast to the parameter's kind and device where they differ, and all else, such as
        parameters that are referred to, the very object.

        Args:
            state_dict: what :meth:`state_dict` gave, here or in any ``torch.optim.Optimizer``; or several, of
                optimizers that had a part of the parameters each, such as Muon's and AdamW's.
            strict: whether everything must fit; otherwise what does not fit keeps its present state.
            hyperparameters: ``"saved"``: those of the file; ``"current"``: as they are.
            rename: saved name -> name here: a mapping or a function.
            resize: names of parameters whose saved state may have other sizes, such as a grown vocabulary's.

        Returns:
            What was missing, unexpected and misshapen; all empty with ``strict``.

        Raises:
            ValueError: it does not fit (every problem is named).
            TypeError, KeyError: it is not a state dictionary.
        """
        asked: Any = dict(strict=strict, hyperparameters=hyperparameters, rename=rename, resize=resize)
        with self._workings.planner.lock:
            plan = state_dicts.plan_load(self, state_dict, **asked)
            for line in plan.warnings:
                warnings.warn(line, stacklevel=4)  # two frames are those of not_compiled
            state_dicts.install(self, plan)
        return plan.result


def has_rule(cls: type[Optimizer]) -> bool:
    """Whether a class of optimizers gives an update rule."""
    return cls.update is not Optimizer.update
