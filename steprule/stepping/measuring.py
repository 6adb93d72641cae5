"""What is measured in a step, in the same passes over memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steprule.kernels.tracking import check_tracked, read_tracked

from .workings import workings

if TYPE_CHECKING:
    from steprule.optimizer import Optimizer

__all__ = ["track", "tracked"]


def track(optimizer: Optimizer, *names: str) -> None:
    """Compute norms of each parameter in each step from now on, in the same passes over memory.

    Args:
        *names: of ``"grad_norm"`` (as in ``backward``, without GradScaler's scale, before clipping),
            ``"param_norm"`` (before the update), ``"update_norm"`` (of what the step adds to the parameter) and
            ``"update_to_param"``, the ratio of these two; none to stop.

    Raises:
        ValueError: for another name.
        RuntimeError: the algorithm has no update rule that could measure.

    Example:
        >>> import torch, steprule
        >>> weight = torch.tensor([3.0, 4.0], requires_grad=True)
        >>> optimizer = steprule.SGD([("weight", weight)], lr=0.1)
        >>> optimizer.track("grad_norm", "update_to_param")
        >>> weight.sum().backward()
        >>> optimizer.step()
        >>> {name: round(value, 6) for name, value in optimizer.tracked().items()}
        {'grad_norm/weight': 1.414214, 'update_to_param/weight': 0.028284}
    """
    works = workings(optimizer)
    check_tracked(names)
    if names and not works.has_rule:
        raise RuntimeError(f"{type(optimizer).__name__} has no update rule, in which norms are computed on the way")
    works.tracked = names


def tracked(optimizer: Optimizer, by: str = "parameter") -> dict[str, float]:
    """What :meth:`track` asked for, in the last step.

    Args:
        by: ``"parameter"``, or ``"group"`` for the norms over all that had a gradient in a group.

    Returns:
        ``"grad_norm/NAME"`` to number, for each parameter that had a gradient. NAME is the parameter's, and
        ``group_0.3`` for the fourth of the first group if it has none; by group it is ``group_0``. Empty before
        the first step that measured.

    Raises:
        ValueError: ``by`` is something else.
    """
    works = workings(optimizer)
    check_tracked(works.tracked, by)
    works.members.keep_names(optimizer.param_groups)
    return read_tracked(works.planner.plan, optimizer.param_groups, works.tracked, by)
