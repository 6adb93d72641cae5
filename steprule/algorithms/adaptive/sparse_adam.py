from __future__ import annotations

from typing import Any, ClassVar

import torch

from steprule.algorithms.arguments import Number, Params, PlacedOptions, Range, Ranges, Unpack, usually
from steprule.algorithms.moments import mean_of
from steprule.optimizer import Optimizer
from steprule.rule import sqrt
from steprule.saving.saved import as_number
from steprule.saving.state_dict import StateDict

__all__ = ["SparseAdam"]


class SparseAdam(Optimizer):
    r"""Adam for sparse gradients: only the rows that a gradient holds, and their moments, change.

    .. math::
        \theta_t = \theta_{t-1} - \gamma \, \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t} \,
            \frac{m_t}{\sqrt{v_t} + \epsilon} \qquad\text{in the rows present}

    with the moments :math:`m` and :math:`v` of :class:`Adam` (`Kingma and Ba, 2015
    <https://arxiv.org/abs/1412.6980>`_); :math:`t` counts the parameter's steps, not the row's.

    Choose it for embeddings with ``sparse=True``, of which a batch touches few rows.

    Args:
        params: see :class:`steprule.Optimizer`; dense and real, with sparse gradients.
        lr (float, Tensor or Schedule): the rate: the size of a step in the parameter's own unit; usually 1e-4 to
            1e-2.
        betas (tuple of two floats): how much of the running means of the gradient and of its square is kept from step
            to step, without unit; usually 0.9 and 0.99 to 0.9999.
        eps (float): added to the denominator, in the gradient's unit; usually 1e-10 to 1e-6.
        maximize (bool): go up along the gradient instead of down.
        options: what every algorithm takes.

    Raises:
        ValueError: if a hyperparameter is out of range, or a parameter is sparse or complex.
        RuntimeError: in a step, if a gradient is dense.

    Example:
        >>> import torch
        >>> from steprule import SparseAdam
        >>> embedding = torch.nn.Embedding(4, 1, sparse=True)
        >>> _ = torch.nn.init.ones_(embedding.weight)
        >>> optimizer = SparseAdam([embedding.weight], lr=0.25)
        >>> embedding(torch.tensor([1, 3, 3])).sum().backward()
        >>> optimizer.step()
        >>> embedding.weight.detach().flatten()
        tensor([1.0000, 0.7500, 1.0000, 0.7500])
    """

    switches: ClassVar[frozenset[str]] = frozenset()
    ranges: ClassVar[Ranges] = usually(
        lr=Range(above=0, called="learning rate", usual="1e-4 to 1e-2"),
        eps=Range(above=0, called="epsilon value", usual="1e-10 to 1e-6"),
        betas=("0.9", "0.99 to 0.9999"),
    )

    def __init__(
        self,
        params: Params,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        maximize: bool = False,
        **options: Unpack[PlacedOptions],
    ) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps), maximize=maximize, **options)
        places = [(i, j, p) for i, group in enumerate(self.param_groups) for j, p in enumerate(group["params"])]
        if sparse := [[i, j] for i, j, p in places if p.is_sparse]:
            raise ValueError(f"Sparse params at indices {sparse}: SparseAdam requires dense parameter tensors")
        if complex_ := [[i, j] for i, j, p in places if p.is_complex()]:
            raise ValueError(f"Complex params at indices {complex_}: SparseAdam does not support complex parameters")

    def state_dict(self, *, full: bool = False) -> StateDict:
        """The optimizer as a dictionary, in which ``step`` is an int, as torch has it here."""
        packed = super().state_dict(full=full)
        for key, entry in packed["state"].items():
            step = as_number(entry.get("step")) if type(key) is int and isinstance(entry, dict) else None
            if step is not None:
                entry["step"] = int(step)
        for parameter in packed["steprule"]["parameters"] or ():
            parameter["slots"].update({"step": None} if "step" in parameter["slots"] else {})
        return packed

    def _begin_state(self) -> None:
        for p in (p for group in self.param_groups for p in group["params"]):
            if p.grad is not None and not p.grad.is_sparse:
                p.grad = p.grad.to_sparse(min(p.ndim, 1))

    def refuse(self, p: torch.Tensor) -> None:
        """Refuse a dense gradient, as torch does."""
        if p.grad is not None and not p.grad.is_sparse:
            raise RuntimeError("SparseAdam does not support dense gradients, please consider Adam instead")

    def update(self, p: Any, g: Any, s: Any, h: Any) -> Any:
        beta1, beta2 = h.betas
        s.exp_avg = mean_of(s.exp_avg, g, beta1)
        s.exp_avg_sq = mean_of(s.exp_avg_sq, g * g, beta2)
        step_size = h.lr * sqrt(1 - beta2**s.step) / (1 - beta1**s.step)
        return p - step_size * s.exp_avg / (sqrt(s.exp_avg_sq) + h.eps)
