"""Optimizer: what a person constructs, steps and saves."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim import optimizer as torch_optimizer

from .kernels.choose import BACKENDS, launches
from .kernels.explain import explain
from .kernels.launch import Entry
from .kernels.plan import Plan
from .rule.program import Program, Slot
from .rule.trace import trace

__all__ = ["Optimizer"]

OPTIONS: dict[str, Any] = {
    "maximize": False,
    "l1": 0.0,
    "clip_norm": None,
    "backend": "auto",
    "foreach": None,
    "fused": None,
    "capturable": False,
    "differentiable": False,
}
"""What every algorithm takes as keywords, and in a group, with its default."""

NOT_HYPER = frozenset({"params", "param_names", "schedules"})


def hooked(step: Callable[..., Any]) -> Callable[..., Any]:
    """``step`` with torch's pre and post hooks around it, and visible to the profiler while one runs."""

    @functools.wraps(step)
    def wrapper(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        if torch._C._autograd._profiler_enabled():
            with torch.autograd.profiler.record_function(f"Optimizer.step#{type(self).__name__}.step"):
                return run(self, args, kwargs)
        return run(self, args, kwargs)

    def run(self: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for pre_hook in chain(
            torch_optimizer._global_optimizer_pre_hooks.values(), self._optimizer_step_pre_hooks.values()
        ):
            result = pre_hook(self, (self, *args), kwargs)
            if result is not None:
                if not isinstance(result, tuple) or len(result) != 2:
                    raise RuntimeError(
                        f"{step} must return None or a tuple of (new_args, new_kwargs), but got {result}."
                    )
                (_, *args), kwargs = result  # type: ignore[assignment]
        out = step(self, *args, **kwargs)
        self._optimizer_step_code()
        for post_hook in chain(
            self._optimizer_step_post_hooks.values(), torch_optimizer._global_optimizer_post_hooks.values()
        ):
            post_hook(self, (self, *args), kwargs)
        return out

    wrapper.hooked = True  # type: ignore[attr-defined]
    return wrapper


class Optimizer(torch.optim.Optimizer):
    r"""Base class of all optimizers: a subclass says what one update is, in :meth:`update`.

    Args:
        params: the parameters: an iterable of tensors, of (name, tensor) pairs or of group dictionaries, or a
            :class:`torch.nn.Module` (then the names are known).
        defaults: the hyperparameters that the rule reads as ``h.name``, with their defaults;
            ``torch.optim.optimizer.required`` for one without.
        maximize (bool): go up along the gradient instead of down.
        l1 (float): L1 penalty: ``l1 * sign(p)`` is added to the gradient.
        clip_norm (float, optional): the norm of all gradients together, above which they are scaled down to it.
        backend (str): ``"auto"``, or the kernel to insist on: ``"llvm"``, ``"triton"``, ``"eager"``.
        foreach, fused (bool, optional): accepted for torch's sake; every step is fused.
        capturable (bool): the step can be captured in a CUDA graph.
        differentiable (bool): autograd can differentiate through the step.

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

    # GradScaler hands its scale and its found-infinite flag to the step, which takes them up on the way.
    _step_supports_amp_scaling = True

    def __init__(
        self, params: nn.Module | Iterable[Any], defaults: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        defaults = dict(defaults or {})
        for name in options:
            if name not in OPTIONS:
                raise TypeError(f"{type(self).__name__}() got an unexpected keyword argument {name!r}")
        # an option that the rule has among its own hyperparameters is the rule's to apply
        self._own_options = frozenset(OPTIONS) & frozenset(defaults)
        defaults = {**OPTIONS, **options, **defaults}
        self.check(defaults)
        self._forget()
        if isinstance(params, nn.Module):
            params = list(params.named_parameters())
        super().__init__(params, defaults)

    # -- what a subclass writes ----------------------------------------------------------------------------------

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        """The rule: a parameter's new value.

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

    def check(self, h: Mapping[str, Any]) -> None:
        """Refuse hyperparameters out of range; called with the defaults and with each group.

        Raises:
            ValueError: naming the hyperparameter and its value.
        """
        if h["l1"] is not torch_optimizer.required and "l1" not in self._own_options and not h["l1"] >= 0.0:
            raise ValueError(f"Invalid l1 value: {h['l1']}")
        if h["clip_norm"] is not None and "clip_norm" not in self._own_options and not h["clip_norm"] >= 0.0:
            raise ValueError(f"Invalid clip_norm value: {h['clip_norm']}")
        if h["backend"] not in BACKENDS:
            raise ValueError(f"Invalid backend: {h['backend']!r}; it is one of {', '.join(BACKENDS)}")
        if h["fused"] and h["foreach"]:
            raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
        if h["fused"] and h["differentiable"]:
            raise RuntimeError("`fused` does not support `differentiable`")

    # -- construction --------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        """Drop everything that is derived from groups and state."""
        self._plan: Plan | None = None
        self._plan_key: Any = None
        self._programs: list[tuple[Any, Program]] = []

    def _patch_step_function(self) -> None:
        self._zero_grad_profile_name = f"Optimizer.zero_grad#{type(self).__name__}.zero_grad"
        step = type(self).step
        if not getattr(step, "hooked", None):
            type(self).step = hooked(step)  # type: ignore[method-assign]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_own_options": self._own_options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()
        for group in self.param_groups:
            for name, default in self.defaults.items():
                if default is not torch_optimizer.required:
                    group.setdefault(name, default)

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
        if isinstance(param_group, dict) and "params" in param_group:
            params = param_group["params"]
            if not isinstance(params, (torch.Tensor, set)):
                param_group["params"] = list(params.named_parameters() if isinstance(params, nn.Module) else params)
                self._refuse(param_group["params"])
            self.check({**self.defaults, **param_group})
        super().add_param_group(param_group)
        self._plan = None

    def _refuse(self, params: list[Any]) -> None:
        """torch's refusals, with the parameter's name."""
        known = {id(p) for group in self.param_groups for p in group["params"]}
        for item in params:
            if isinstance(item, tuple) and isinstance(item[1], torch.Tensor):
                name, p = item
                if not self.defaults["differentiable"] and not (p.is_leaf or p.retains_grad):
                    raise ValueError(f"can't optimize a non-leaf Tensor: {name}")
                if id(p) in known:
                    raise ValueError(f"some parameters appear in more than one parameter group: {name}")

    # -- a step --------------------------------------------------------------------------------------------------

    @hooked
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: evaluates the model again, with gradients enabled, and returns the loss.

        Returns:
            What the closure returned; None without one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf = getattr(self, "found_inf", None)
        if found_inf is None or not found_inf.item():
            self._apply()
        return loss

    def _apply(self) -> None:
        groups, scale = self.param_groups, getattr(self, "grad_scale", None)
        key = (scale is not None, any(group["clip_norm"] for group in groups))
        plan = self._plan
        if plan is None or key != self._plan_key or not plan.current(groups, self.state):
            plan = self._make_plan(key)
        plan.run(groups, {} if scale is None else {"grad_scale": scale}, self.state)
        torch.autograd.graph.increment_version([p for launch in plan.launches for p in launch.params])

    def _make_plan(self, key: tuple[bool, bool]) -> Plan:
        groups = self.param_groups
        programs = [self._program(group, key) for group in groups]
        entries = [
            Entry(p, p.grad, self.state.get(p, {}), index, self._name(index, position))
            for index, group in enumerate(groups)
            for position, p in enumerate(group["params"])
            if p.grad is not None
        ]
        params = [p for group in groups for p in group["params"]]
        plan = Plan(launches(programs, entries, groups), params, [len(g["params"]) for g in groups], programs)
        self._plan, self._plan_key = plan, key
        return plan

    def _program(self, group: dict[str, Any], key: tuple[bool, bool]) -> Program:
        """The Program for a group: one that was traced before, while its answers stay."""
        for known, program in self._programs:
            if known == key and program.serves(group):
                return program
        scaled, clipped = key
        program = trace(
            self.update,
            {name: value for name, value in group.items() if name not in NOT_HYPER},
            self.slots,
            name=type(self).__name__,
            scaled=scaled,
            clipped=clipped,
            own=self._own_options,
        )
        self._programs.append((key, program))
        return program

    def _name(self, group: int, position: int) -> str:
        """What a person calls a parameter."""
        names = self.param_groups[group].get("param_names")
        return repr(names[position]) if names else f"{position} of group {group}"

    def explain(self, source: bool = False) -> str:
        """Which kernel serves which parameters, and why.

        Before the first step, and after a change, the answer is that for the gradients present now.

        Args:
            source: show each Program as mathematics, and the code that was generated from it.
        """
        plan = self._plan or self._make_plan((False, any(group["clip_norm"] for group in self.param_groups)))
        return explain(plan.launches, source)

    @property
    def grad_norm(self) -> torch.Tensor:
        """The norm of all gradients together in the last step, before clipping: a 0-dim float64 tensor.

        Raises:
            RuntimeError: if no group has ``clip_norm``, or no step was taken yet.
        """
        found = self._plan.tracked("total_norm") if self._plan is not None else []
        if not found:
            raise RuntimeError("grad_norm is computed where clip_norm is set, in a step; neither is so yet")
        _, squares = found[0]
        norm: torch.Tensor = squares[0].sqrt()
        return norm
