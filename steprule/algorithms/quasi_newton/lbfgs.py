from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch

from steprule.algorithms.arguments import Number, Options, Params, Range, Ranges, Unpack, usually
from steprule.kernels.overlaps import fault
from steprule.optimizer import Optimizer
from steprule.stepping.hooks import asks_for_state

from .line_search import Trial, strong_wolfe

__all__ = ["LBFGS"]


class LBFGS(Optimizer):
    r"""A quasi-Newton method: the last changes of parameters and gradient stand in for the second derivatives.

    .. math::
        \theta_{k+1} = \theta_k - t_k H_k g_k

    where :math:`H_k`, never formed, is the BFGS approximation of the inverse Hessian from the last ``history_size``
    pairs :math:`s = \theta_{k+1} - \theta_k,\ y = g_{k+1} - g_k`. `On the limited memory BFGS method for large scale
    optimization <https://doi.org/10.1007/BF01589116>`_, Liu and Nocedal, 1989.

    Choose it for smooth losses without noise (full batches, physics, fitting) and up to some millions of numbers: it
    needs tens of evaluations where gradient descent needs thousands. Take ``line_search_fn="strong_wolfe"`` unless
    evaluations are very dear.

    All parameters stand in one group; the state is torch's, under the first parameter: ``history_size`` pairs of
    vectors over all of them.

    Args:
        params: see :class:`steprule.Optimizer`; one group.
        lr (float, Tensor or Schedule): the distance to go along each direction, or to try first, without unit;
            usually 1.
        max_iter (int): iterations in a step.
        max_eval (int, optional): evaluations in a step; ``max_iter * 5 // 4`` by default.
        tolerance_grad (float): stop when no component of the gradient is larger, in its unit.
        tolerance_change (float): stop when parameters or loss change by less, in their units.
        history_size (int): the number of pairs kept; usually 5 to 100.
        line_search_fn (str, optional): ``"strong_wolfe"`` or None.
        options: ``maximize``; what else every algorithm takes is refused.

    Raises:
        ValueError: if the rate is negative, there are several groups, or an option has no meaning here.

    Example:
        >>> import torch
        >>> from steprule import LBFGS
        >>> x = torch.tensor([-1.2, 1.0], dtype=torch.float64, requires_grad=True)
        >>> optimizer = LBFGS([x], max_iter=100, line_search_fn="strong_wolfe")
        >>> def rosenbrock():
        ...     optimizer.zero_grad()
        ...     loss = (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
        ...     loss.backward()
        ...     return loss
        >>> _ = optimizer.step(rosenbrock)
        >>> torch.allclose(x, torch.ones_like(x), atol=1e-4)
        True
    """

    switches: ClassVar[frozenset[str]] = frozenset()
    ranges: ClassVar[Ranges] = usually(
        lr="1",
        max_iter=Range(),
        max_eval=Range(),
        tolerance_grad=Range(),
        tolerance_change=Range(),
        history_size=Range(usual="5 to 100"),
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: str | None = None,
        **options: Unpack[Options],
    ) -> None:
        defaults: dict[str, Any] = dict(lr=lr, max_iter=max_iter, history_size=history_size)
        defaults["max_eval"] = max_iter * 5 // 4 if max_eval is None else max_eval
        defaults |= dict(tolerance_grad=tolerance_grad, tolerance_change=tolerance_change)
        super().__init__(params, dict(defaults, line_search_fn=line_search_fn), **options)
        if len(self.param_groups) != 1:
            raise ValueError("LBFGS doesn't support per-parameter options (parameter groups)")

    def validate(self, h: Mapping[str, Any]) -> None:
        super().validate(h)
        for option in ("l1", "clip_norm"):
            if h[option]:
                raise ValueError(f"LBFGS does not support {option}: its directions come from unchanged gradients")
        if h["state_dtype"] is not None:
            raise ValueError("LBFGS does not support state_dtype: its history must be exact")
        if h["master"] is not None:
            raise ValueError("LBFGS does not support master: it moves the weights by torch operations")
        if h["rounding"] != "nearest":
            raise ValueError("LBFGS does not support rounding: its line search must find the weights where it put them")
        if h["backend"] not in ("auto", "eager"):
            raise ValueError(f"LBFGS works by torch operations; backend={h['backend']!r} can't serve it")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Go on until an optimum, or a limit on iterations or evaluations, is reached.

        Args:
            closure: evaluates the model, with gradients enabled, and returns the loss; called several times.

        Returns:
            What the closure returned at first.

        Raises:
            TypeError: there is no closure.
        """
        if closure is None and asks_for_state(self, {"closure": None}):
            return None  # there is none before the first evaluation
        if closure is None:
            raise TypeError(
                "LBFGS evaluates the model several times in a step, and needs step(closure); where a GradScaler calls "
                "it (training in mixed precision with float16) there is no closure: train in bfloat16 or float32"
            )
        if len(self.param_groups) != 1:
            raise AssertionError(f"Expected exactly one param_group, but got {len(self.param_groups)}")
        group, state = self.param_groups[0], self.state[self._moving()[0]]

        self._refuse_faulty()

        def evaluate() -> tuple[Any, float, torch.Tensor]:
            with torch.enable_grad():
                value = closure()
            self._refuse_faulty()
            loss, gradient = float(value), torch.cat([flat_gradient(p) for p in self._moving()])
            return (value, -loss, gradient.neg()) if group["maximize"] else (value, loss, gradient)

        first, loss, gradient = evaluate()
        state["func_evals"] = state.get("func_evals", 0) + 1
        state.setdefault("n_iter", 0)
        if not gradient.abs().max() <= group["tolerance_grad"]:
            self._iterate(group, state, evaluate, Trial(0, loss, gradient, None))
        return first

    def _iterate(
        self,
        group: Mapping[str, Any],
        state: dict[str, Any],
        evaluate: Callable[[], tuple[Any, float, torch.Tensor]],
        here: Trial,
    ) -> None:
        """Iterations from a point that has just been evaluated."""
        rate, limit = float(group["lr"]), group["max_iter"]
        search, tolerance = group["line_search_fn"], group["tolerance_change"]
        evaluations = 1
        for iteration in range(1, limit + 1):
            state["n_iter"] += 1
            d = state["d"] = search_direction(state, here.gradient, group["history_size"])
            state["prev_flat_grad"], state["prev_loss"] = here.gradient.clone(), here.loss
            t: Any = rate
            if state["n_iter"] == 1:
                t = (1.0 / here.gradient.abs().sum()).clamp(max=1.0) * rate
            state["t"] = t
            here = here._replace(t=0, slope=here.gradient.dot(d))
            if not here.slope <= -tolerance:  # NaN is nowhere to go either
                return
            if search is not None:
                left = max(group["max_eval"] - evaluations, 0)
                here, count = self._search(search, evaluate, here, t, d, tolerance, left)
                state["t"] = t = here.t
                self._move(t, d)
            else:
                self._move(t, d)
                if iteration == limit:
                    return
                _, loss, gradient = evaluate()
                here, count = Trial(0, loss, gradient, None), 1
            evaluations += count
            state["func_evals"] += count
            if (
                iteration == limit
                or evaluations >= group["max_eval"]
                or here.gradient.abs().max() <= group["tolerance_grad"]
                or d.mul(t).abs().max() <= tolerance
                or abs(here.loss - state["prev_loss"]) < tolerance
            ):
                return

    def _search(
        self,
        search: str,
        evaluate: Callable[..., Any],
        here: Trial,
        t: Any,
        d: torch.Tensor,
        tolerance: float,
        limit: int,
    ) -> tuple[Trial, int]:
        if search != "strong_wolfe":
            raise RuntimeError("only 'strong_wolfe' is supported")
        params = self._moving()
        start = [p.clone(memory_format=torch.contiguous_format) for p in params]

        def at(t: Any) -> Trial:
            self._move(t, d)
            _, loss, gradient = evaluate()
            for p, value in zip(params, start, strict=True):
                p.copy_(value)
            return Trial(t, loss, gradient, gradient.dot(d))

        return strong_wolfe(at, here, t, d.abs().max(), tolerance, limit)

    def _moving(self) -> list[torch.Tensor]:
        """The parameters but for frozen ones of whole numbers, which have no direction."""
        params = self.param_groups[0]["params"]
        return [p for p in params if p.is_floating_point() or p.is_complex() or p.requires_grad] or params

    def _refuse_faulty(self) -> None:
        """Refuse parameters and gradients whose memory is gone or can't be written.

        Raises:
            RuntimeError: naming the parameter.
        """
        names = self.param_groups[0].get("param_names") or map(str, range(len(self.param_groups[0]["params"])))
        for p, name in zip(self.param_groups[0]["params"], names, strict=False):
            for tensor, what in ((p, "parameter"), (p.grad, "gradient of parameter")):
                if tensor is not None and p.requires_grad and (wrong := fault(tensor, tensor is p)):
                    raise RuntimeError(
                        f"the {what} {name!r} {wrong}; replace it with a tensor that has memory of its own"
                    )

    def _move(self, t: Any, d: torch.Tensor) -> None:
        offset = 0
        for p in map(real_view, self._moving()):
            p.add_(d[offset : offset + p.numel()].view_as(p), alpha=t)
            offset += p.numel()


def real_view(p: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(p) if p.is_complex() else p


def flat_gradient(p: torch.Tensor) -> torch.Tensor:
    if p.grad is None:
        return real_view(torch.zeros_like(p)).flatten()
    return real_view(p.grad.to_dense() if p.grad.is_sparse else p.grad).flatten()


def search_direction(state: dict[str, Any], gradient: torch.Tensor, history_size: int) -> torch.Tensor:
    """The approximate inverse Hessian times the negative gradient, after the history has taken the last change in."""
    if state["n_iter"] == 1:
        state["old_dirs"], state["old_stps"], state["ro"], state["H_diag"] = [], [], [], 1
        return gradient.neg()
    changes, moves, ro = state["old_dirs"], state["old_stps"], state["ro"]
    y, s = gradient.sub(state["prev_flat_grad"]), state["d"].mul(state["t"])
    ys = y.dot(s)
    if ys > 1e-10:
        if len(changes) == history_size:
            for history in (changes, moves, ro):
                history.pop(0)
        changes.append(y)
        moves.append(s)
        ro.append(1.0 / ys)
        state["H_diag"] = ys / y.dot(y)
    al = state.setdefault("al", [None] * history_size)
    q = gradient.neg()
    for i in reversed(range(len(changes))):
        al[i] = moves[i].dot(q) * ro[i]
        q.add_(changes[i], alpha=-al[i])
    d = torch.mul(q, state["H_diag"])
    for i in range(len(changes)):
        d.add_(moves[i], alpha=al[i] - changes[i].dot(d) * ro[i])
    return d
